"""Last.fm of HetRec 2011: ``user_taggedartists-timestamps.dat`` and ``artists.dat``, tab between columns, one header.

An event is a user who tags an artist on a day; several tags of one day are one event. The listening counts of
``user_artists.dat`` have no times and span the whole period, so they are neither events nor feedback here; ``tags.dat``
is not read as content, because a tag may be written after the moment a split asks about.

Times are milliseconds. Days before Last.fm existed are errors of the source, left out as ``events_out_of_period``.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from sidera.data.dataset import Dataset
from sidera.data.raw.content import plain
from sidera.data.raw.conversion import Conversion, Options, RawFormat, item_table
from sidera.data.raw.events import EventLog
from sidera.data.raw.files import RawFile
from sidera.data.raw.lines import decoded, filled, lines, numbers, rows

FIRST = 1_009_843_200_000  # 2002-01-01, milliseconds
COLUMNS = ("userID", "artistID", "timestamp")


def read(work: Conversion) -> Dataset:
    file = work.files.one("tag assignments with times", "user_taggedartists-timestamps.dat")
    log, tally = EventLog(), work.tally(file)
    for first, block in rows(file, tally, COLUMNS, delimiter="\t"):
        users, artists, stamps = (block[name] for name in COLUMNS)
        times, good = numbers(stamps)
        good &= filled(users) & filled(artists)
        tally.leave_out_of_block(first, good, "no user, artist or time")
        early = good & (times < FIRST)
        work.count("events_out_of_period", int(early.sum()))
        log.add_block(users, artists, good & ~early, time=times)
    tally.check()
    events = work.thinned(log.finish(), 1000)
    artists_file = work.files.optional("artists", "artists.dat")
    items = _artists(work, artists_file, events.items()) if artists_file else None
    return work.dataset(events, items, time_unit="ms", text_fields=("title",))


def _artists(work: Conversion, file: RawFile, logged: set[str]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    tally = work.tally(file)
    for number, line in lines(file, tally):
        fields = decoded(line).split("\t")
        if number == 1 and fields[0] == "id":
            continue
        if len(fields) < 2 or not fields[0].isdigit():
            tally.leave_out(number, f"{len(fields)} columns in place of id, name, url, pictureURL")
        elif fields[0] in logged:
            rows.append({"key": fields[0], "title": plain(fields[1])})
    tally.check()
    return item_table(rows, {"key": pa.string(), "title": pa.string()})


FORMATS = {
    "lastfm": RawFormat(
        "Last.fm, HetRec 2011",
        "hetrec2011-lastfm-2k.zip, or user_taggedartists-timestamps.dat and artists.dat",
        read,
        Options(dedupe="exact"),
    )
}
