"""Files that were made to break a reader, or broke by themselves: one line each, little memory, no crash.

Each import runs in a process of its own, so that a crash is seen and its peak of memory can be read.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PEAK_MIB = 2048
IMPORT = """
import resource, sys
from hand_made import read_log
from sidera.core import InputError
from sidera.data.importing import import_log
code = 0
try:
    import_log(sys.argv[1], sys.argv[2], *sys.argv[3:4])
except InputError as error:
    print(error)
    code = 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024) // 1)
sys.exit(code)
"""


def imported(path: Path, out: Path, *more: Path) -> tuple[int, str, int]:
    """-> (exit code, what was said, peak MiB)."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(path), str(out), *map(str, more)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 2), done.stderr[-2000:]
    *words, peak = done.stdout.splitlines()
    return done.returncode, "\n".join(words), int(peak)


def refused(path: Path, out: Path, words: str, *more: Path) -> None:
    code, said, peak = imported(path, out, *more)
    assert code == 2, said
    assert words in said
    assert said.count("\n") == 0
    assert len(said) < 1500
    assert peak < PEAK_MIB
    assert not out.exists()


def deep_list(path: Path) -> None:
    path.write_text('{"user": "u", "item": ' + "[" * 100_000 + "]" * 100_000 + ', "time": 1}\n')


def deep_object(path: Path) -> None:
    path.write_text('{"user": "u", "item": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + ', "time": 1}\n')


def deep_array(path: Path) -> None:
    path.write_text('[{"user": "u", "item": ' + "[" * 100_000 + "]" * 100_000 + "}]")


def deep_literal(path: Path) -> None:
    path.write_text("{'user': " + "(" * 100_000 + ")" * 100_000 + "}\n")


def million_columns(path: Path) -> None:
    names = ",".join(f"c{place}" for place in range(1_000_000))
    path.write_text(f"user,item,time,{names}\n")


def million_keys(path: Path) -> None:
    path.write_text(json.dumps({"user": "u", "item": "i", "time": 1, **{f"c{n}": 1 for n in range(100_000)}}) + "\n")


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"user,item,time\nu,a,1700000000\nu,\0b,1700000000\n")


def binary(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8).tobytes())


def cut_gzip(path: Path) -> None:
    whole = gzip.compress(b"user,item,time\n" + b"".join(b"u,%d,1700000000\n" % n for n in range(50_000)))
    path.write_bytes(whole[: len(whole) // 2])


def no_gzip(path: Path) -> None:
    path.write_bytes(b"user,item,time\nu,a,1\n")


def cut_parquet(path: Path) -> None:
    pq.write_table(pa.table({"user": ["u"] * 1000, "item": ["i"] * 1000, "time": range(1000)}), path)
    path.write_bytes(path.read_bytes()[:-100])


def edited_parquet(path: Path) -> None:
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"user": ["u"] * 1000, "item": rng.random(1000).astype(str), "time": range(1000)}), path)
    content = bytearray(path.read_bytes())
    for place in rng.integers(4, len(content) - 1000, 300).tolist():
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def open_quote(path: Path) -> None:
    path.write_text('user,item,time\n"u,a,1700000000\n' + "u,b,1700000000,5\n" * 1000)


def long_line(path: Path) -> None:
    path.write_text("user,item,time\n" + "u" * 40_000_000 + ",a,1\n")


def long_key(path: Path) -> None:
    path.write_text(
        "user,item,time\n" + "".join(f"u{n},i{n},1700000000\n" for n in range(500)) + "u" * 30_000 + ",a,1700000000\n"
    )


def half_a_character(path: Path) -> None:
    path.write_text('{"user": "u", "item": "\\ud83c", "time": 1700000000}\n')


def fifo(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def equal_rows(path: Path) -> None:
    rows = 60_000_000
    with pq.ParquetWriter(path, pa.schema({"user": pa.string(), "item": pa.string(), "time": pa.int64()})) as writer:
        block = pa.table({"user": ["u"] * 1_000_000, "item": ["i"] * 1_000_000, "time": [1_700_000_000] * 1_000_000})
        for _ in range(rows // 1_000_000):
            writer.write_table(block)


def bomb(path: Path, size: int = 400 << 20) -> None:
    block = b"u,i,1700000000\n" * 70_000
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b"user,item,time\n")
        for _ in range(size // len(block)):
            file.write(block)


Maker = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("make", "ending", "words"),
    [
        (deep_list, ".jsonl", "nests deeper"),
        (deep_object, ".jsonl", "nests deeper"),
        (deep_array, ".json", "nests deeper"),
        (deep_literal, ".jsonl", "nests deeper"),
        (million_columns, ".csv", "over 10,000 columns"),
        (million_keys, ".jsonl", "100,003 columns"),
        (zero_bytes, ".csv", "line 3"),
        (binary, ".csv", "cannot read"),
        (cut_gzip, ".csv.gz", "cannot read"),
        (no_gzip, ".csv.gz", "cannot read"),
        (cut_parquet, ".parquet", "cannot read"),
        (edited_parquet, ".parquet", "cannot read"),
        (open_quote, ".csv", "line 2"),
        (long_line, ".csv", "line of over 32 MiB"),
        (long_key, ".csv", "30,000 bytes long"),
        (half_a_character, ".jsonl", "half a character"),
        (fifo, ".csv", "no plain file"),
        (loop, ".csv", "leads nowhere or in a circle"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_small_ones(tmp_path: Path, make: Maker, ending: str, words: str) -> None:
    """In this process: what crashes it fails the whole run, which is as loud as it should be."""
    from sidera.core import InputError
    from sidera.data.importing import import_log

    path = tmp_path / f"log{ending}"
    make(path)
    with pytest.raises(InputError) as caught:
        import_log(path, tmp_path / "out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("make", "ending"), [(equal_rows, ".parquet"), (bomb, ".csv.gz")])
def test_small_files_that_swell(tmp_path: Path, make: Maker, ending: str) -> None:
    path = tmp_path / f"log{ending}"
    make(path)
    refused(path, tmp_path / "out", "swells to")


def test_a_folder_that_holds_itself(tmp_path: Path) -> None:
    from sidera.data.importing import read_log

    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    (folder / "day.csv").write_text("user,item,time\nu,a,1700000000\n")
    assert read_log(folder, "x")[0].num_events == 1


def test_text_that_is_repeated_is_held_once(tmp_path: Path) -> None:
    """A megabyte of text, repeated by a dictionary of Parquet: 10 GB as plain text."""
    from sidera.core import InputError
    from sidera.data.importing import import_log

    log = tmp_path / "log.csv"
    log.write_text("user,item,time\nu,0,1700000000\n")
    indices = pa.array(np.zeros(10_000, dtype=np.int32))
    titles = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 1_000_000]))
    pq.write_table(
        pa.table({"item": pa.array(range(10_000)).cast(pa.string()), "title": titles}), tmp_path / "items.parquet"
    )
    with pytest.raises(InputError, match=r"items\.parquet .* swells to .* bytes of text in column 'title'"):
        import_log(log, tmp_path / "out", tmp_path / "items.parquet")


def test_a_budget_can_be_raised(tmp_path: Path) -> None:
    from sidera.core import InputError
    from sidera.data.importing import ImportMapping, read_log

    path = tmp_path / "log.csv.gz"
    bomb(path, 3 << 20)
    assert read_log(path, "x")[0].num_events > 100_000
    with pytest.raises(InputError, match=r"swells to .*--max-bytes"):
        read_log(path, "x", mapping=ImportMapping(max_bytes=1 << 20))
