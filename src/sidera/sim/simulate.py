"""``simulate``: let users live in a world under its logging policy and write what the platform would have logged.

The folder is a data set in the canonical schema (``sidera run`` trains on it as it is): ``events.parquet`` holds every
exposure, also those without a click, with its feedback, propensity and place; ``items.parquet`` what the platform sees
of its items, cold ones included; ``users.parquet`` the profiles; ``searches.parquet`` (user, time, query), beside the
data set proper, what users typed. Nothing of the truth (satisfaction, utility, taste,
quality, clickbait) is written.

Users do not know each other, so blocks of them are played one after the other and streamed out in row groups of fixed
size: the files are the same whatever the block, and memory holds one block.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidera import artifacts
from sidera.console import Progress
from sidera.core import InputError
from sidera.sim.config import WorldConfig
from sidera.sim.day import Choose, Exposures, run_day
from sidera.sim.logging_policy import Logger, Slate
from sidera.sim.randomness import Bits
from sidera.sim.searches import SearchLog, searches_table
from sidera.sim.users import Rows, Users
from sidera.sim.world import World, user_keys

BLOCK = 8192  # users played side by side; bounds memory, not results
ROW_GROUP = 1 << 19  # events
MAX_USERS, MAX_DAYS = 10**8, 10_000
SIGNALS = ("click", "like", "follow", "comment", "forward", "dislike")
FEEDBACK: dict[str, pa.DataType] = {
    **dict.fromkeys(SIGNALS, pa.bool_()),
    "watch_time": pa.float32(),  # seconds
    "duration": pa.float32(),  # seconds
    "propensity": pa.float32(),
    "uniform": pa.bool_(),  # of the slice that is drawn uniformly
    "request": pa.int32(),  # unique inside a user
    "slot": pa.int16(),  # place in the slate
}
SCHEMA = pa.schema([("user", pa.string()), ("item", pa.string()), ("time", pa.int64()), *FEEDBACK.items()])


def simulate(
    config: WorldConfig, users: int, days: int, out: str | Path, seed: int = 0, block: int = BLOCK
) -> dict[str, int]:
    """Write the log of ``users`` users over ``days`` days to the folder ``out``; returns the counts."""
    _check(users, days, block)
    artifacts.check_replaceable(out)
    world = World.build(config, seed)
    written = _Written()
    out = Path(out)
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    # the manifest wants a digest of what is written, so the files are written beside the artifact first
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.log-", dir=out.resolve().parent) as scratch:
        events = pq.ParquetWriter(f"{scratch}/events.parquet", SCHEMA, compression="zstd", compression_level=1)
        with events as writer, Progress("simulate", users * days, unit="user-day") as progress:
            item_keys = pa.array(world.item_keys())
            for chunk in _row_groups(_blocks(world, users, days, block, written, progress), item_keys):
                writer.write_table(chunk, row_group_size=ROW_GROUP)
        items = world.items_table(days)
        pq.write_table(items, f"{scratch}/items.parquet", compression="zstd")
        profiles = pa.concat_tables(written.profiles).combine_chunks()
        pq.write_table(profiles, f"{scratch}/users.parquet", compression="zstd")
        rows, times, codes = (np.concatenate(parts) for parts in zip(*written.searches, strict=True))
        table = searches_table(profiles["key"], rows, times, codes, config)
        pq.write_table(table, f"{scratch}/searches.parquet", compression="zstd", row_group_size=ROW_GROUP)
        counts = {"num_users": users, "num_items": config.num_items, "num_events": written.num_events}
        counts["num_searches"] = table.num_rows
        manifest = artifacts.Manifest(
            kind="dataset",
            digest=written.digest(Path(scratch) / "events.parquet", items, profiles),
            recipe={"world": asdict(config), "seed": seed, "days": days},
            info={"name": f"world-{world.digest}", "time_kind": "seconds", "notes": {}, **counts},
        )
        with artifacts.writing(out, manifest) as folder:
            for file in sorted(Path(scratch).iterdir()):
                os.replace(file, folder / file.name)
    return counts


class Recorder:
    """Collects the exposures of a block, step by step, and lays them out by user."""

    def __init__(self, world: World, users: Users) -> None:
        self.world, self.users = world, users
        self.count = np.zeros(users.num_users, dtype=np.int64)
        self.searches = SearchLog(users.num_users)
        self.parts: list[tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray]]] = []

    def __call__(self, seen: Exposures) -> None:
        number = len(seen.rows)
        columns: dict[str, NDArray] = {name: getattr(seen.feedback, name) for name in SIGNALS}
        columns |= {
            "item": seen.item_ids,
            "time": seen.times,
            "watch_time": seen.feedback.watch_time,
            "duration": self.world.items.duration[seen.item_ids],
            "propensity": seen.propensity,
            "uniform": seen.uniform_mask,
            "request": np.full(number, seen.day * 1000 + seen.request, dtype=np.int32),
            "slot": np.full(number, seen.slot, dtype=np.int16),
        }
        self.parts.append((seen.rows, self.count[seen.rows], columns))
        self.count[seen.rows] += 1

    def columns(self) -> dict[str, NDArray]:
        """Every column by user and, inside a user, in order; ``row`` is the user's row."""
        offsets = np.concatenate([[0], np.cumsum(self.count)])
        result: dict[str, NDArray] = {"row": np.repeat(np.arange(len(self.count)), self.count)}
        if not self.parts:
            return result
        for name, first in self.parts[0][2].items():
            result[name] = np.empty(int(offsets[-1]), dtype=first.dtype)
        for rows, places, columns in self.parts:
            where = offsets[rows] + places
            for name, values in columns.items():
                result[name][where] = values
        self.parts.clear()
        return result


