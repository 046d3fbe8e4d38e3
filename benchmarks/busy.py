"""Claim `busy`: the README's example while every core has another CPU-bound process, against the same run alone.

    python benchmarks/busy.py [--quick]

`sidera run recipes/any/generator.toml` on the example log (200 steps, catalogue, evaluation and report included), each
time in a fresh process and folder. `alone`: nothing else is started; `busy`: one process per core of this process's
affinity counts, pinned to it where the system can pin. Runs alternate; the figures are medians over the rounds. CPU
time is what the run's process used (its children too), so waiting that spins shows in it; wall time is what a user
waits.

A fair scheduler halves the speed of a run that needs one core, so the wall bar leaves a third on top of that. The load
of the machine before the first run is in the context: a machine that was busy already makes `alone` too slow.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import arguments, finish

ROOT = Path(__file__).resolve().parents[1]
BAR = {"cpu_ratio": 1.3, "wall_ratio": 2.6}  # at most
ROUNDS = 3
BURN = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    pass
"""


@dataclass(frozen=True)
class Spent:
    """Seconds of one run, and what it said about its threads."""

    cpu: float
    wall: float
    threads: str


def main() -> None:
    options = arguments(__doc__)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    load = os.getloadavg()[0]
    runs: dict[str, list[Spent]] = {"alone": [], "busy": []}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        example = ROOT / "examples"
        sidera("import", str(example / "events.csv"), "--items", str(example / "items.jsonl"), "--out", str(data))
        for number in range(1 if options.quick else ROUNDS):
            for name, burning in (("alone", []), ("busy", cores)):
                with burners(burning):
                    runs[name].append(run(data, Path(scratch) / f"{name}-{number}"))
    value = {
        f"{what}_ratio": round(median(runs["busy"], what) / median(runs["alone"], what), 2) for what in ("cpu", "wall")
    }
    value |= {f"{name}_{what}_s": round(median(runs[name], what), 1) for name in runs for what in ("cpu", "wall")}
    finish(
        "busy",
        value,
        BAR,
        passed=all(value[name] <= bar for name, bar in BAR.items()),
        context={"cores": len(cores), "load_before": round(load, 2), "rounds": len(runs["alone"])},
        quick=options.quick,
        details={name: [vars(one) for one in spent] for name, spent in runs.items()},
    )


def run(data: Path, out: Path) -> Spent:
    recipe = str(ROOT / "recipes" / "any" / "generator.toml")
    return sidera("run", recipe, "--data", str(data), "--out", str(out), "--set", "fit.max_steps=200", "--set",
                  "fit.teachers=0")  # fmt: skip


def sidera(*words: str) -> Spent:
    """One command in a process of its own; its output is shown where it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-m", "sidera", *words], stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise SystemExit(f"sidera {words[0]} failed with {process.returncode}:\n{said}")
    threads = [line for line in said.splitlines() if "threads:" in line]
    return Spent(used.ru_utime + used.ru_stime, wall, threads[0] if threads else "")


@contextlib.contextmanager
def burners(cores: list[int]) -> Iterator[None]:
    """One process that never waits on each of these cores."""
    started = [subprocess.Popen([sys.executable, "-c", BURN, str(core)]) for core in cores]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def median(runs: list[Spent], what: str) -> float:
    return statistics.median(getattr(one, what) for one in runs)


if __name__ == "__main__":
    main()
