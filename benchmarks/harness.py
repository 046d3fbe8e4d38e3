"""What every benchmark script shares: flags, fair timing, one allocator for all contestants, the result's JSON.

A claim is a script ``benchmarks/NAME.py [--quick]`` whose last output line is one JSON object. A full run also writes
``benchmarks/results/NAME.json``, which is committed; a quick run (at most a minute) leaves that file alone.

Three habits keep comparisons fair on a shared machine. CPU time (``time.process_time``) instead of wall time;
contestants interleaved round by round, so that drift hits all of them alike; and one allocator setting for everybody:
glibc returns large blocks to the kernel by default, and then half of a large beam search is page faults.

    def main() -> None:
        tuned_allocator()  # before any import of torch
        options = arguments(__doc__)
        ...
        finish("trie", value, bar, passed, {"seed": 0}, quick=options.quick)
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from claims import provenance

RESULTS = Path(__file__).parent / "results"
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),  # never mmap a temporary
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),  # never give memory back
    "MALLOC_TOP_PAD_": str(256 << 20),  # grow in large strides
}


def arguments(doc: str | None, extend: Callable[[argparse.ArgumentParser], Any] | None = None) -> argparse.Namespace:
    """The script's flags: ``--quick`` and whatever ``extend(parser)`` adds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most 60 s on 2 cores; the committed result stays")
    if extend is not None:
        extend(parser)
    return parser.parse_args()


def tuned_allocator() -> None:
    """Start the script again under :data:`ALLOCATOR`, unless it already runs so. glibc reads these only at start."""
    if all(os.environ.get(name) == value for name, value in ALLOCATOR.items()):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})


def single_thread() -> None:
    """One thread for every numeric library, so that CPU time means work and not waiting at barriers."""
    import torch

    torch.set_num_threads(1)


def interleaved(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every call; round after round, everyone once per round. One uncounted round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, call in contestants.items():
            start = time.process_time()
            call()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return seconds


def said(what: Callable[[], str], seconds: float = 10.0) -> contextlib.AbstractContextManager[None]:
    """Print ``what()`` every so often while the block runs: a run that is cut off has left figures."""
    from sidera.console import repeating

    return repeating(lambda since: print(f"{since:.0f} s: {what()}", flush=True), seconds)


def machine() -> dict[str, Any]:
    """The machine in words, without names of hosts or users."""
    import torch

    described = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "tuned_allocator": all(os.environ.get(name) == value for name, value in ALLOCATOR.items()),
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def finish(
    name: str,
    value: Any,
    bar: Any,
    passed: bool | None,
    context: Mapping[str, Any],
    quick: bool,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Print the claim's JSON line; a full run also writes it, with ``details``, to ``results/NAME.json``.

    ``context`` holds what the script chose (seed, sizes); machine, versions, command and date are added here. Without
    a bar nothing is passed: ``pass`` is null. A result file also says at which commit, and with which code, it was
    measured: ``benchmarks/claims.py`` tells when that code has changed.
    """
    script = Path(sys.argv[0])
    record = {
        "name": name,
        "value": plain(value),
        "bar": bar,
        "pass": None if bar is None or passed is None else bool(passed),
        "context": {
            **plain(context),
            "quick": quick,
            "machine": machine(),
            "command": " ".join(["python", f"{script.parent.name}/{script.name}", *map(_without_place, sys.argv[1:])]),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
    }
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        full = {**record, "provenance": provenance(script), "details": plain(dict(details or {}))}
        text = json.dumps(full, indent=2, allow_nan=False) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    print(json.dumps(record, allow_nan=False), flush=True)
    return record


NEEDS_BF16 = "needs a processor with bf16"  # said in place of a figure that another processor only emulates


def has_bf16() -> bool:
    """Whether this processor computes in bf16 rather than emulating it, several times slower."""
    from sidera.ops.processor import emulates_bf16

    return not emulates_bf16("cpu")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are undefined or without bound become null."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_place(argument: str) -> str:
    """An argument; of an absolute path only its name, as its folder is of one machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
