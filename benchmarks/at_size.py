"""A log of 100,000 items, 40,000 users and 1.4 million events, from its folder to the first list, on two cores.

Each recipe runs in a process of its own: `sidera run recipes/any/NAME.toml`, then `sidera recommend` of one history.
Wall and CPU seconds and the peak of resident memory are those of the processes. Bars: popularity and item-kNN at most
60 s, the generator at most 20 minutes, each at most 4 GiB. The log is simulated once, into the cache.

    python benchmarks/at_size.py [--quick] [--only popularity generator] [--log FOLDER]

`--quick`: 2,000 items, 800 users, seconds of training, no MiniLM; it shows that the script works at a size where the
bars say little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "any"
BARS = {"popularity": 60.0, "item_knn": 60.0, "generator": 1200.0}  # wall seconds from the log to the first list
GIB = 4.0
SIZES = {False: (100_000, 40_000, 6), True: (2_000, 800, 6)}  # quick -> items, users, days
SAY_SECONDS = 30.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(BARS), default=list(BARS), help="recipes to run")
    parser.add_argument("--log", help="data folder (else one is simulated, once)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each run")


def simulated(quick: bool) -> Path:
    """The log's folder in the cache, made where it is missing."""
    from sidera.catalog.text_encoder import cache_dir

    items, users, days = SIZES[quick]
    path = cache_dir() / "benchmarks" / f"log-{items}-{users}-{days}"
    if not (path / "manifest.json").is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        words = ["simulate", "--set", f"world.num_items={items}", "--users", users, "--days", days, "--out", path]
        measured("simulate", words, 1)
    return path


def measured(name: str, words: list[Any], threads: int) -> dict[str, Any]:
    """Run ``sidera WORDS`` in a process of its own; wall and CPU seconds, peak GiB, what it wrote."""
    command = [sys.executable, "-m", "sidera", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    began, peak = time.perf_counter(), [0.0]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        watcher = threading.Thread(target=_watch, args=(name, process, began, peak), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{text}")
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss in bytes, in KiB
    return {
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(max(peak[0], usage.ru_maxrss / unit), 2),
        "said": text.splitlines(),
    }


def _watch(name: str, process: subprocess.Popen[bytes], began: float, peak: list[float]) -> None:
    """A line every half minute, with the memory held by then."""
    said = began
    while process.returncode is None and _alive(process.pid):
        time.sleep(0.5)
        held = _resident_gib(process.pid)
        peak[0] = max(peak[0], held)
        if time.perf_counter() - said >= SAY_SECONDS:
            said = time.perf_counter()
            print(f"{name}: {said - began:.0f} s, {held:.2f} GiB", flush=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _resident_gib(process: int) -> float:
    """What the process holds now; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def from_log_to_list(name: str, log: Path, folder: Path, threads: int, quick: bool) -> dict[str, Any]:
    """The run and the first list after it."""
    out = folder / name
    words = ["run", RECIPES / f"{name}.toml", "--data", log, "--out", out]
    if quick:
        words += ["--set", "eval.bootstrap=50", "--set", "eval.max_rows=300", "--set", "eval.latency_rows=10"]
        if name == "generator":
            words += ["--max-minutes", 0.2, "--set", 'catalog.vectors=["tfidf?", "behaviour"]']
    run = measured(name, words, threads)
    first_item = _some_item(log)
    answer = measured(f"{name}, a list", ["recommend", out, "--history", first_item], threads)
    listed = [line for line in answer["said"] if "\t" in line]
    assert len(listed) == 10, answer["said"]
    print(f"{name}: {run['wall_s'] + answer['wall_s']:.0f} s, {run['cpu_s'] + answer['cpu_s']:.0f} CPU-s,"
          f" {run['peak_gib']:.2f} GiB", flush=True)  # fmt: skip
    return {
        "wall_s": round(run["wall_s"] + answer["wall_s"], 1),
        "cpu_s": round(run["cpu_s"] + answer["cpu_s"], 1),
        "peak_gib": max(run["peak_gib"], answer["peak_gib"]),
    }


def _some_item(log: Path) -> str:
    import pyarrow.parquet as pq

    with pq.ParquetFile(log / "events.parquet") as file:
        batch = next(file.iter_batches(batch_size=1, columns=["item"]))
    return str(batch.column(0)[0])


def main() -> None:
    options = arguments(__doc__, flags)
    log = Path(options.log) if options.log else simulated(options.quick)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="at-size-") as folder:
        for name in options.only:
            found[name] = from_log_to_list(name, log, Path(folder), options.threads, options.quick)
    passed = all(one["wall_s"] <= BARS[name] and one["peak_gib"] <= GIB for name, one in found.items())
    bar = {name: {"wall_s": BARS[name], "peak_gib": GIB} for name in found}
    items, users, days = SIZES[options.quick]
    context = {"items": items, "users": users, "days": days, "log": log.name, "threads": options.threads}
    finish(
        "at_size", found, bar, passed, context, quick=options.quick or set(options.only) != set(BARS),
    )  # fmt: skip


if __name__ == "__main__":
    main()
