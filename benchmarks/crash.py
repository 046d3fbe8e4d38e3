"""Claim `crash`: kill -9 at random moments loses and doubles nothing that was acknowledged, and damage is noticed.

    python benchmarks/crash.py [--quick] [--kills N]

A process of three writers appends events to a store and exposures to a log, and prints what was acknowledged. It is
killed after 0 to 0.5 seconds, 300 times (``--quick``: 8), in folders that go on after every tenth kill with an empty
one. After a kill every acknowledged write must be there once. Then copies of the folder are damaged: a bit flipped, a
page zeroed, a tail cut off, a file removed. A copy must be refused, or hold everything that was acknowledged.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from harness import arguments, finish, said

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "store"))
crash = importlib.import_module("crashing").crash

DAMAGES = 5  # copies of what each kill left


def main() -> None:
    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kills", type=int, default=300)

    options = arguments(__doc__, extend)
    kills = 8 if options.quick else options.kills
    rng, outcomes, lost, acknowledged = random.Random(0), Counter[str](), list[str](), 0
    done = 0

    def so_far() -> str:
        return f"{done} of {kills} kills, {sum(outcomes.values())} copies damaged, {len(lost)} wrong"

    with said(so_far):
        for start in range(0, kills, 10):
            with tempfile.TemporaryDirectory() as folder:
                for number in range(start, min(kills, start + 10)):
                    wrong, damaged = crash(Path(folder), number, rng.random() * 0.5, DAMAGES)
                    found = [f"kill {number}: {wrong}"] if wrong else []
                    found += [
                        f"damage after kill {number}: {one}" for one in damaged if one not in ("whole", "refused")
                    ]
                    for line in found:
                        print(line, flush=True)
                    lost += found
                    outcomes.update(one if one in ("whole", "refused") else "lost in silence" for one in damaged)
                    done += 1
                acknowledged += (Path(folder) / "acknowledged").read_text(encoding="utf-8").count("\n")
    value = {
        "lost_or_doubled": len(lost),
        "kills": kills,
        "acknowledged_writes": acknowledged,
        "damaged": dict(outcomes),
    }
    bar = {"lost_or_doubled": 0, "kills": 300}
    finish("crash", value, bar, not lost and kills >= 300, {"damages": DAMAGES}, quick=options.quick)


if __name__ == "__main__":
    main()
