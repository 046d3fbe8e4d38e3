"""Criteo and Avazu: impressions with a click or none, for rankers. They are read as rows, not converted to a log.

Neither set has a user or an item. Criteo's columns have no names at all; Avazu names a device, a site and an advert's
position, but most rows share one device, so a device is no user and its rows are no history. A data folder is a log of
users who meet items, so ``sidera convert`` refuses both and says so. ``impressions`` gives the rows block by block:

* criteo (``train.txt``, tab, no header): ``label``, ``I1..I13`` (whole numbers), ``C1..C26`` (hashes), null if empty;
* avazu (``train.csv``): ``label``, ``time`` (unix seconds, from ``hour`` = YYMMDDHH), all other columns as texts.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.raw.conversion import Conversion, RawFormat
from sidera.data.raw.files import RawFiles
from sidera.data.raw.lines import Tally, numbers, rows

CRITEO_NUMBERS = tuple(f"I{n}" for n in range(1, 14))
CRITEO_HASHES = tuple(f"C{n}" for n in range(1, 27))
AVAZU = (
    *("id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain"),
    *("app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{n}" for n in range(14, 22)),
)


def impressions(name: str, path: str | Path, max_bad: float = 0.01) -> Iterator[pa.RecordBatch]:
    """Blocks of rows of ``criteo`` or ``avazu``; more than ``max_bad`` rows that cannot be understood are refused."""
    if name not in ("criteo", "avazu"):
        raise InputError(f"{name!r} is no set of impressions", allowed="criteo, avazu")
    file = RawFiles([path]).one("training file", "train.*" if Path(path).is_dir() else "*")
    tally = Tally(file.label, max_bad)
    if name == "avazu":
        for first, block in rows(file, tally, AVAZU):
            yield _avazu(block, first, tally)
    else:
        columns = ("label", *CRITEO_NUMBERS, *CRITEO_HASHES)
        for first, block in rows(file, tally, columns, columns, delimiter="\t"):
            yield _criteo(block, first, tally)
    tally.check()


def _criteo(block: dict[str, pa.StringArray], first: int, tally: Tally) -> pa.RecordBatch:
    label, good = _label(block["label"])
    columns: dict[str, pa.Array] = {"label": label}
    for name in CRITEO_NUMBERS:
        values, is_number = numbers(block[name])
        empty = pc.equal(block[name], "").to_numpy(zero_copy_only=False)
        good &= is_number | empty
        columns[name] = pa.array(np.where(is_number, values, 0).astype(np.int64), mask=~is_number)
    for name in CRITEO_HASHES:
        columns[name] = _texts(block[name])
    return _kept(columns, good, first, tally)


def _avazu(block: dict[str, pa.StringArray], first: int, tally: Tally) -> pa.RecordBatch:
    label, good = _label(block["click"])
    seconds = _hours(block["hour"])
    good &= seconds >= 0
    others = {name: _texts(block[name]) for name in AVAZU if name not in ("click", "hour")}
    return _kept({"label": label, "time": pa.array(seconds), **others}, good, first, tally)


def _label(column: pa.StringArray) -> tuple[pa.Array, np.ndarray]:
    good = pc.is_in(column, pa.array(["0", "1"])).to_numpy(zero_copy_only=False)
    return pc.equal(column, "1"), good.copy()


def _hours(column: pa.StringArray) -> np.ndarray:
    """(n,) int64 unix seconds of YYMMDDHH, taken as UTC; -1 for what is no such hour. A file has few distinct hours."""
    encoded = column.dictionary_encode()
    seconds = []
    for text in encoded.dictionary.to_pylist():
        try:
            seconds.append(int(datetime.datetime.strptime(text + "+0000", "%y%m%d%H%z").timestamp()))
        except ValueError:
            seconds.append(-1)
    return np.asarray(seconds, dtype=np.int64)[encoded.indices.to_numpy()]


def _texts(column: pa.StringArray) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def _kept(columns: dict[str, pa.Array], good: np.ndarray, first: int, tally: Tally) -> pa.RecordBatch:
    tally.leave_out_of_block(first, good, "a label, an hour or a number cannot be read")
    return pa.RecordBatch.from_pydict(columns).filter(pa.array(good))


def refuse(work: Conversion) -> Dataset:
    raise InputError(
        f"{work.name} holds impressions without a user and an item, so no history and no list can be made of it",
        allowed="sets with users and items",
        fix="read its rows in Python: `from sidera.data.raw.ctr import impressions`",
    )


FORMATS = {
    "criteo": RawFormat("Criteo display advertising (rows for rankers, not converted)", "train.txt", refuse),
    "avazu": RawFormat("Avazu click-through rate (rows for rankers, not converted)", "train.gz", refuse),
}
