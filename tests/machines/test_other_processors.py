"""Training and answers on processors that this machine is not.

Two ways. torch and oneDNN are told by their variables to use less than the processor has: quick, but a library's own
guard may read the processor itself. An emulated Haswell (qemu: AVX2, no AVX-512) has nothing more to read.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
SMOKE = TESTS / "machines" / "smoke.py"
QEMU = shutil.which("qemu-x86_64")
EMULATED = [QEMU or "qemu-x86_64", "-cpu", "Haswell"]
needs_qemu = pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64" or sys.platform != "linux",
    reason="needs qemu-x86_64 on x86-64 Linux (Debian: apt-get install qemu-user)",
)


def smoke(run_folder: Path, wrapper: list[str], **variables: str) -> dict[str, Any]:
    """What ``smoke.py`` prints under ``wrapper`` and with these variables set."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [*wrapper, sys.executable, str(SMOKE), str(run_folder)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def here(trained_run: Path) -> dict[str, Any]:
    return smoke(trained_run, [])


def assert_alike(there: dict[str, Any], here: dict[str, Any]) -> None:
    """The same answers of the same weights; losses as far as sums in another order agree, and falling."""
    for (keys, scores), (wanted, expected) in zip(there["answers"], here["answers"], strict=True):
        assert keys == wanted
        assert scores == pytest.approx(expected, abs=1e-3)
    for precision, bound in (("f32", 1e-3), ("bf16", 5e-2)):
        losses = there[precision]["losses"]
        assert losses == pytest.approx(here[precision]["losses"], rel=bound)
        assert losses[-1] < 0.9 * losses[0]
        (items,) = there[precision]["items"]
        assert len(set(items) - {-1}) == 3


def test_without_vector_units_of_this_century(trained_run: Path, here: dict[str, Any]) -> None:
    """SSE 4.1 at most. About 10 CPU-seconds with ``here``."""
    there = smoke(trained_run, [], ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    assert there["capability"] == "DEFAULT"
    assert_alike(there, here)


@pytest.mark.slow
@needs_qemu
def test_on_an_emulated_haswell(trained_run: Path, here: dict[str, Any]) -> None:
    there = smoke(trained_run, EMULATED)
    assert there["capability"] == "AVX2"
    assert_alike(there, here)


@pytest.mark.slow
@needs_qemu
def test_the_test_that_failed_on_avx2_passes_on_an_emulated_haswell() -> None:
    name = TESTS / "models" / "test_tiger.py"
    command = [*EMULATED, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"{name}::test_bfloat16_answers_are_close"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stdout[-3000:]
    assert "1 passed" in found.stdout
