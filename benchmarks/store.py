"""Claim `store`: the embedded store against its bars, beside the store of an earlier commit.

    python benchmarks/store.py [--quick] [--ref COMMIT]

Four bars, on the disk that holds the temporary folder: acknowledged appends with fsync by 16 writers (at least 2,000 a
second); batched appends (200,000 events a second); the newest 256 events of a user with 300 events and of one with
100,000 (p99 at most 100 microseconds); opening again after kill -9 (2 seconds for a million events that came one by
one). Bytes an event are printed beside them.

``--ref`` makes a worktree of that commit and measures its store by the same script, in turns with this one. Every
measure runs in a process of its own; medians over the rounds. fsync is measured beside it: the first bar is a matter
of the disk as much as of the store.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BARS = {"writers_per_second": 2000, "batched_per_second": 200_000, "read_p99_us": 100, "reopen_s_per_million": 2}
AT_MOST = ("read_p99_us", "reopen_s_per_million")


def opened(path: Path, sync: bool) -> Any:
    from sidera.store.embedded import EmbeddedStore, StoreConfig

    make: Any = StoreConfig
    try:
        config = make(durability="disk" if sync else "kernel")
    except TypeError:  # the commit before
        config = make(sync=sync)
    return EmbeddedStore(path, config)


def events(numbers: np.ndarray, count: int, start: int = 0) -> Any:
    from sidera.store.events import Events

    return Events.of(numbers[np.arange(count) % len(numbers)], 1_700_000_000 + start + np.arange(count))


def writers(path: Path, seconds: float) -> dict[str, float]:
    """Sixteen threads, one event at a time, each on the disk when its append returns."""
    store, counts = opened(path, True), [0] * 16
    numbers = store.numbers_of([f"i{n}" for n in range(1000)])
    stop = time.perf_counter() + seconds

    def work(name: int) -> None:
        while time.perf_counter() < stop:
            store.append(f"u{(name * 977 + counts[name] * 31) % 5000}", events(numbers, 1, counts[name]))
            counts[name] += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in range(16)]
    cpu = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent, alone = time.process_time() - cpu, []
    for number in range(100):
        begun = time.perf_counter()
        store.append("alone", events(numbers, 1, number))
        alone.append(time.perf_counter() - begun)
    return {
        "writers_per_second": sum(counts) / seconds, "cpu_us_per_event": 1e6 * spent / sum(counts),
        "alone_ms": 1e3 * statistics.median(alone), "fsync_ms": fsync_ms(path),
    }  # fmt: skip


def fsync_ms(path: Path) -> float:
    seconds = []
    with (path / "fsync").open("wb") as file:
        for _ in range(50):
            file.write(bytes(200))
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - begun)
    (path / "fsync").unlink()
    return 1e3 * statistics.median(seconds)


def batched(path: Path, num_events: int) -> dict[str, float]:
    """Histories of 50 events, as a fill writes them; then the reads, of this store with a long user."""
    store = opened(path, True)
    numbers, each = store.numbers_of([f"i{n}" for n in range(10_000)]), 50
    histories = [(f"u{user}", events(numbers, each, user), None) for user in range(num_events // each)]
    begun, cpu = time.perf_counter(), time.process_time()
    if hasattr(store, "append_all"):
        for start in range(0, len(histories), 500):
            store.append_all(histories[start : start + 500])
    else:
        for user, part, _ in histories:
            store.append(user, part)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    if hasattr(store, "compact"):
        store.compact()
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    store.append("long", events(numbers, 100_000))
    for number in range(300):
        store.append(f"m{number}", events(numbers, 300))
    result = {"batched_per_second": num_events / wall, "batched_cpu_s_per_million": 1e6 * cpu / num_events,
              "bytes_per_event": size / num_events}  # fmt: skip
    for name, users in (("long", ["long"]), ("300", [f"m{user}" for user in range(300)])):
        times = []
        for number in range(3000):
            begun = time.perf_counter()
            store.history(users[number % len(users)], None, 256)
            times.append(1e6 * (time.perf_counter() - begun))
        result |= {f"read_{name}_p50_us": float(np.percentile(times[300:], 50)),
                   f"read_{name}_p99_us": float(np.percentile(times[300:], 99))}  # fmt: skip
    store.close()
    return result


def killed(path: Path, num_events: int) -> None:
    """Events one by one, then kill -9."""
    store = opened(path, False)
    numbers = store.numbers_of([f"i{n}" for n in range(1000)])
    for number in range(num_events):
        store.append(f"u{number * 7919 % 5000}", events(numbers, 1, number))
    os.kill(os.getpid(), signal.SIGKILL)


def reopen(path: Path, num_events: int) -> dict[str, float]:
    import sidera.store.embedded  # noqa: F401  # before the clock starts

    begun, cpu = time.perf_counter(), time.process_time()
    store = opened(path, True)
    count = store.num_users
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    assert count == min(5000, num_events)
    assert sum(len(store.arrivals(user)[1]) for user in store.users()) == num_events
    scale = 1e6 / num_events
    return {"reopen_s_per_million": scale * seconds, "reopen_cpu_s_per_million": scale * cpu, "reopen_s": seconds}


def measured(arm: Path, what: str, path: Path, number: float) -> dict[str, float]:
    """One measure in a process that imports the package of ``arm``."""
    command = [sys.executable, __file__, "--measure", what, "--path", str(path), "--number", str(number)]
    environment = {**os.environ, "PYTHONPATH": str(arm / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if what == "killed":
        assert done.returncode == -signal.SIGKILL, done.stderr
        return {}
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def arm_results(arm: Path, quick: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        result = measured(arm, "writers", place / "w", 2 if quick else 5)
        result |= measured(arm, "batched", place / "b", 2e5 if quick else 1e6)
        number = 10_000 if quick else 50_000
        measured(arm, "killed", place / "k", number)
        return result | measured(arm, "reopen", place / "k", number)


@contextlib.contextmanager
def worktree(ref: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(place), ref], cwd=ROOT, check=True, capture_output=True
        )
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=True)


def main() -> None:
    from harness import arguments, finish

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ref", help="commit whose store is measured in turns with this one")
        parser.add_argument("--measure", choices=["writers", "batched", "killed", "reopen"], help=argparse.SUPPRESS)
        parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
        parser.add_argument("--number", type=float, help=argparse.SUPPRESS)

    options = arguments(__doc__, extend)
    if options.measure:
        measure = {"writers": writers, "batched": batched, "killed": killed, "reopen": reopen}[options.measure]
        number = options.number if options.measure == "writers" else int(options.number)
        print(json.dumps(measure(options.path, number)))
        return
    rounds: dict[str, list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        arms = {"now": ROOT}
        if options.ref:
            arms["before"] = stack.enter_context(worktree(options.ref))
        for _ in range(1 if options.quick else 3):
            for name, arm in arms.items():
                rounds.setdefault(name, []).append(arm_results(arm, options.quick))
    medians = {
        name: {key: statistics.median(one[key] for one in results) for key in results[0]}
        for name, results in rounds.items()
    }
    for key in medians["now"]:
        print(f"{key:28}" + "".join(f"{name:>8} {results[key]:14,.2f}" for name, results in medians.items()))
    now = medians["now"]
    value = {
        "writers_per_second": now["writers_per_second"], "batched_per_second": now["batched_per_second"],
        "read_p99_us": max(now["read_long_p99_us"], now["read_300_p99_us"]),
        "reopen_s_per_million": now["reopen_s_per_million"],
    }  # fmt: skip
    passed = all(value[key] <= bar if key in AT_MOST else value[key] >= bar for key, bar in BARS.items())
    finish("store", value, BARS, passed, {"medians": medians, "ref": options.ref}, quick=options.quick)


if __name__ == "__main__":
    main()
