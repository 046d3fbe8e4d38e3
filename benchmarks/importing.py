"""Claim `importing`: 10 million events come in from CSV within 60 s and 2 GiB; hostile files end in one line each.

    python benchmarks/importing.py [--quick]

The script writes its own CSV (text user ids, item ids, unix times, ratings; items are skewed) and imports it in a
process of its own, whose CPU and wall seconds and peak memory are measured, reading, sorting, digests and writing
included. Quick: 300,000 events. The second part makes files that were built to break a reader (deep JSON, a gzip bomb,
10^6 columns, zero bytes, 60 million equal rows in a small Parquet) and imports each in a process of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import arguments, finish

SEED = 0
BAR = {"wall_s": 60.0, "peak_mib": 2048.0, "hostile_peak_mib": 2048.0}
CHILD = """
import json, resource, sys, time
wall = time.perf_counter()
from sidera.core import InputError
from sidera.data.importing import import_log
said = events = None
try:
    events = import_log(sys.argv[1], sys.argv[2]).num_events
except InputError as error:
    said = str(error)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "events": events, "said": said, "wall_s": round(time.perf_counter() - wall, 2),
    "cpu_s": round(used.ru_utime + used.ru_stime, 2),
    "peak_mib": round(used.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024), 1),
}))
"""


def write_log(path: Path, num_events: int) -> None:
    """About 14 events a user, item popularity with a long tail."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv

    rng = np.random.default_rng(SEED)
    schema = pa.schema({"user": pa.string(), "item": pa.int64(), "time": pa.int64(), "rating": pa.int64()})
    with pa_csv.CSVWriter(path, schema) as writer:
        for start in range(0, num_events, 1_000_000):
            size = min(1_000_000, num_events - start)
            users = pa.array(rng.integers(0, max(10, num_events // 14), size)).cast(pa.string())
            writer.write_table(
                pa.table(
                    {
                        "user": pc.binary_join_element_wise(pa.scalar("user-"), users, ""),
                        "item": (rng.pareto(1.2, size) * 50).astype(np.int64) % 100_000,
                        "time": 1_600_000_000 + rng.integers(0, 30_000_000, size),
                        "rating": rng.integers(1, 6, size),
                    }
                )
            )


def deep_json(path: Path, scale: int) -> None:
    path.write_text('{"user": "u", "item": ' + "[" * scale + "]" * scale + ', "time": 1}\n', encoding="utf-8")


def gzip_bomb(path: Path, scale: int) -> None:
    block = b"u,i,1700000000\n" * 70_000
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b"user,item,time\n")
        for _ in range(scale // len(block)):
            file.write(block)


def many_columns(path: Path, scale: int) -> None:
    path.write_text("user,item,time," + ",".join(f"c{place}" for place in range(scale)) + "\n", encoding="utf-8")


def zero_bytes(path: Path, scale: int) -> None:
    path.write_bytes(b"user,item,time\nu,a,1700000000\n" + b"\0" * scale)


def equal_rows(path: Path, scale: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = 1_000_000
    block = pa.table({"user": ["u"] * size, "item": ["i"] * size, "time": [1_700_000_000] * size})
    with pq.ParquetWriter(path, block.schema) as writer:
        for _ in range(scale // size):
            writer.write_table(block)


HOSTILE: dict[str, tuple[Callable[[Path, int], None], str, int, int]] = {  # how, ending, scale, quick scale
    "deep_json": (deep_json, ".jsonl", 100_000, 100_000),
    "gzip_bomb": (gzip_bomb, ".csv.gz", 2 << 30, 300 << 20),
    "many_columns": (many_columns, ".csv", 1_000_000, 1_000_000),
    "zero_bytes": (zero_bytes, ".csv", 1_000_000, 1_000_000),
    "equal_rows": (equal_rows, ".parquet", 60_000_000, 60_000_000),
}


def imported(path: Path, out: Path) -> dict[str, Any]:
    """Import in a process of its own: its figures; ``code`` is not 0 when it died."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), str(out)], capture_output=True, text=True)
    if done.returncode:
        return {"code": done.returncode, "said": done.stderr[-500:], "peak_mib": float("nan")}
    return {"code": 0, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    options = arguments(__doc__)
    num_events = 300_000 if options.quick else 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_log(place / "log.csv", num_events)
        size = (place / "log.csv").stat().st_size
        found = imported(place / "log.csv", place / "out")
        (place / "log.csv").unlink()
        hostile = {}
        for name, (make, ending, scale, quick_scale) in HOSTILE.items():
            path = place / f"{name}{ending}"
            make(path, quick_scale if options.quick else scale)
            hostile[name] = {"bytes": path.stat().st_size, **imported(path, place / "never")}
            hostile[name]["said"] = hostile[name]["said"].replace(f"{place}{os.sep}", "")
            hostile[name]["one_line"] = bool(hostile[name]["said"]) and "\n" not in hostile[name]["said"].strip()
            path.unlink()
    refused = all(
        one["code"] == 0 and one["one_line"] and one["peak_mib"] <= BAR["peak_mib"] for one in hostile.values()
    )
    value = {
        **{name: found.get(name) for name in ("events", "wall_s", "cpu_s", "peak_mib")},
        "hostile_refused": sum(one["code"] == 0 and one["one_line"] for one in hostile.values()),
        "hostile_peak_mib": max(one["peak_mib"] for one in hostile.values()),
    }
    in_time = found["code"] == 0 and found["wall_s"] <= BAR["wall_s"] and found["peak_mib"] <= BAR["peak_mib"]
    passed = in_time and found["events"] == num_events and refused
    context = {"seed": SEED, "events": num_events, "csv_bytes": size}
    finish("importing", value, BAR, passed, context, quick=options.quick, details={"log": found, "hostile": hostile})


if __name__ == "__main__":
    main()
