"""Logs with feedback, written in their raw format and read back: every value that the Parquet tables hold is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from published import SHARED, needs_shared, rows, write

from sidera.core import InputError
from sidera.data.dataset import read_parquet
from sidera.data.raw import RAW_FORMATS, convert
from sidera.data.raw.conversion import Options
from sidera.data.raw.ctr import impressions
from sidera.data.schema import build_dataset

KUAIRAND = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
KUAIRAND += "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"


@needs_shared
def test_lastfm(tmp_path: Path) -> None:
    """Tag events and artist names. Five days before 2004 are errors of the source: three of them fall out here."""
    events = rows("lastfm_hetrec2011", "tag_events")
    lines = [f"{e['user_id']}\t{e['item_id']}\t{e['tag_id']}\t{e['timestamp']}000" for e in events]
    write(tmp_path / "user_taggedartists-timestamps.dat", ["userID\tartistID\ttagID\ttimestamp", *lines])
    artists = rows("lastfm_hetrec2011", "items")
    lines = [f"{a['item_id']}\t{a['title']}\thttp://last.fm/x\thttp://last.fm/x.jpg" for a in artists]
    write(tmp_path / "artists.dat", ["id\tname\turl\tpictureURL", *lines])
    made = convert("lastfm", [tmp_path])

    known = dict.fromkeys(
        (e["user_id"], e["item_id"], e["timestamp"]) for e in events if e["timestamp"] >= 1_009_843_200
    )
    users, items, times = zip(*known, strict=True)
    named = {artist["item_id"]: artist["title"] for artist in artists}
    wanted = set(items)
    kept = [item for item in named if item in wanted]
    content = pa.table({"key": [str(item) for item in kept], "title": [named[item] for item in kept]})
    log = pa.table({"user": pa.array(users), "item": pa.array(items), "time": pa.array(times, type=pa.int64())})
    expected = build_dataset("lastfm", log, content)
    assert made.digest == expected.digest
    early = sum(e["timestamp"] < 1_009_843_200 for e in events)
    assert made.notes["events_out_of_period"] == early > 0
    assert made.num_events + made.notes["events_repeated"] + early == len(events)


@needs_shared
def test_taobao(tmp_path: Path) -> None:
    events = rows("taobao_userbehavior_slice")
    lines = [
        ",".join(str(e[n]) for n in ("user_id", "item_id", "category_id", "behavior", "timestamp")) for e in events
    ]
    made = convert("taobao", [write(tmp_path / "UserBehavior.csv", lines)])

    known = [event for event in events if event["timestamp"] > 15]
    tags = {str(event["item_id"]): str(event["category_id"]) for event in known}
    log: dict[str, Any] = {"user": [str(e["user_id"]) for e in known], "item": [str(e["item_id"]) for e in known]}
    log["time"] = [event["timestamp"] for event in known]
    log |= {mark: [event["behavior"] == mark for event in known] for mark in ("pv", "fav", "cart", "buy")}
    content = pa.table({"key": sorted(tags), "tags": [tags[key] for key in sorted(tags)]})
    assert made.digest == build_dataset("taobao", pa.table(log), content).digest
    assert made.notes["events_out_of_period"] == 1
    assert made.num_events == len(events) - 1


def kuairand_lines(events: list[dict[str, Any]], uniform: int = 0) -> list[str]:
    names = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    return [
        ",".join(
            map(
                str,
                [
                    *(e[n] for n in ("user_id", "item_id", "date", "hourmin", "time_ms", *names)),
                    *(e["play_time_ms"], e["duration_ms"], 0, e["comment_stay_time"], e["is_profile_enter"]),
                    *(uniform, 1),
                ],
            )
        )
        for e in events
    ]


@needs_shared
def test_kuairand_log(tmp_path: Path) -> None:
    """The table holds the marks and times of the 27K log; ``is_rand`` and ``tab`` are not in it: written as 0 and 1."""
    events = rows("kuairand27k_explicit_kcore15")
    half = len(events) // 2
    folder = tmp_path / "KuaiRand-27K" / "data"
    for place, part in enumerate((events[:half], events[half:]), 1):
        write(folder / f"log_standard_4_08_to_4_21_27k_part{place}.csv", [KUAIRAND, *kuairand_lines(part)])
    made = convert("kuairand", [tmp_path], Options())

    log: dict[str, Any] = {"user": [e["user_id"] for e in events], "item": [e["item_id"] for e in events]}
    log["time"] = [e["time_ms"] for e in events]
    for name in ("click", "like", "follow", "comment", "forward", "hate", "profile_enter"):
        log[name] = [bool(e[f"is_{name}"]) for e in events]
    log["long_view"] = [bool(e["long_view"]) for e in events]
    log["uniform"] = [False] * len(events)
    for theirs, ours in (("play_time_ms", "watch_time"), ("duration_ms", "duration")):
        log[ours] = np.array([e[theirs] for e in events], dtype=np.float64).__truediv__(1000).astype(np.float32)
    log["tab"] = pa.array([1] * len(events), type=pa.int8())
    assert made.digest == build_dataset("kuairand", pa.table(log), time_unit="ms").digest
    read = [
        tuple(v for name, v in e.items() if name not in ("hourmin", "comment_stay_time", "position")) for e in events
    ]
    assert convert("kuairand", [tmp_path]).notes["events_repeated"] == len(read) - len(set(read)) > 100


@needs_shared
def test_kuairand_users_and_videos(tmp_path: Path) -> None:
    """Features of Pure; the log of Pure is not at hand, so two exposures are made up."""
    videos, users = (read_parquet(SHARED / "kuairand_pure_features_only" / f"{t}.parquet") for t in ("items", "users"))
    folder = tmp_path / "data"
    for name, table, renamed in (
        ("video_features_basic_pure", videos, "video_id"),
        ("user_features_pure", users, "user_id"),
    ):
        lines = []
        for row in table.to_pylist():
            values = ["" if value is None else str(value) for value in row.values()]
            lines.append(",".join(f'"{value}"' if "," in value else value for value in values))
        write(folder / f"{name}.csv", [",".join([renamed, *table.column_names[1:]]), *lines])
    event = dict.fromkeys(("date", "hourmin", "is_click", "is_like", "is_follow", "is_comment", "is_forward"), 0)
    event |= dict.fromkeys(("is_hate", "long_view", "play_time_ms", "duration_ms", "comment_stay_time"), 0)
    event |= {"is_profile_enter": 0, "time_ms": 1_650_000_000_000}
    many = [
        {**event, "user_id": u, "item_id": v}
        for u, v in zip(users["user_id"].to_pylist(), [0, 7, 8] * 9095, strict=True)
    ]
    write(folder / "log_random_4_22_to_5_08_pure.csv", [KUAIRAND, *kuairand_lines(many, uniform=1)])
    made = convert("kuairand", [folder])
    assert made.feedback["uniform"].all()
    by_key = {row["key"]: row for row in made.items.to_pylist()}
    for row in videos.filter(pc.is_in(videos["item_id"], pa.array([0, 7, 8]))).to_pylist():
        found = by_key[str(row["item_id"])]
        assert found["creator"] == str(row["author_id"])
        assert found["tags"] == (row["tag"] or "").split(",")
        assert found["upload_type"] == row["upload_type"]
    assert made.num_users == users.num_rows
    live = users["is_live_streamer"].to_pylist()
    assert made.users["is_live_streamer"].to_pylist() == [None if value == -124 else value for value in live]
    assert made.users["user_active_degree"].to_pylist() == users["user_active_degree"].to_pylist()
    assert made.users["onehot_feat4"].to_pylist() == users["onehot_feat4"].to_pylist()


@needs_shared
def test_criteo_and_avazu_rows(tmp_path: Path) -> None:
    """Every value of the samples comes back; a data folder is refused, because nobody meets anything in them."""
    table = read_parquet(SHARED / "ctr_schema_samples" / "criteo_200.parquet")
    lines = []
    for row in table.to_pylist():
        lines.append(
            "\t".join("" if v is None else str(int(v)) if isinstance(v, float) else str(v) for v in row.values())
        )
    made = pa.Table.from_batches(impressions("criteo", write(tmp_path / "train.txt", lines)))
    for name in table.column_names:
        expected = [None if value is None else value for value in table[name].to_pylist()]
        assert made[name].to_pylist() == ([bool(v) for v in expected] if name == "label" else expected), name

    table = read_parquet(SHARED / "ctr_schema_samples" / "avazu_100.parquet")
    header = ",".join(table.column_names)
    lines = [header, *(",".join(map(str, row.values())) for row in table.to_pylist())]
    made = pa.Table.from_batches(impressions("avazu", write(tmp_path / "train.gz", lines)))
    assert made["label"].to_pylist() == [bool(value) for value in table["click"].to_pylist()]
    assert set(made["time"].to_pylist()) == {1_413_849_600}  # 2014-10-21 00:00
    assert made["device_ip"].to_pylist() == table["device_ip"].to_pylist()
    assert made["C20"].to_pylist() == [str(value) for value in table["C20"].to_pylist()]
    for name, file in (("criteo", "train.txt"), ("avazu", "train.gz")):
        with pytest.raises(InputError, match="without a user and an item"):
            convert(name, [tmp_path / file])


@needs_shared
def test_no_option_of_a_format_takes_more_than_it_says(tmp_path: Path) -> None:
    events = rows("taobao_userbehavior_slice")[:3000]
    lines = [
        ",".join(str(e[n]) for n in ("user_id", "item_id", "category_id", "behavior", "timestamp")) for e in events
    ]
    path = write(tmp_path / "UserBehavior.csv", lines)
    options = dataclasses.replace(RAW_FORMATS["taobao"].options, core=2)
    made = convert("taobao", [path], options)
    assert np.bincount(made.item_ids).min() >= 2
    assert np.diff(made.offsets).min() >= 2
    assert made.num_events + made.notes["events_outside_2_core"] + made.notes.get("events_out_of_period", 0) == 3000