def play_log(
    world: World, ids: NDArray[np.integer], days: int, noise: int = 0, progress: Progress | None = None
) -> tuple[Users, Recorder]:
    """Users as the log leaves them after ``days`` days, and what they were shown."""
    users = world.users(ids)
    recorder = Recorder(world, users)
    for day in range(days):
        run_day(world, users, day, noise, logger_choice(world, users, day), recorder, recorder.searches)
        if progress is not None:
            progress.advance(len(ids))
    return users, recorder


def logger_choice(world: World, users: Users, day: int) -> Choose:
    """The logging policy as one day's answer to requests."""
    logger = Logger(world, day)

    def choose(rows: Rows, request_keys: Bits, times: NDArray[np.int64]) -> Slate:
        return logger.slate(users, rows, request_keys)

    return choose


class _Written:
    """What the manifest's digest needs of the events that went by."""

    def __init__(self) -> None:
        self.num_events = 0
        self.counts: list[NDArray[np.int64]] = []
        self.item_ids: list[NDArray[np.int32]] = []  # 4 bytes per event, the one thing that is kept
        self.profiles: list[pa.Table] = []
        self.searches: list[tuple[Rows, NDArray[np.int64], NDArray[np.int32]]] = []  # rows, times, codes

    def digest(self, events: Path, items: pa.Table, profiles: pa.Table) -> str:
        """The digest that ``Dataset.load`` will compute, from the written columns one row group at a time."""
        sha = hashlib.sha256(b"seconds")
        counts = np.concatenate([[0], *self.counts])
        sha.update(np.cumsum(counts).astype("<i8").tobytes())
        for part in self.item_ids:
            sha.update(part.astype("<i8").tobytes())
        with pq.ParquetFile(events) as file:
            for part in _column(file, "time"):
                sha.update(part.astype("<i8").tobytes())
            _hash_values(sha, profiles["key"].combine_chunks())
            for name in sorted(FEEDBACK):
                sha.update(name.encode())
                sha.update(bytes((self.num_events + 7) // 8))  # the null bits: none is
                sha.update(str(FEEDBACK[name]).encode())
                for part in _column(file, name):
                    sha.update(part.tobytes())
        for table in (items, profiles):
            for name in table.column_names:
                sha.update(name.encode())
                _hash_values(sha, table[name].combine_chunks())
        return sha.hexdigest()[:16]


def _blocks(
    world: World, users: int, days: int, block: int, written: _Written, progress: Progress
) -> Iterator[dict[str, NDArray]]:
    for start in range(0, users, block):
        ids = np.arange(start, min(start + block, users))
        played, recorder = play_log(world, ids, days, progress=progress)
        columns = recorder.columns()
        columns["row"] = columns["row"] + start
        written.counts.append(recorder.count)
        written.item_ids.append(columns["item"])
        written.num_events += len(columns["item"])
        written.profiles.append(world.users_table(played))
        _, times, codes = recorder.searches.of(np.arange(len(ids)))
        written.searches.append((np.repeat(ids, recorder.searches.counts), times, codes))
        yield columns


def _row_groups(blocks: Iterator[dict[str, NDArray]], item_keys: pa.Array) -> Iterator[pa.Table]:
    """Tables of exactly ``ROW_GROUP`` events, but the last, however the blocks came."""
    waiting: list[dict[str, NDArray]] = []
    number = 0
    for columns in blocks:
        waiting.append(columns)
        number += len(columns["row"])
        if number < ROW_GROUP:
            continue
        merged = {name: np.concatenate([part[name] for part in waiting]) for name in columns}
        for start in range(0, number - ROW_GROUP + 1, ROW_GROUP):
            yield _table({name: values[start : start + ROW_GROUP] for name, values in merged.items()}, item_keys)
        rest = number // ROW_GROUP * ROW_GROUP
        waiting, number = [{name: values[rest:].copy() for name, values in merged.items()}], number - rest
    if number:
        yield _table({name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}, item_keys)


def _table(columns: dict[str, NDArray], item_keys: pa.Array) -> pa.Table:
    first, last = int(columns["row"][0]), int(columns["row"][-1])
    names = pa.array(user_keys(np.arange(first, last + 1)))
    arrays = {
        "user": names.take(pa.array(columns["row"] - first)),
        "item": item_keys.take(pa.array(columns["item"])),
        "time": pa.array(columns["time"]),
        **{name: pa.array(columns[name]) for name in FEEDBACK},
    }
    return pa.table(arrays, schema=SCHEMA)


def _column(file: pq.ParquetFile, name: str) -> Iterator[NDArray]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=[name])[name].combine_chunks().to_numpy(zero_copy_only=False)


def _hash_values(sha: Any, array: pa.Array) -> None:
    """Nulls, lengths and values of one column, as a data set's digest counts them."""
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    sha.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(array.type):
        sha.update(b"list")
        sha.update(np.diff(array.offsets.to_numpy()).astype("<i8").tobytes())
        _hash_values(sha, array.flatten())
    elif pa.types.is_string(array.type):
        texts = array.fill_null("").to_pylist()
        sha.update(b"text")
        sha.update(np.array([len(text.encode()) for text in texts], dtype="<i8").tobytes())
        sha.update("".join(texts).encode())
    else:
        sha.update(str(array.type).encode())
        sha.update(np.ascontiguousarray(array.drop_null().to_numpy(zero_copy_only=False)).tobytes())


def _check(users: int, days: int, block: int) -> None:
    for name, value, high in (("users", users, MAX_USERS), ("days", days, MAX_DAYS), ("block", block, MAX_USERS)):
        if not isinstance(value, int) or not 1 <= value <= high:
            raise InputError(f"{name} = {value!r} is out of range", allowed=f"whole numbers from 1 to {high}")
