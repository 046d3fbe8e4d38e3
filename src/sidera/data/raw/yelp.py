"""Yelp Open Dataset: ``yelp_academic_dataset_review.json`` and ``..._business.json``, one JSON object a line.

An event is a review: user, business, stars, date. Read of a business: name, categories, city. Never read, because they
were counted over the whole period: ``stars`` and ``review_count`` of a business, everything of ``user.json``.

Default: 5-core. S3-Rec's figures take the reviews of 2019: ``--since 2019-01-01 --until 2020-01-01``.
"""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa

from sidera.data.dataset import Dataset
from sidera.data.raw.content import plain
from sidera.data.raw.conversion import Conversion, Options, RawFormat, item_table, key, stars
from sidera.data.raw.events import EventLog
from sidera.data.raw.files import RawFile
from sidera.data.raw.lines import records


def read(work: Conversion) -> Dataset:
    log_file = work.files.one("reviews", "*review*.json")
    log, tally = EventLog("rating"), work.tally(log_file)
    for number, record in records(log_file, tally):
        try:
            user, item = key(record.get("user_id"), "user_id"), key(record.get("business_id"), "business_id")
            log.add(user, item, iso_seconds(record.get("date")), stars(record.get("stars")))
        except ValueError as error:
            tally.leave_out(number, str(error))
    tally.check()
    events = work.thinned(log.finish())
    file = work.files.optional("businesses", "*business*.json")
    items = _businesses(work, file, events.items()) if file else None
    return work.dataset(events, items, text_fields=("title", "categories"))


def _businesses(work: Conversion, file: RawFile, logged: set[str]) -> pa.Table:
    by_key: dict[str, dict[str, Any]] = {}
    tally = work.tally(file)
    for number, record in records(file, tally):
        item = record.get("business_id")
        if not isinstance(item, str):
            tally.leave_out(number, "no business_id")
        elif item in logged and item not in by_key:
            categories = record.get("categories")
            by_key[item] = {
                "key": item,
                "title": plain(record.get("name")),
                "categories": [part.strip() for part in categories.split(",")] if isinstance(categories, str) else [],
                "city": plain(record.get("city")),
            }
    tally.check()
    kinds = {"title": pa.string(), "categories": pa.list_(pa.string()), "city": pa.string()}
    return item_table(list(by_key.values()), {"key": pa.string(), **kinds})


def iso_seconds(value: Any) -> float:
    """Unix seconds of a date with or without a time of day, taken as UTC; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError("no date")
    date = datetime.datetime.fromisoformat(value.strip())
    seconds = date.replace(tzinfo=date.tzinfo or datetime.UTC).timestamp()
    if seconds < 0:
        raise ValueError(f"date {value!r} is before 1970")
    return seconds


FORMATS = {
    "yelp": RawFormat(
        "Yelp Open Dataset",
        "yelp_academic_dataset_review.json, yelp_academic_dataset_business.json, or the archive of both",
        read,
        Options(core=5, dedupe="exact"),
    )
}
