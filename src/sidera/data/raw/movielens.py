"""MovieLens as GroupLens publishes it: 100k (``u.data``), 1M and 10M (``::`` between fields), latest, 20M, 25M (CSV).

An event is a rating of 4 or more unless ``min_rating`` says otherwise; films that nobody so rated are left out. The
text is title and genres. Files before 2011 are Latin-1, later ones UTF-8.

Never read: ``tags.csv`` and the genome (written by users, also after the moment a split asks about), ``links.csv``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from sidera.data.dataset import Dataset
from sidera.data.raw.conversion import Conversion, Options, RawFormat, item_table
from sidera.data.raw.events import EventLog, RawEvents
from sidera.data.raw.files import RawFile
from sidera.data.raw.lines import decoded, filled, lines, numbers, quoted_rows, rows

GENRES = (  # the flags of u.item, in their order
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
NO_GENRES = "(no genres listed)"
_YEAR = re.compile(r"\((\d{4})\)\s*$")
RATING = ("user", "item", "rating", "time")
USER_TYPES = {
    "key": pa.string(),
    "gender": pa.string(),
    "age": pa.int8(),
    "age_bucket": pa.int8(),
    "occupation": pa.string(),
    "zip": pa.string(),
}


def read(work: Conversion) -> Dataset:
    log = work.files.one("ratings", "u.data", "ratings.dat", "ratings.csv")
    events = work.thinned(_ratings(work, log))
    kind = {"u.data": "100k", "ratings.dat": "dat"}.get(log.name.lower(), "csv")
    rows_of = {"100k": _films_100k, "dat": _films_dat, "csv": _films_csv}[kind]
    file = work.files.optional("films", *(("u.item",) if kind == "100k" else ("movies.dat", "movies.csv")))
    items = None
    if file is not None:
        logged = events.items()
        films = [film for film in rows_of(work, file) if film["key"] in logged]
        types = {"title": pa.string(), "genres": pa.list_(pa.string()), "year": pa.int16(), "release_date": pa.string()}
        items = item_table(films, {"key": pa.string(), **types})
    return work.dataset(events, items, _users(work, kind), text_fields=("title", "genres"))


def _ratings(work: Conversion, file: RawFile) -> RawEvents:
    log, tally = EventLog("rating"), work.tally(file)
    ending = file.name.lower().rsplit(".", 1)[-1]
    names: Sequence[str] | None = RATING
    columns, delimiter = RATING, "\t"
    if ending == "dat":  # "::" read as two colons with an empty column between
        names, delimiter = ("user", "a", "item", "b", "rating", "c", "time"), ":"
    elif ending == "csv":
        names, columns, delimiter = None, ("userId", "movieId", "rating", "timestamp"), ","
    for first, block in rows(file, tally, columns, names, delimiter):
        users, items, stars, times = (block[name] for name in columns)
        rating, good = numbers(stars)
        time, is_time = numbers(times)
        good &= is_time & (time >= 0) & filled(users) & filled(items)
        tally.leave_out_of_block(first, good, "no user, film, rating or time")
        log.add_block(users, items, good, time=time, rating=rating)
    tally.check()
    return log.finish()


def _films_100k(work: Conversion, file: RawFile) -> Iterator[dict[str, Any]]:
    for fields in _fields(work, file, "|", 5 + len(GENRES)):
        genres = [genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
        yield {"key": fields[0], "title": fields[1], "release_date": fields[2] or None, "genres": genres}


def _films_dat(work: Conversion, file: RawFile) -> Iterator[dict[str, Any]]:
    for key, title, genres in _fields(work, file, "::", 3):
        year = _YEAR.search(title)
        yield {"key": key, "title": title, "genres": _split(genres), "year": int(year[1]) if year else None}


def _films_csv(work: Conversion, file: RawFile) -> Iterator[dict[str, Any]]:
    for row in quoted_rows(file, work.tally(file), ("movieId", "title", "genres")):
        yield {"key": row["movieId"], "title": row["title"] or None, "genres": _split(row["genres"])}


def _users(work: Conversion, kind: str) -> pa.Table | None:
    file = work.files.optional("users", "u.user" if kind == "100k" else "users.dat")
    if file is None or kind == "csv":
        return None
    rows: list[dict[str, Any]] = []
    if kind == "100k":
        for key, age, gender, occupation, zip_code in _fields(work, file, "|", 5):
            rows.append({"key": key, "gender": gender, "age": _small(age), "occupation": occupation, "zip": zip_code})
        return item_table(rows, USER_TYPES)
    for key, gender, age, occupation, zip_code in _fields(work, file, "::", 5):
        row = {
            "key": key,
            "gender": gender,
            "age_bucket": _small(age),
            "occupation": _small(occupation),
            "zip": zip_code,
        }
        rows.append(row)
    return item_table(rows, {**USER_TYPES, "occupation": pa.int8()})


def _fields(work: Conversion, file: RawFile, separator: str, number: int) -> Iterator[list[str]]:
    """The fields of each line; the ids are whole numbers in every release."""
    tally = work.tally(file)
    for position, line in lines(file, tally):
        fields = decoded(line).split(separator)
        if len(fields) == number and fields[0].isdigit():
            yield fields
        else:
            tally.leave_out(position, f"{len(fields)} fields in place of {number}")
    tally.check()


def _small(text: str) -> int | None:
    return int(text) if text.isdigit() and len(text) < 4 and int(text) < 128 else None


def _split(genres: str) -> list[str]:
    return [] if genres in ("", NO_GENRES) else genres.split("|")


FORMATS = {
    "movielens": RawFormat(
        "MovieLens 100k, 1M, 10M, 20M, 25M, latest",
        "the published ml-*.zip, or ratings.dat/.csv with movies.dat/.csv, or u.data with u.item",
        read,
        Options(min_rating=4.0),
    ),
}
