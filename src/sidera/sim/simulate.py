"""``simulate``: let users live in a world under its logging policy and write what the platform would have logged.

The folder is a data set in the canonical schema (``sidera run`` trains on it as it is): ``events.parquet`` holds every
exposure, also those without a click, with its feedback, propensity and slot; ``items.parquet`` what the platform sees
of its items, cold ones included; ``users.parquet`` the profiles; ``searches.parquet`` (user, time, query), beside the
data set proper, what users typed. Nothing of the truth (satisfaction, utility, taste,
quality, clickbait) is written.

Users do not know each other, so blocks of them are played one after the other and handed to the writer of data sets.
The files are the same whatever the block, and memory holds one block.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidera.console import Progress
from sidera.core import InputError
from sidera.data.writer import ROW_GROUP, dataset_writer
from sidera.sim.config import WorldConfig
from sidera.sim.day import Choose, Exposures, run_day
from sidera.sim.logging_policy import Logger, Slate
from sidera.sim.randomness import Bits
from sidera.sim.searches import SearchLog, searches_table
from sidera.sim.users import Rows, Users
from sidera.sim.world import World, user_keys

BLOCK = 8192  # users played side by side; bounds memory, not results
MAX_USERS, MAX_DAYS = 10**8, 10_000
SIGNALS = ("click", "like", "follow", "comment", "forward", "dislike")
FEEDBACK: dict[str, pa.DataType] = {
    **dict.fromkeys(SIGNALS, pa.bool_()),
    "watch_time": pa.float32(),  # seconds
    "duration": pa.float32(),  # seconds
    "propensity": pa.float32(),
    "uniform": pa.bool_(),  # of the slice that is drawn uniformly
    "request": pa.int32(),  # unique inside a user
    "slot": pa.int16(),  # position in the slate
}


def simulate(
    config: WorldConfig, users: int, days: int, out: str | Path, seed: int = 0, block: int = BLOCK
) -> dict[str, int]:
    """Write the log of ``users`` users over ``days`` days to the folder ``out``; returns the counts."""
    _check(users, days, block)
    world = World.build(config, seed)
    recipe = {"world": asdict(config), "seed": seed, "days": days}
    searches = []  # a table per block
    with (
        dataset_writer(out, f"world-{world.digest}", world.items_table(days), FEEDBACK, recipe=recipe) as writer,
        Progress("simulate", users * days, unit="user-day") as progress,
    ):
        for start in range(0, users, block):
            ids = np.arange(start, min(start + block, users))
            played, recorder = play_log(world, ids, days, progress=progress)
            columns = recorder.columns()
            writer.write(world.users_table(played), recorder.count, columns["item"], columns["time"], columns)
            _, times, codes = recorder.searches.of(np.arange(len(ids)))
            rows = np.repeat(np.arange(len(ids)), recorder.searches.counts)
            searches.append(searches_table(user_keys(ids), rows, times, codes, config))
        table = pa.concat_tables(searches).combine_chunks()
        pq.write_table(table, writer.folder / "searches.parquet", compression="zstd", row_group_size=ROW_GROUP)
        writer.info["num_searches"] = table.num_rows
    counts = {"num_users": users, "num_items": config.num_items, "num_events": writer.num_events}
    return {**counts, "num_searches": table.num_rows}


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
        for name, kind in {"item": pa.int32(), "time": pa.int64(), **FEEDBACK}.items():
            result[name] = np.empty(int(offsets[-1]), dtype=kind.to_pandas_dtype())
        for rows, positions, columns in self.parts:
            where = offsets[rows] + positions
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


def _check(users: int, days: int, block: int) -> None:
    for name, value, high in (("users", users, MAX_USERS), ("days", days, MAX_DAYS), ("block", block, MAX_USERS)):
        if not isinstance(value, int) or not 1 <= value <= high:
            raise InputError(f"{name} = {value!r} is out of range", allowed=f"whole numbers from 1 to {high}")
