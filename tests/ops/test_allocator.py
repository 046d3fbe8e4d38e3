from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from sidera.ops.allocator import keep_memory
assert {keep}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(16_000_000)
before = faults()
for _ in range(20):
    torch.ones(16_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator's settings are glibc's")
def test_kept_memory_is_used_again_without_page_faults() -> None:
    """20 times 64 MB: 312,500 faults when each is handed back, a third of that or less when most are kept."""

    def faults(keep: str) -> int:
        program = PROGRAM.format(keep=keep)
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert faults("keep_memory()") < 0.6 * faults("True")


PIECES = """
import torch
from sidera.ops.allocator import keep_memory, release_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
keep_memory()
pieces = [torch.ones(1_000_000) for _ in range(100)]
between = torch.ones(1_000_000)
del pieces
before = resident()
assert release_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator's settings are glibc's")
def test_released_memory_goes_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 200e6  # of 400 MB that were freed below a piece in use
