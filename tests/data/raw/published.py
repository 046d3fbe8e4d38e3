"""Published sets of ../shared/data written back in the raw format of their publisher."""

from __future__ import annotations

import gzip
import html
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")


def rows(name: str, table: str = "interactions", *columns: str) -> list[dict[str, Any]]:
    with pq.ParquetFile(SHARED / name / f"{table}.parquet") as file:
        return file.read(columns=list(columns) or None).to_pylist()


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = ("\n".join(lines) + "\n").encode(encoding)
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)
    return path


def amazon2014(name: str, folder: Path, loose: bool = True) -> list[Path]:
    """Reviews as strict JSON (as published), metadata as Python literals: titles escaped, categories as two paths."""
    reviews = [
        json.dumps(
            {
                "reviewerID": row["user_id"],
                "asin": row["item_id"],
                "reviewText": "Great {product}, it's 'fine' and \"good\"",
                "unixReviewTime": row["timestamp"],
            }
        )
        for row in rows(name)
    ]
    metas = []
    for row in rows(name, "items"):
        names = row["categories"] or []
        half = len(names) // 2
        meta: dict[str, Any] = {"asin": row["item_id"], "imUrl": "http://example.org/i.jpg"}
        meta["categories"] = [["Root", *names], ["Root", *names[:half]], ["Root"]]
        meta["salesRank"] = {"Beauty": 53558}
        meta["related"] = {"also_bought": ["B1", "B2"]}
        if row.get("title") is not None:
            meta["title"] = html.escape(row["title"])
        if row["brand"] is not None:
            meta["brand"] = html.escape(row["brand"])
        metas.append(repr(meta) if loose else json.dumps(meta))
    paths = [write(folder / "reviews_X_5.json.gz", reviews), write(folder / "meta_X.json.gz", metas)]
    return paths


def amazon2018(name: str, folder: Path) -> list[Path]:
    """The order becomes days, since the table has no times."""
    reviews = [
        json.dumps(
            {
                "overall": 5.0,
                "verified": True,
                "reviewerID": f"A{row['user_idx']}",
                "asin": str(row["item_idx"]),
                "unixReviewTime": 86_400 * (row["position"] + 1),
            }
        )
        for row in rows(name)
    ]
    metas = []
    for row in rows(name, "items"):
        meta = {
            "category": row["categories"] or [],
            "description": [html.escape(row["description"])] if row["description"] else [],
            "title": html.escape(row["title"] or ""),
            "brand": row["brand"] or "",
            "asin": str(row["item_idx"]),
        }
        metas.append(json.dumps(meta))
    return [write(folder / "X_5.json.gz", reviews), write(folder / "meta_X.json.gz", metas)]


def movielens(name: str, folder: Path) -> Path:
    """ml-100k as u.data, ml-1m with '::', ml-latest-small as CSV."""
    ratings, films = rows(name), rows(name, "items")
    if name == "ml-100k":
        from sidera.data.raw.movielens import GENRES

        write(folder / "u.data", [f"{r['user_id']}\t{r['item_id']}\t{r['rating']}\t{r['timestamp']}" for r in ratings])
        flags = [["1" if genre in film["genres"] else "0" for genre in GENRES] for film in films]
        lines = [
            "|".join([str(film["item_id"]), film["title"], film["release_date"] or "", "", "http://x", *flag])
            for film, flag in zip(films, flags, strict=True)
        ]
        write(folder / "u.item", lines)
        users = [
            "|".join([str(u["user_id"]), str(u["age"]), u["gender"], u["occupation"], u["zip"]])
            for u in rows(name, "users")
        ]
        write(folder / "u.user", users)
    elif name == "ml-1m":
        lines = [f"{r['user_id']}::{r['item_id']}::{r['rating']}::{r['timestamp']}" for r in ratings]
        write(folder / "ratings.dat", lines)
        lines = [f"{f['item_id']}::{f['title']}::{'|'.join(f['genres'])}" for f in films]
        write(folder / "movies.dat", lines, "latin-1")
        write(
            folder / "users.dat",
            [
                f"{u['user_id']}::{u['gender']}::{u['age_bucket']}::{u['occupation']}::{u['zip']}"
                for u in rows(name, "users")
            ],
        )
    else:
        lines = [f"{r['user_id']},{r['item_id']},{r['rating']},{r['timestamp']}" for r in ratings]
        write(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *lines])
        lines = []
        for film in films:
            title = '"' + film["title"].replace('"', '""') + '"' if set(film["title"]) & set('",') else film["title"]
            lines.append(f"{film['item_id']},{title},{'|'.join(film['genres']) or '(no genres listed)'}")
        write(folder / "movies.csv", ["movieId,title,genres", *lines])
        write(folder / "tags.csv", ["userId,movieId,tag,timestamp", "1,1,boring,1000"])
    return folder
