"""Steam as UCSD publishes it, Python literals a line: ``steam_reviews.json.gz`` (version 2) or
``australian_user_reviews.json.gz`` (version 1, one user a line), with ``steam_games.json.gz``.

An event is a review. Version 2: ``username``, ``product_id``, ``date``, ``hours`` played. Version 1: ``user_id``,
``item_id``, ``posted`` ("Posted November 5, 2011."), ``recommend``; a review of the running year was published without
its year, has no time therefore, and is counted as ``events_without_year``. ``hours`` is not read: it is the time played
until the crawl, so it knows the future. ``australian_users_items`` has no times at all and is refused.

Default: 5-core and exact repeats dropped, as SASRec prepared the version 2 file.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import pyarrow as pa

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.raw.content import names, plain
from sidera.data.raw.conversion import Conversion, Options, RawFormat, item_table, key
from sidera.data.raw.events import EventLog, RawEvents
from sidera.data.raw.files import RawFile
from sidera.data.raw.lines import Tally, records
from sidera.data.raw.yelp import iso_seconds

MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_POSTED = re.compile(r"Posted (\w+) (\d{1,2})(?:, (\d{4}))?\.?")


def read(work: Conversion) -> Dataset:
    if not work.files.find("*reviews*.json") and work.files.find("*users_items*.json"):
        raise InputError(
            "australian_users_items has no times, so nothing comes before anything else",
            fix="convert steam_reviews.json.gz or australian_user_reviews.json.gz",
        )
    file = work.files.one("reviews", "steam_reviews*.json", "*user_reviews*.json", "*steam*new*.json")
    events = work.thinned(_reviews(work, file))
    games = work.files.optional("games", "*games*.json")
    items = _games(work, games, events.items()) if games else None
    return work.dataset(events, items, text_fields=("title", "brand", "categories"))


def _reviews(work: Conversion, file: RawFile) -> RawEvents:
    log, tally = EventLog("recommend"), work.tally(file)
    for number, record in records(file, tally):
        try:
            if "reviews" in record:
                _of_a_user(work, record, log)
            else:
                user, item = key(record.get("username"), "username"), key(record.get("product_id"), "product_id")
                log.add(user, item, iso_seconds(record.get("date")), math.nan)
        except ValueError as error:
            tally.leave_out(number, str(error))
    tally.check()
    return log.finish({"recommend": bool})


def _of_a_user(work: Conversion, record: dict[str, Any], log: EventLog) -> None:
    user = key(record.get("user_id"), "user_id")
    reviews = record["reviews"]
    if not isinstance(reviews, list) or not all(isinstance(review, dict) for review in reviews):
        raise ValueError("reviews are no list of records")
    known = []
    for review in reviews:  # all of a line or nothing of it
        item, recommend, time = key(review.get("item_id"), "item_id"), review.get("recommend"), posted(review)
        if not isinstance(recommend, bool):
            raise ValueError("recommend is neither True nor False")
        if time is not None:
            known.append((item, time, float(recommend)))
    work.count("events_without_year", len(reviews) - len(known))
    for item, time, liked in known:
        log.add(user, item, time, liked)


def posted(review: dict[str, Any]) -> float | None:
    """Unix seconds of the day; None without a year; ValueError for what is no date."""
    text = review.get("posted")
    match = _POSTED.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[1].lower() not in MONTHS:
        raise ValueError(f"posted {str(text)[:30]!r} is no date")
    if match[3] is None:
        return None
    day = datetime.datetime(int(match[3]), MONTHS.index(match[1].lower()) + 1, int(match[2]), tzinfo=datetime.UTC)
    return day.timestamp()


def _games(work: Conversion, file: RawFile, logged: set[str]) -> pa.Table:
    by_key: dict[str, dict[str, Any]] = {}
    tally: Tally = work.tally(file)
    for _, record in records(file, tally):
        item = record.get("id")  # a few games have none, and no review either
        if isinstance(item, (str, int)) and str(item) in logged and str(item) not in by_key:
            by_key[str(item)] = {
                "key": str(item),
                "title": plain(record.get("title")) or plain(record.get("app_name")),
                "brand": plain(record.get("developer")),
                "categories": names(record.get("genres") or []),
                "tags": names(record.get("tags") or []),
            }
    texts = pa.list_(pa.string())
    kinds = {"title": pa.string(), "brand": pa.string(), "categories": texts, "tags": texts}
    return item_table(list(by_key.values()), {"key": pa.string(), **kinds})


FORMATS = {
    "steam": RawFormat(
        "Steam reviews (UCSD)",
        "steam_reviews.json.gz or australian_user_reviews.json.gz, and steam_games.json.gz",
        read,
        Options(core=5, dedupe="exact"),
    )
}
