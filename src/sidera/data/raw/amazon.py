"""Amazon reviews as UCSD publishes them: 2014 (loose JSON, ratings CSV), 2018 (JSON), 2023 (JSON Lines, CSV).

Read of a review: user, item, rating, time. The review text is never kept. Read of the metadata: title, brand (2023:
store), categories, description, price. Never read, because they were counted over the whole period, test part included:
``salesRank``, ``related``, ``also_buy``, ``average_rating``, ``rating_number``.

* 2014: ``categories`` is a list of paths; their roots are dropped and the names put in one list. ``rare = 5`` leaves
  out brands and category names of fewer than 5 items, as S3-Rec does, whose attributes the README's tables read.
* 2018: titles and descriptions hold HTML; a title that is a page's script counts as missing.
* 2023: an item is a ``parent_asin`` (colours and sizes are one item), times are milliseconds.

Defaults give the figures of the benchmark: 5-core on users and items, repeated until stable (Beauty 2014: 22,363 users,
12,101 items, 198,502 events from ``reviews_Beauty_5.json.gz`` or from ``ratings_Beauty.csv``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.raw.content import drop_rare, joined, names, path_names, plain
from sidera.data.raw.conversion import Conversion, Options, RawFormat, item_table, key, moment, stars
from sidera.data.raw.events import EventLog, RawEvents
from sidera.data.raw.files import RawFile
from sidera.data.raw.lines import filled, numbers, records, rows

ITEM_TYPES = {
    "key": pa.string(),
    "title": pa.string(),
    "brand": pa.string(),
    "categories": pa.list_(pa.string()),
    "description": pa.string(),
    "price": pa.float64(),
}
_FIRST_ASIN = re.compile(rb"""\s*\{\s*['"]asin['"]\s*:\s*['"](\w+)['"]""", re.ASCII)
_PRICE = re.compile(r"\$?\s*(\d{1,7}(?:,\d{3})*(?:\.\d+)?)\s*")


@dataclass(frozen=True)
class Release:
    """How one release calls things."""

    user: str
    item: str
    rating: str
    time: str
    time_unit: str
    csv_columns: tuple[str, ...] | None  # of the ratings file; None: it has a header
    brand: str
    categories: Callable[[dict[str, Any]], list[str]]
    text_fields: tuple[str, ...]


R2014 = Release(
    user="reviewerID",
    item="asin",
    rating="overall",
    time="unixReviewTime",
    time_unit="s",
    csv_columns=("reviewerID", "asin", "overall", "unixReviewTime"),
    brand="brand",
    categories=lambda record: path_names(record.get("categories")),
    text_fields=("title", "brand", "categories"),
)
R2018 = Release(
    user="reviewerID",
    item="asin",
    rating="overall",
    time="unixReviewTime",
    time_unit="s",
    csv_columns=("asin", "reviewerID", "overall", "unixReviewTime"),  # the item first, unlike 2014
    brand="brand",
    categories=lambda record: names(record.get("category")),
    text_fields=("title", "brand", "categories", "description"),
)
R2023 = Release(
    user="user_id",
    item="parent_asin",
    rating="rating",
    time="timestamp",
    time_unit="ms",
    csv_columns=None,
    brand="store",
    categories=lambda record: names(record.get("categories")),
    text_fields=("title", "brand", "categories", "description"),
)


def read_2014(work: Conversion) -> Dataset:
    return _read(work, R2014)


def read_2018(work: Conversion) -> Dataset:
    return _read(work, R2018)


def read_2023(work: Conversion) -> Dataset:
    return _read(work, R2023)


def _read(work: Conversion, release: Release) -> Dataset:
    meta = work.files.optional("metadata", "meta*.json", "meta*.jsonl")
    logs = [file for file in work.files.find("*.json", "*.jsonl", "*.csv") if not file.name.lower().startswith("meta")]
    if len(logs) != 1:
        labels = ", ".join(file.label for file in logs[:4]) or work.files.listed()
        raise InputError(
            f"{len(logs)} files may be the log: {labels}",
            allowed="one file of reviews (.json, .jsonl) or ratings (.csv), and one meta_*.json",
            fix="name the files that are meant",
        )
    (log,) = logs
    events = _ratings(work, log, release) if log.name.lower().endswith(".csv") else _reviews(work, log, release)
    events = work.thinned(events, 1000 if release.time_unit == "ms" else 1)
    items = _items(work, meta, release, events.items()) if meta else None
    return work.dataset(events, items, time_unit=release.time_unit, text_fields=release.text_fields)


def _reviews(work: Conversion, file: RawFile, release: Release) -> RawEvents:
    log, tally = EventLog("rating"), work.tally(file)
    for number, record in records(file, tally):
        try:
            user, item = key(record.get(release.user), release.user), key(record.get(release.item), release.item)
            log.add(user, item, moment(record.get(release.time)), stars(record.get(release.rating)))
        except ValueError as error:
            tally.leave_out(number, str(error))
    tally.check()
    return log.finish()


def _ratings(work: Conversion, file: RawFile, release: Release) -> RawEvents:
    log, tally = EventLog("rating"), work.tally(file)
    columns = (release.user, release.item, release.time, release.rating)
    for first, block in rows(file, tally, columns, release.csv_columns):
        times, good = numbers(block[release.time])
        rating, is_number = numbers(block[release.rating])
        users, items = block[release.user], block[release.item]
        good &= is_number & (times >= 0) & filled(users) & filled(items)
        tally.leave_out_of_block(first, good, "no user, item, rating or time")
        log.add_block(users, items, good, time=times, rating=rating)
    tally.check()
    return log.finish()


def _items(work: Conversion, file: RawFile, release: Release, logged: set[str]) -> pa.Table:
    """Metadata of the items that are left, in the order of the file; of an item that occurs twice the first."""
    by_key: dict[str, dict[str, Any]] = {}
    tally = work.tally(file)
    for number, record in records(file, tally, lambda line: _unwanted(line, logged)):
        try:
            item = key(record.get(release.item), release.item)
        except ValueError as error:
            tally.leave_out(number, str(error))
            continue
        if item not in logged:
            continue
        if item in by_key:
            work.count("items_repeated", 1)
            continue
        brand = plain(record.get(release.brand))
        text = joined(record.get("description"))
        features = joined(record.get("features")) if release is R2023 else None
        by_key[item] = {
            "key": item,
            "title": plain(record.get("title")),
            "brand": None if brand == "Unknown" and release is R2014 else brand,
            "categories": release.categories(record),
            "description": " ".join(part for part in (features, text) if part) or None,
            "price": price(record.get("price")),
        }
    tally.check()
    table: Sequence[dict[str, Any]] = list(by_key.values())
    if work.options.rare > 1:
        drop_rare(table, work.options.rare)
    return item_table(table, ITEM_TYPES)


def _unwanted(line: bytes, logged: set[str]) -> bool:
    """True for a line that opens with the id of an item that no event names: most of a metadata file."""
    match = _FIRST_ASIN.match(line)
    return match is not None and match[1].decode() not in logged


def price(value: Any) -> float | None:
    """Dollars; None where the field holds no single price."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    match = _PRICE.fullmatch(value) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None


LOG = "reviews_*.json.gz or ratings_*.csv, and meta_*.json.gz"
FORMATS = {
    "amazon2014": RawFormat("Amazon reviews 1996-2014", LOG, read_2014, Options(core=5, dedupe="exact", rare=5)),
    "amazon2018": RawFormat("Amazon reviews 1996-2018", LOG, read_2018, Options(core=5, dedupe="exact")),
    "amazon2023": RawFormat(
        "Amazon reviews 1996-2023",
        "CATEGORY.jsonl.gz or CATEGORY.csv.gz, and meta_CATEGORY.jsonl.gz",
        read_2023,
        Options(core=5, dedupe="exact"),
    ),
}
