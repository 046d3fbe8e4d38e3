"""Claim `world`: 100,000 interactions a second on one core, 20 M events in 4 GiB, the same log however users are cut.

    python benchmarks/world.py [--quick]

The `easy` world with a logging policy of 20 candidates, no images; counted is CPU time of the whole of ``simulate``:
world, users, every exposure with its feedback, Parquet and digests. The large log of a full run is written in a process
of its own, whose peak resident memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread, tuned_allocator

SEED = 0
BAR = {"interactions_per_second": 100_000, "large_log_gib": 4.0, "same_files": True}
LARGE = {"users": 200_000, "days": 30, "events": 20_000_000}
CHILD = """
import json, resource, sys, time
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate
counts = simulate(world_config("easy", {"num_candidates": 20}), int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"events": counts["num_events"], "gib": peak, "cpu_seconds": time.process_time()}))
"""


def large_log(folder: Path) -> dict[str, Any]:
    """Events, peak memory and CPU time of the large log."""
    command = [sys.executable, "-c", CHILD, str(LARGE["users"]), str(LARGE["days"]), str(folder / "large")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    import pyarrow

    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate

    pyarrow.set_cpu_count(1)
    config = world_config("easy", {"num_candidates": 20})
    users, days = (8192, 5) if options.quick else (16_384, 10)
    speeds, events = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(3 if options.quick else 5):
            start = time.process_time()
            events = simulate(config, users, days, folder / "log", SEED)["num_events"]
            speeds.append(events / (time.process_time() - start))
        digests = set()
        for block in (2000, 333, 64):
            simulate(config, 2000, 4, folder / "cut", SEED, block=block)
            files = sorted((folder / "cut").glob("*.parquet"))
            digests.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
        large = None if options.quick else large_log(folder)
    value: dict[str, Any] = {
        "interactions_per_second": round(statistics.median(speeds)),
        "same_files": len(digests) == 1,
    }
    passed = value["interactions_per_second"] >= BAR["interactions_per_second"] and value["same_files"]
    if large is not None:
        value["large_log_gib"] = round(large["gib"], 2)
        passed = passed and large["gib"] <= BAR["large_log_gib"] and large["events"] >= LARGE["events"]
    context = {"seed": SEED, "users": users, "days": days, "events": events, "num_candidates": 20}
    details = {"speeds": [round(speed) for speed in speeds], "large log": large}
    finish("world", value, BAR, passed, context, quick=options.quick, details=details)


if __name__ == "__main__":
    main()
