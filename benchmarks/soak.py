"""Claim `soak`: half an hour at 70 % load leaves the memory where it was, and the files stay few.

    python benchmarks/soak.py [--quick] [--minutes M] [--rate R] [--runs FOLDER]

Users ask and a fifth of the requests are events, with the behaviour store and the exposure log on. Resident memory is
read every second; its growth is the median of the last tenth over the median of the second tenth (the first tenth
warms caches). Files are those of the store and the log: their number must stop to grow (the most in the last third
against the most in the middle third), and their bytes for every event and exposure kept are reported.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

from harness import arguments, finish
from overload import Loaded
from servers import served, users_of

SLO, LOAD, EVENTS_SHARE = 0.1, 0.7, 0.2
MINUTES, QUICK_MINUTES, QUICK_RATE = 30.0, 0.5, 20.0
MORE_FILES = 8  # than in the middle third that the last may have: some are being written, some not yet removed
BAR = {"memory_growth": 0.02, "more_files": MORE_FILES, "failed": 0}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, help=f"length (else {MINUTES:g}, {QUICK_MINUTES:g} with --quick)")
    parser.add_argument(
        "--rate", type=float, help=f"requests/s (else 70 %% of the highest within 100 ms; {QUICK_RATE:g} with --quick)"
    )
    parser.add_argument("--runs", help="folder that keeps the run folder; no result is kept")


class Watch:
    """Memory and files of a server, a reading a second."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server, self.folders = server, (folder / "store", folder / "exposures")
        self.memory: list[int] = []
        self.files: list[int] = []
        self.num_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            self.memory.append(self.server.rss)
            sizes = []
            for path in [path for folder in self.folders for path in folder.rglob("*")]:
                with contextlib.suppress(OSError):  # removed meanwhile
                    if path.is_file():
                        sizes.append(path.stat().st_size)
            self.files.append(len(sizes))
            self.num_bytes = sum(sizes)

    def part(self, values: list[int], first: float, last: float) -> list[int]:
        """The readings between two shares of the time, at least one."""
        begin = min(int(first * len(values)), len(values) - 1)
        return values[begin : max(begin + 1, int(last * len(values)))]


def main() -> None:
    options = arguments(__doc__, flags)
    minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)
    with contextlib.ExitStack() as stack:
        runs = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        folder = runs / "demo_onerec_v2-soak"
        server = stack.enter_context(served("demo_onerec_v2", folder))
        loaded = Loaded(server, folder)
        loaded.requests = users_of(folder, events_share=EVENTS_SHARE)(server.address)
        rate = options.rate or (QUICK_RATE if options.quick else LOAD * loaded.highest_rate(4.0))
        print(f"{rate:.1f} requests/s for {minutes:g} minutes", flush=True)
        with Watch(server, folder) as watch:
            tally = loaded.window(rate, 60 * minutes)
    kept = sum(len(kind.successes) for kind in tally.kinds.values())
    begin, end = watch.part(watch.memory, 0.1, 0.2), watch.part(watch.memory, 0.9, 1.0)
    value = {
        "memory_growth": round(statistics.median(end) / statistics.median(begin) - 1, 4),
        "more_files": max(watch.part(watch.files, 2 / 3, 1.0)) - max(watch.part(watch.files, 1 / 3, 2 / 3)),
        "failed": sum(kind.num_requests for kind in tally.kinds.values()) - kept,
    }
    passed = all(value[name] <= bar for name, bar in BAR.items())
    context = {
        "minutes": minutes, "rate": round(rate, 1), "requests": kept, "files": watch.files[-1],
        "megabytes": round(watch.num_bytes / 2**20, 1),
        "memory_mb": [round(one / 2**20) for one in (begin[0], end[-1])],
        "load": tally.as_dict(SLO)["kinds"],
    }  # fmt: skip
    finish("soak", value, BAR, passed, context, options.quick or bool(options.runs or options.minutes))


if __name__ == "__main__":
    main()
