"""Store and exposures to a data folder, and a data folder that grows: nothing lost, nothing doubled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sidera.cli import main
from sidera.core import InputError
from sidera.data.append import append_log, appended
from sidera.data.dataset import Dataset
from sidera.data.importing import import_log
from sidera.data.schema import build_dataset
from sidera.engine.export import export_events
from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import Events


def rows_of(dataset: Dataset, *columns: str) -> list[tuple[Any, ...]]:
    names = dataset.user_keys[dataset.event_users], dataset.item_keys[dataset.item_ids], dataset.times
    return list(
        zip(*(column.tolist() for column in (*names, *(dataset.feedback[name] for name in columns))), strict=True)
    )


def log(rows: list[tuple[Any, ...]], *columns: str, items: pa.Table | None = None) -> Dataset:
    names = ("user", "item", "time", *columns)
    return build_dataset("log", pa.table({n: [row[place] for row in rows] for place, n in enumerate(names)}), items)


MONDAY = [("ann", "cup", 10, True), ("ann", "tea", 20, False), ("bob", "cup", 15, True), ("bob", "cup", 15, True)]


def test_the_same_events_again_change_nothing(tmp_path: Path) -> None:
    log(MONDAY, "click").save(tmp_path / "data")
    before = {file: file.read_bytes() for file in sorted((tmp_path / "data").iterdir())}
    done = append_log(tmp_path / "data", log(MONDAY, "click"))
    assert not done
    assert done.held == 4
    assert before == {file: file.read_bytes() for file in sorted((tmp_path / "data").iterdir())}


def test_what_overlaps_is_held_once_and_what_is_twice_in_one_file_stays_twice() -> None:
    more = [("bob", "cup", 15, True), ("ann", "tea", 20, True), ("ann", "jug", 5, True), ("cat", "jug", 30, False),
            ("cat", "jug", 30, False)]  # fmt: skip
    grown, done = appended(log(MONDAY, "click"), log(more, "click"))
    assert (done.events, done.held, done.changed, done.late, done.users, done.items) == (3, 2, 1, 1, 1, 1)
    assert rows_of(grown, "click") == [
        ("ann", "jug", 5, True), ("ann", "cup", 10, True), ("ann", "tea", 20, False), ("bob", "cup", 15, True),
        ("bob", "cup", 15, True), ("cat", "jug", 30, False), ("cat", "jug", 30, False),
    ]  # fmt: skip
    assert grown.item_keys.tolist()[:2] == log(MONDAY, "click").item_keys.tolist(), "items keep their numbers"


@pytest.mark.parametrize("seed", range(5))
def test_a_log_in_overlapping_pieces_is_the_log(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = sorted({(f"u{rng.integers(6)}", f"i{rng.integers(9)}", int(rng.integers(40))) for _ in range(150)},
                  key=lambda row: row[2])  # fmt: skip
    whole = log(rows)
    grown = log(rows[:50])
    for start, end in ((40, 90), (0, 70), (90, len(rows)), (30, 100)):
        grown, _ = appended(grown, log(rows[start:end]))
    assert sorted(rows_of(grown)) == sorted(rows_of(whole))
    again, done = appended(grown, whole)
    assert not done
    assert again.digest == grown.digest


@pytest.mark.parametrize(
    ("columns", "words"),
    [((), "lack click"), (("like", "click"), "have also like"), (("seconds",), "lack click and have also seconds")],
)
def test_columns_that_changed_midway_are_an_error_that_names_them(columns: tuple[str, ...], words: str) -> None:
    rows = [("ann", "cup", 50, *([True] * len(columns)))]
    with pytest.raises(InputError, match=words):
        appended(log(MONDAY, "click"), log(rows, *columns))


def test_a_column_may_be_said_to_be_unknown() -> None:
    old = log([(*row, 4, 0) for row in MONDAY], "click", "stars", "request")
    grown, _ = appended(old, log([("ann", "cup", 50), ("ann", "cup", 60)]), lacks=("click", "stars", "request"))
    stars, requests = grown.feedback["stars"], grown.feedback["request"]
    at = [place for place, row in enumerate(rows_of(grown)) if row[2] >= 50]
    assert np.isnan(stars[at]).all()
    assert set(stars[np.isfinite(stars)]) == {4.0}
    assert len(set(requests[at].tolist()) | {0}) == 3, "each event is a request of its own"
    with pytest.raises(InputError, match="'click' of the new events holds"):
        appended(log(MONDAY, "click"), log([("ann", "cup", 50, 0.5)], "click"))


def test_a_folder_gets_slots_with_the_first_export_and_keeps_them() -> None:
    """What is not said to answer an exposure answers none: -1."""
    rows = [("ann", "jug", 40, True, 2), ("bob", "jug", 41, True, -1), ("bob", "cup", 15, True, 3)]
    exported = log(rows, "click", "slot")
    grown, done = appended(log(MONDAY, "click"), exported, exported=True)
    assert (done.events, done.held, done.changed, done.left_out) == (2, 1, 0, ())
    assert rows_of(grown, "slot") == [
        ("ann", "cup", 10, -1), ("ann", "tea", 20, -1), ("ann", "jug", 40, 2),
        ("bob", "cup", 15, -1), ("bob", "cup", 15, -1), ("bob", "jug", 41, -1),
    ]  # fmt: skip
    again, done = appended(grown, log([("cat", "tea", 50, False), ("ann", "jug", 40, True)], "click"))
    assert (done.events, done.held, done.changed) == (1, 1, 0)
    assert rows_of(again, "slot")[2] == ("ann", "jug", 40, 2)
    assert rows_of(again, "slot")[-1] == ("cat", "tea", 50, -1)
    with pytest.raises(InputError, match="have also slot"):
        appended(log(MONDAY, "click"), exported)  # a log of another kind, not an export


def test_items_keep_what_they_said_unless_something_new_is_said() -> None:
    told = {"key": ["cup", "tea"], "title": ["a cup", None], "tags": [["x"], None]}
    old = log(MONDAY, "click", items=pa.table(told))
    said = {"key": ["tea", "cup", "jug"], "title": ["a tea", None, "a jug"], "tags": ["y", None, None]}
    new = log([("ann", "jug", 70, True)], "click", items=pa.table(said))
    grown, done = appended(old, new)
    assert grown.items.select(["key", "title", "tags"]).to_pylist() == [
        {"key": "cup", "title": "a cup", "tags": ["x"]}, {"key": "tea", "title": "a tea", "tags": ["y"]},
        {"key": "jug", "title": "a jug", "tags": None},
    ]  # fmt: skip
    assert (done.items, done.items_described) == (1, 1)


def test_an_order_without_times_grows_by_nothing() -> None:
    ordered = build_dataset("log", pa.table({"user": ["a", "a"], "item": ["x", "y"], "position": [0, 1]}))
    with pytest.raises(InputError, match="has an order and no times"):
        appended(ordered, ordered)


# -- export ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> EmbeddedStore:
    opened = EmbeddedStore(tmp_path / "store", StoreConfig(durability="kernel"))
    for user, items, times, labels in (
        ("ann", ["cup", "tea", "cup"], [100, 200, 300], [1, 0, 1]), ("bob", ["tea", "jug"], [150, 90], [0, 1]),
    ):  # fmt: skip
        opened.append(user, Events.of(opened.numbers_of(items), times, labels, [5.0] * len(items)))
    return opened


SHOWN = {
    "request": ["r1", "r1", "r2", "r3", "r9"],
    "slot": [0, 1, 0, 0, 0],
    "user": ["ann", "ann", "ann", "bob", "cat"],
    "item": ["cup", "pot", "cup", "jug", "cup"],
    "time": [95, 95, 290, 95, 40],
    "click": [True, None, None, True, False],
    "watch_time": [5.0, None, None, 5.0, 1.0],
}


def shown_table() -> pa.Table:
    table = pa.table({**SHOWN, "propensity": pa.array([None] * 5, pa.float32())})
    return table.set_column(1, "slot", table["slot"].cast(pa.int16()))


def test_every_event_of_the_store_comes_out_once_in_order(tmp_path: Path, store: EmbeddedStore) -> None:
    done = export_events(store, ("click", "watch_time"), ("click",), tmp_path / "out")
    found = Dataset.load(tmp_path / "out")
    assert rows_of(found, "click", "watch_time") == [
        ("ann", "cup", 100, True, 5.0), ("ann", "tea", 200, False, 5.0), ("ann", "cup", 300, True, 5.0),
        ("bob", "jug", 90, True, 5.0), ("bob", "tea", 150, False, 5.0),
    ]  # fmt: skip
    assert (done.events, done.users, done.first, done.last) == (5, 2, 90, 300)
    part = export_events(store, ("click", "watch_time"), ("click",), tmp_path / "part", since=100, until=300)
    assert (part.events, part.first, part.last) == (3, 100, 200)
    with pytest.raises(InputError, match="no event from second 301"):
        export_events(store, ("click", "watch_time"), ("click",), tmp_path / "none", since=301)


def test_an_event_and_its_exposure_are_one_row(tmp_path: Path, store: EmbeddedStore) -> None:
    done = export_events(store, ("click", "watch_time"), ("click",), tmp_path / "out", exposures=shown_table())
    found = Dataset.load(tmp_path / "out")
    assert (done.exposures, done.answered, done.outcomes_alone, done.waiting) == (5, 3, 1, 2)
    rows = {row[:3]: row[3:] for row in rows_of(found, "click", "slot", "request")}
    assert len(rows) == found.num_events == 6, "nothing doubled, and the outcome without an event is there"
    assert rows["cat", "cup", 40][0] is False
    assert rows["ann", "cup", 100][1] == 0
    assert rows["ann", "tea", 200][1] == -1
    assert rows["ann", "cup", 300][2] != rows["ann", "cup", 100][2], "of another request"
    assert len({row[2] for row in rows.values()}) == 6


def test_the_shell_exports_and_appends_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    from sidera.data.tiny import checkerboard
    from sidera.engine.histories import SCHEMA

    data = tmp_path / "data"
    checkerboard().save(data)
    first = Dataset.load(data)
    with EmbeddedStore(tmp_path / "store", StoreConfig(durability="kernel")) as opened:
        end = int(first.times.max())
        opened.append(
            "new user", Events.of(opened.numbers_of([*first.item_keys[:3], "brand new"]), range(end, end + 4))
        )
        opened.append(str(first.user_keys[0]), Events.of(opened.numbers_of([first.item_keys[0]]), [end + 9]))
        opened.settled(SCHEMA, '{"columns": [], "labels": []}')
    assert main(["export-events", str(tmp_path / "store"), "--out", str(tmp_path / "exported")]) == 0
    for _ in range(2):
        assert main(["import", str(tmp_path / "exported"), "--append", str(data)]) == 0
        grown = Dataset.load(data)
        assert grown.num_events == first.num_events + 5
        assert grown.num_users == first.num_users + 1
        assert set(rows_of(first)) < set(rows_of(grown))
        assert grown.item_keys[-1] == "brand new"
    assert main(["import", str(tmp_path / "exported"), "--append", str(data), "--out", "x"]) == 2


def test_files_of_a_log_are_appended_with_the_flags_they_were_imported_with(tmp_path: Path) -> None:
    monday, tuesday = tmp_path / "monday.csv", tmp_path / "tuesday.csv"
    monday.write_text("uid,asin,ts,stars\na,x,1700000100,5\na,y,1700000200,4\nb,x,1700000150,3\n")
    tuesday.write_text("uid,asin,ts,stars\na,y,1700000200,4\nb,z,1700000400,5\n")
    import_log(monday, tmp_path / "data")
    assert main(["import", str(tuesday), "--append", str(tmp_path / "data")]) == 0
    assert [row[:3] for row in rows_of(Dataset.load(tmp_path / "data"))] == [
        ("a", "x", 1700000100), ("a", "y", 1700000200), ("b", "x", 1700000150), ("b", "z", 1700000400)
    ]  # fmt: skip
    other = tmp_path / "wednesday.csv"
    other.write_text("uid,asin,ts,stars,clicked\na,y,1700000900,4,1\n")
    kept = shutil.copytree(tmp_path / "data", tmp_path / "kept")
    assert main(["import", str(other), "--append", str(tmp_path / "data")]) == 2
    assert Dataset.load(kept).digest == Dataset.load(tmp_path / "data").digest
