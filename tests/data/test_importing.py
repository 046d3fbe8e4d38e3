"""Foreign logs come in from every format, and what is wrong is said in one line before anything is written."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidera.core import InputError
from sidera.data.config import DataConfig, load_dataset
from sidera.data.dataset import Dataset
from sidera.data.importing import ImportMapping, import_log, read_mapping

EVENTS = [
    {"uid": "u1", "asin": "0012", "ts": 30, "stars": 5.0},
    {"uid": "u1", "asin": "12", "ts": 10, "stars": 3.5},
    {"uid": "u2", "asin": "0012", "ts": 20, "stars": 1.0},
]
ITEMS = [
    {"asin": "12", "name": "Green tea, loose", "categories": ["tea", "leaf"]},
    {"asin": "0012", "name": "1984", "categories": []},
]
MAPPING = ImportMapping(
    columns={"user": "uid", "item": "asin", "time": "ts", "rating": "stars"},
    item_columns={"title": "name"},
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    suffix = path.suffixes[0]
    opener: Any = gzip.open if path.suffix == ".gz" else open
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if suffix in (".jsonl", ".ndjson"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".jsonl.gz"])
def test_every_format_gives_the_same_data_set(tmp_path: Path, ending: str) -> None:
    events = write(tmp_path / f"events{ending}", EVENTS)
    items = write(tmp_path / "items.jsonl", ITEMS)
    made = import_log(events, tmp_path / "mine", items, mapping=MAPPING)
    assert made.name == "mine"
    assert made.item_keys.tolist() == ["12", "0012"]  # leading zeros are part of a key
    assert made.item_ids.tolist() == [0, 1, 1]
    assert made.times.tolist() == [10, 30, 20]
    assert made.feedback["rating"].tolist() == [3.5, 5.0, 1.0]
    assert made.items["title"].to_pylist() == ["Green tea, loose", "1984"]
    assert made.items["categories"].to_pylist() == [["tea", "leaf"], []]
    assert made.items["text"].to_pylist() == ["Green tea, loose. Categories: tea, leaf", "1984"]
    assert made.notes == {"events_out_of_order": 1}
    assert load_dataset(tmp_path / "mine").digest == made.digest


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_items_and_users_from_files_of_text(tmp_path: Path, ending: str) -> None:
    rows = [{"user_id": "u", "item_id": "a", "timestamp": 5}, {"user_id": "v", "item_id": "b", "timestamp": 6}]
    events = write(tmp_path / f"events{ending}", rows)
    items = write(tmp_path / f"items{ending}", [{"item_id": "b", "title": "300"}, {"item_id": "a", "title": "7"}])
    users = write(tmp_path / f"users{ending}", [{"user_id": "v", "age": 9}, {"user_id": "u", "age": 8}])
    made = import_log(events, tmp_path / "out", items, users)
    assert made.items["title"].to_pylist() == ["300", "7"]
    assert made.users.to_pylist() == [{"key": "u", "age": 8}, {"key": "v", "age": 9}]
    assert made.times.tolist() == [5, 6]


def test_iso_dates_and_quoted_newlines(tmp_path: Path) -> None:
    events = write(tmp_path / "events.csv", [{"user": "u", "item": "a\nb", "time": "1970-01-02"}])
    made = import_log(events, tmp_path / "out")
    assert made.times.tolist() == [86_400]
    assert made.item_keys.tolist() == ["a\nb"]


def test_mapping_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'time_unit = "ms"\ntext_fields = ["title"]\n[columns]\nuser = "uid"\nitem = "asin"\ntime = "ts"\n'
        '[item_columns]\nkey = "asin"\ntitle = "name"\n'
    )
    mapping = read_mapping(path)
    events = write(tmp_path / "events.csv", [{**row, "ts": 1_700_000_000_000 + row["ts"]} for row in EVENTS])
    made = import_log(events, tmp_path / "out", write(tmp_path / "items.jsonl", ITEMS), mapping=mapping)
    assert made.times.tolist() == [1_700_000_000] * 3
    assert made.items["text"].to_pylist() == ["Green tea, loose", "1984"]
    path.write_text('[column]\nuser = "uid"\n')
    with pytest.raises(InputError, match=r"no key 'column' \(did you mean 'columns'\?\)"):
        read_mapping(path)


def test_a_mapped_column_wins_over_one_that_bears_the_name(tmp_path: Path) -> None:
    events = write(tmp_path / "events.csv", [{"user": "u", "item": "a", "time": 1, "ts": 77}])
    made = import_log(events, tmp_path / "out", mapping=ImportMapping(columns={"time": "ts"}))
    assert made.times.tolist() == [77]
    assert not made.feedback


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (ImportMapping(columns={"user": "who"}), ["the log events.csv has no column 'who'", "uid, asin, ts, stars"]),
        (
            ImportMapping(columns={"user": "uid", "item": "asim", "time": "ts"}),
            ["no column 'asim' to read as item", "did you mean 'asin'?", "allowed: uid, asin, ts, stars"],
        ),
        (
            ImportMapping(columns={"user": "uid", "item": "asin", "shown": "ts"}),
            ["log events.csv has no column 'time'", "--time COLUMN", "--position COLUMN", "--order rows"],
        ),
    ],
)
def test_wrong_columns_are_named_and_nothing_is_written(
    tmp_path: Path, mapping: ImportMapping, words: list[str]
) -> None:
    events = write(tmp_path / "events.csv", EVENTS)
    with pytest.raises(InputError) as caught:
        import_log(events, tmp_path / "out", mapping=mapping)
    assert all(word in str(caught.value) for word in words), caught.value
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]


def test_items_without_a_key_column(tmp_path: Path) -> None:
    events = write(tmp_path / "events.csv", EVENTS)
    items = write(tmp_path / "items.csv", [{"number": "12", "name": "x"}])
    with pytest.raises(InputError, match=r"items file items\.csv has no column 'key' \(found: number, name\)"):
        import_log(events, tmp_path / "out", items, mapping=ImportMapping(columns=MAPPING.columns))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("evnts.csv", None, ["no file at", "did you mean 'events.csv'?", "holds"]),
        ("nowhere/at/all.csv", None, ["no file at", "holds", "events.csv"]),
        ("folder", None, ["folder", "no file that can be read", "notes.md"]),
        ("log.xlsx", b"x", ["unknown ending '.xlsx'", ".parquet", ".csv", "--format"]),
        ("log.csv", b"", ["is empty"]),
        ("log.csv", b"user,item,time\n", ["'out' is empty"]),
        ("log.csv", b"user,item,time\nu,a\n", ["1 of 1 rows", "line 2 of log.csv has 2 fields, not 3", "--max-bad"]),
        ("log.csv", b"user,item,time\nu,\xff\xfe,1\n", ["cannot read", "UTF"]),
        ("log.jsonl", b'{"user": "u", "item": \n', ["line 1 of log.jsonl is no JSON object"]),
        ("log.jsonl", b"", ["is empty"]),
        ("log.parquet", b"PAR1 not", ["cannot read"]),
        ("log.csv", b"user,item,time\nu,a,\n", ["no time"]),
        ("log.csv", b"user,item,time\nu,a,-4\n", ["no readable time", "'-4'", "line 2"]),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes | None, words: list[str]) -> None:
    write(tmp_path / "events.csv", EVENTS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").touch()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        import_log(tmp_path / name, tmp_path / "out")
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_a_data_set_is_replaced(tmp_path: Path) -> None:
    events = write(tmp_path / "events.csv", [{"user": "u", "item": "a", "time": 1}])
    with pytest.raises(InputError, match="is no data set: it would be replaced"):
        import_log(events, tmp_path)
    with pytest.raises(InputError, match="is no data set"):
        import_log(events, events)
    import_log(events, tmp_path / "out")
    write(events, [{"user": "u", "item": "b", "time": 1}])
    import_log(events, tmp_path / "out")
    assert Dataset.load(tmp_path / "out").item_keys.tolist() == ["b"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = write(tmp_path / "events.csv", [{"user": "u", "item": "a", "time": 1}])

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_log(events, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]


def test_an_imported_log_takes_min_rating_and_text_fields(tmp_path: Path) -> None:
    events = write(tmp_path / "events.csv", EVENTS)
    import_log(events, tmp_path / "out", write(tmp_path / "items.jsonl", ITEMS), mapping=MAPPING)
    liked = load_dataset(tmp_path / "out", DataConfig(min_rating=3.5, text_fields=("categories",)))
    assert liked.feedback["rating"].tolist() == [3.5, 5.0]
    assert liked.item_keys.tolist() == ["12", "0012"]
    assert liked.items["text"].to_pylist() == ["Categories: tea, leaf", None]
    with pytest.raises(InputError, match="log 'out' is empty"):
        load_dataset(tmp_path / "out", DataConfig(min_rating=6))


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_columns_of_nought_and_one_are_marks(tmp_path: Path, ending: str) -> None:
    rows = [
        {"user": "u1", "item": "a", "time": 1, "is_like": 1, "hate": 0, "slot": 0, "rating": 1, "seconds": 1},
        {"user": "u1", "item": "b", "time": 2, "is_like": 0, "hate": 0, "slot": 1, "rating": 0, "seconds": 5},
    ]
    mapping = ImportMapping(columns={"like": "is_like"})
    feedback = import_log(write(tmp_path / f"log{ending}", rows), tmp_path / "out", mapping=mapping).feedback
    assert feedback["like"].dtype == bool
    assert feedback["like"].tolist() == [True, False]
    assert feedback["hate"].dtype != bool  # nothing tells that this column of noughts is a mark
    assert feedback["slot"].dtype != bool
    assert feedback["seconds"].dtype != bool
    assert load_dataset(tmp_path / "out").feedback["like"].dtype == bool
