"""KuaiRand (Pure, 1K, 27K): ``log_standard_*.csv``, ``log_random_*.csv``, users and videos beside them.

Every exposure is an event with what came of it: ``click like follow comment forward hate long_view profile_enter`` as
marks, ``watch_time`` and ``duration`` in seconds (0: unknown), ``tab`` (scenario), and ``uniform``: shown at random.
``[data] positive = "click"`` or ``"long_view"`` asks for those.

Videos: ``creator``, ``tags``, kinds of upload; ``video_features_statistic`` is never read (it counts the whole period).
Users: kinds, ranges and the encrypted features; -124 and empty are "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.raw.conversion import Conversion, Options, RawFormat, item_table
from sidera.data.raw.events import EventLog
from sidera.data.raw.files import RawFile
from sidera.data.raw.lines import filled, numbers, quoted_rows, rows

MARKS = {f"is_{name}": name for name in ("click", "like", "follow", "comment", "forward", "hate")}
MARKS |= {"long_view": "long_view", "is_profile_enter": "profile_enter", "is_rand": "uniform"}
SECONDS = {"play_time_ms": "watch_time", "duration_ms": "duration"}
LOG = ("user_id", "video_id", "time_ms", *MARKS, *SECONDS, "tab")
VIDEO_TEXTS = ("video_type", "upload_type", "music_type")
USER_TEXTS = (
    *("user_active_degree", "follow_user_num_range", "fans_user_num_range", "friend_user_num_range"),
    "register_days_range",
)
USER_NUMBERS = ("is_lowactive_period", "is_live_streamer", "is_video_author", *(f"onehot_feat{n}" for n in range(18)))


def read(work: Conversion) -> Dataset:
    logs = work.files.find("log_standard_*.csv", "log_random_*.csv")
    if not logs:
        raise InputError(
            f"no log among the files ({work.files.listed()})", allowed="log_standard_*.csv, log_random_*.csv"
        )
    log = EventLog(*MARKS.values(), *SECONDS.values(), "tab")
    for file in sorted(logs, key=lambda file: (file.name.startswith("log_random"), file.name)):
        _read_log(work, file, log)
    types: dict[str, type] = dict.fromkeys(MARKS.values(), bool)
    types |= dict.fromkeys(SECONDS.values(), np.float32) | {"tab": np.int8}
    events = work.thinned(log.finish(types), 1000)
    videos = work.files.find("video_features_basic_*.csv")
    users = work.files.optional("users", "user_features_*.csv")
    rows: list[dict[str, Any]] = []
    logged = events.items()
    for file in videos:
        rows += _videos(work, file, logged)
    kinds = {"creator": pa.string(), "tags": pa.list_(pa.string()), **dict.fromkeys(VIDEO_TEXTS, pa.string())}
    items = item_table(rows, {"key": pa.string(), **kinds}) if videos else None
    return work.dataset(events, items, _users(work, users) if users else None, time_unit="ms")


def _read_log(work: Conversion, file: RawFile, log: EventLog) -> None:
    tally = work.tally(file)
    for first, block in rows(file, tally, LOG):
        users, items = block["user_id"], block["video_id"]
        times, good = numbers(block["time_ms"])
        good &= (times >= 0) & filled(users) & filled(items)
        values = {}
        for source, column in {**MARKS, **SECONDS, "tab": "tab"}.items():
            values[column], is_number = numbers(block[source])
            good &= is_number & ((values[column] >= 0) if source in SECONDS else True)
            if source in MARKS:
                good &= np.isin(values[column], (0, 1))
        for name in SECONDS.values():
            values[name] = values[name] / 1000
        good &= np.abs(values["tab"]) < 128
        tally.leave_out_of_block(first, good, "an id, a time or a mark is missing or impossible")
        log.add_block(users, items, good, time=times, **values)
    tally.check()


def _videos(work: Conversion, file: RawFile, logged: set[str]) -> list[dict[str, Any]]:
    rows = []
    for row in _table(work, file, ("video_id", "author_id", "tag", *VIDEO_TEXTS)):
        if row["video_id"] in logged:
            tags = [tag for tag in (row["tag"] or "").split(",") if tag]
            texts = {name: row[name] for name in VIDEO_TEXTS}
            rows.append({"key": row["video_id"], "creator": row["author_id"], "tags": tags, **texts})
    return rows


def _users(work: Conversion, file: RawFile) -> pa.Table:
    columns = [
        {"key": row["user_id"], **{name: row[name] for name in USER_TEXTS}, **{n: _whole(row[n]) for n in USER_NUMBERS}}
        for row in _table(work, file, ("user_id", *USER_TEXTS, *USER_NUMBERS))
    ]
    kinds = {**dict.fromkeys(USER_TEXTS, pa.string()), **dict.fromkeys(USER_NUMBERS, pa.int32())}
    return item_table(columns, {"key": pa.string(), **kinds})


def _table(work: Conversion, file: RawFile, logged: tuple[str, ...]) -> Iterator[dict[str, str | None]]:
    """Rows of a feature file, None where a value is unknown. A tag list stands between quotes."""
    for row in quoted_rows(file, work.tally(file), logged):
        yield {name: None if value in ("", "-124") else value for name, value in row.items()}


def _whole(text: str | None) -> int | None:
    """A whole number; the files write some as 1.0."""
    return int(float(text)) if text and text.replace(".", "", 1).removeprefix("-").isdigit() else None


FORMATS = {
    "kuairand": RawFormat(
        "KuaiRand Pure, 1K, 27K",
        "KuaiRand-*.tar.gz, or its data folder",
        read,
        Options(dedupe="exact"),
    )
}
