"""Taobao UserBehavior: ``UserBehavior.csv`` without a header, user, item, category, behaviour, unix seconds.

The behaviour becomes four marks: ``pv`` (a page view), ``fav``, ``cart``, ``buy``. ``[data] positive = "buy"`` asks for
purchases. The category is kept as the item's ``tags``: a number says nothing to a text encoder.

The publisher names the period, 25 November to 3 December 2017 in China. Rows outside of it (the file has some with a
time of a few seconds, or of 2037) are left out and counted (``events_out_of_period``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.data.dataset import Dataset
from sidera.data.raw.conversion import Conversion, Options, RawFormat, item_table
from sidera.data.raw.events import EventLog
from sidera.data.raw.lines import filled, numbers, rows

COLUMNS = ("user", "item", "category", "behaviour", "time")
BEHAVIOURS = ("pv", "fav", "cart", "buy")
FIRST, LAST = 1_511_539_200, 1_512_316_800  # 2017-11-25 and 2017-12-04, 00:00 in China


def read(work: Conversion) -> Dataset:
    file = work.files.one("log", "*UserBehavior*.csv")
    log, tally = EventLog(*BEHAVIOURS), work.tally(file)
    categories: dict[str, str] = {}
    for first, block in rows(file, tally, COLUMNS, COLUMNS):
        users, items, behaviour = block["user"], block["item"], block["behaviour"]
        times, good = numbers(block["time"])
        good &= filled(users) & filled(items) & pc.is_in(behaviour, pa.array(BEHAVIOURS)).to_numpy(zero_copy_only=False)
        tally.leave_out_of_block(first, good, "no user, item, time, or none of pv, fav, cart, buy")
        outside = good & ((times < FIRST) | (times >= LAST))
        work.count("events_out_of_period", int(outside.sum()))
        usable = good & ~outside
        marks = {name: pc.equal(behaviour, name).to_numpy(zero_copy_only=False) for name in BEHAVIOURS}
        log.add_block(
            users, items, usable, time=times, **{name: mark.astype(np.float64) for name, mark in marks.items()}
        )
        _remember(categories, items, block["category"])
    tally.check()
    events = work.thinned(log.finish(dict.fromkeys(BEHAVIOURS, bool)))
    described: list[dict[str, Any]] = [{"key": item, "tags": categories[item]} for item in sorted(events.items())]
    return work.dataset(events, item_table(described, {"key": pa.string(), "tags": pa.string()}))


def _remember(categories: dict[str, str], items: pa.Array, named: pa.Array) -> None:
    """The first category of each item; each pair of a block is looked at once."""
    pairs = pa.table({"item": items, "category": named}).group_by(["item", "category"], use_threads=False).aggregate([])
    for item, category in zip(pairs["item"].to_pylist(), pairs["category"].to_pylist(), strict=True):
        categories.setdefault(item, category)


FORMATS = {"taobao": RawFormat("Taobao UserBehavior", "UserBehavior.csv, or the zip with it", read, Options())}
