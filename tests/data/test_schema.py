"""What a log must look like, what is mended, what is refused."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sidera.core import InputError
from sidera.data.schema import build_dataset, with_text


def log(**columns: Any) -> pa.Table:
    base: dict[str, Any] = {"user": ["u", "u", "v"], "item": ["a", "b", "a"], "time": [10, 20, 15]}
    return pa.table({name: values for name, values in {**base, **columns}.items() if values is not None})


def test_events_are_grouped_by_user_in_order_of_time() -> None:
    dataset = build_dataset("x", log(user=["v", "u", "u"], item=["a", "b", "c"], time=[5, 9, 2]))
    assert dataset.user_keys.tolist() == ["v", "u"]
    assert dataset.offsets.tolist() == [0, 1, 3]
    assert dataset.item_keys[dataset.item_ids].tolist() == ["a", "c", "b"]
    assert dataset.times.tolist() == [5, 2, 9]
    assert dataset.notes == {"events_out_of_order": 1}


def test_interleaved_users_are_not_out_of_order() -> None:
    dataset = build_dataset("x", log(user=["u", "v", "u"], time=[1, 2, 3]))
    assert "events_out_of_order" not in dataset.notes


def test_position_breaks_ties_and_row_order_does_where_there_is_none() -> None:
    events = log(user=["u"] * 3, item=["a", "b", "c"], time=[7, 7, 7])
    plain = build_dataset("x", events)
    assert plain.item_keys[plain.item_ids].tolist() == ["a", "b", "c"]
    placed = build_dataset("x", events.append_column("position", pa.array([2, 0, 1])))
    assert placed.item_keys[placed.item_ids].tolist() == ["b", "c", "a"]
    assert "position" not in placed.feedback


def test_time_goes_before_position() -> None:
    dataset = build_dataset("x", log(user=["u"] * 3, item=["a", "b", "c"], time=[3, 2, 1], position=[0, 1, 2]))
    assert dataset.item_keys[dataset.item_ids].tolist() == ["c", "b", "a"]


def test_without_times_the_position_is_the_order() -> None:
    dataset = build_dataset("x", log(user=["u"] * 3, item=["a", "b", "c"], time=None, position=[2, 0, 1]))
    assert dataset.time_kind == "order"
    assert dataset.item_keys[dataset.item_ids].tolist() == ["b", "c", "a"]
    assert dataset.times.tolist() == [0, 1, 2]


def test_milliseconds_when_said_so_keep_their_order_inside_a_second() -> None:
    stamps = [1_700_000_000_900, 1_700_000_000_100, 1_700_000_001_000]
    dataset = build_dataset("x", log(user=["u"] * 3, item=["a", "b", "c"], time=stamps), time_unit="ms")
    assert dataset.times.tolist() == [1_700_000_000, 1_700_000_000, 1_700_000_001]
    assert dataset.item_keys[dataset.item_ids].tolist() == ["b", "a", "c"]


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize(
    "kind", [pa.timestamp("ns"), pa.timestamp("s"), pa.timestamp("us", tz="UTC"), pa.date32()], ids=str
)
def test_dates_become_unix_seconds(kind: pa.DataType, unit: str) -> None:
    days = [datetime.datetime(2014, 3, day, tzinfo=datetime.UTC) for day in (1, 2, 3)]
    naive = [day.replace(tzinfo=None) for day in days]
    values = naive if kind != pa.date32() else [day.date() for day in naive]
    dataset = build_dataset("x", log(user=["u"] * 3, time=pa.array(values, type=kind)), time_unit=unit)
    assert dataset.times.tolist() == [int(day.timestamp()) for day in days]


@pytest.mark.parametrize(
    ("time", "words"),
    [
        ([10, None, 15], ["row 1 has no time", "1 rows"]),
        ([10, -3, 15], ["time -3", "row 1", "negative"]),
        ([10.0, float("nan"), 15.0], ["time nan", "row 1", "finite"]),
        ([10, 1_700_000_000_000, 15], ["time 1700000000000", "row 1", "--time-unit ms", "1000"]),
        ([10, 10**16, 15], [str(10**16), "--time-unit us"]),
        ([10, 3e20, 15], ["3000", "give unix seconds"]),
        (["10", "soon", "15"], ["'soon'", "ISO date"]),
        ([True, False, True], ["bool"]),
        (pa.nulls(3), ["row 0 has no time", "3 rows"]),
        (None, ["no column 'time'", "found: user, item", "--position"]),
    ],
)
def test_bad_times_are_refused(time: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        build_dataset("x", log(time=time))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user": None}, ["no column 'user'", "found: item, time", "--user"]),
        ({"item": None}, ["no column 'item'"]),
        ({"item": pa.nulls(3)}, ["row 0 has no item"]),
        ({"user": ["u", None, "v"]}, ["row 1 has no user"]),
        ({"item": ["a", "b", ""]}, ["row 2 has no item"]),
        ({"item": [1.0, 2.5, 3.0]}, ["'item'", "double", "text or integers"]),
        ({"position": [0, -1, 0]}, ["position -1"]),
    ],
)
def test_bad_columns_are_refused(columns: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        build_dataset("x", log(**columns))
    assert all(word in str(caught.value) for word in words), caught.value


def test_empty_log_and_unknown_time_unit_are_refused() -> None:
    with pytest.raises(InputError, match="log 'x' is empty"):
        build_dataset("x", log().slice(0, 0))
    with pytest.raises(InputError, match=r"'hours' is not known; allowed: s, ms"):
        build_dataset("x", log(), time_unit="hours")


@pytest.mark.parametrize("table", ["items", "users"])
def test_duplicate_keys_are_refused(table: str) -> None:
    with pytest.raises(InputError, match=rf"{table} table names 1 keys more than once, 'a' 2 times"):
        build_dataset("x", log(), **{table: pa.table({"key": ["a", "b", "a"]})})


def test_items_keep_their_order_and_unlisted_ones_follow_without_content() -> None:
    items = pa.table({"title": ["Never seen", "The B"], "key": ["z", "b"]})
    dataset = build_dataset("x", log(item=["c", "b", "a"]), items)
    assert dataset.item_keys.tolist() == ["z", "b", "a", "c"]
    assert dataset.items["title"].to_pylist() == ["Never seen", "The B", None, None]
    assert dataset.items["text"].to_pylist() == ["Never seen", "The B", None, None]
    assert dataset.notes == {"items_without_content": 2}
    with pytest.raises(InputError, match=r"2 items .* first is 'a'.*--strict "):
        build_dataset("x", log(item=["c", "b", "a"]), items, strict_items=True)


def test_without_an_items_table_keys_are_sorted_so_row_order_does_not_name_items() -> None:
    one, two = build_dataset("x", log(item=["c", "b", "a"])), build_dataset("x", log(item=["a", "c", "b"]))
    assert one.item_keys.tolist() == two.item_keys.tolist() == ["a", "b", "c"]
    assert one.notes == {}


def test_users_table_is_aligned_and_idle_users_are_counted() -> None:
    users = pa.table({"key": ["v", "idle", "u"], "age": [30, 40, 50]})
    dataset = build_dataset("x", log(), users=users)
    assert dataset.users.to_pylist() == [{"key": "u", "age": 50}, {"key": "v", "age": 30}]
    assert dataset.notes == {"users_without_events": 1}
    partial = build_dataset("x", log(), users=users.slice(0, 1))
    assert partial.users["age"].to_pylist() == [None, 30]


def test_numeric_columns_are_feedback_and_follow_their_events() -> None:
    events = log(
        user=["u"] * 3, time=[3, 1, 2], rating=[30, 10, None], liked=[True, False, True], place=["x", "y", "z"]
    )
    dataset = build_dataset("x", events)
    np.testing.assert_equal(dataset.feedback["rating"], np.array([10.0, np.nan, 30.0]))
    assert dataset.feedback["liked"].tolist() == [False, True, True]
    assert dataset.notes["columns_dropped"] == ["place"]


@pytest.mark.parametrize("item", [["a"], ["a", "a", "a"]], ids=["one event", "one item, three times"])
def test_one_user_and_one_item_load(item: list[str]) -> None:
    dataset = build_dataset("x", pa.table({"user": ["u"] * len(item), "item": item, "time": range(len(item))}))
    assert (dataset.num_users, dataset.num_items, dataset.num_events) == (1, 1, len(item))


def test_integer_and_category_keys_become_text() -> None:
    events = log(user=pa.array(["u", "u", "v"]).dictionary_encode(), item=[7, 12, 7])
    dataset = build_dataset("x", events, pa.table({"key": [12, 7]}))
    assert dataset.item_keys.tolist() == ["12", "7"]
    assert dataset.item_ids.tolist() == [1, 0, 1]


def test_text_is_made_of_the_fields_known() -> None:
    items = pa.table(
        {
            "key": ["a", "b", "c"],
            "title": ["Nail Lacquer.", None, None],
            "brand": ["OPI", "Ghost", None],
            "categories": [["Makeup", "Nails"], [], None],
        }
    )
    texts = with_text(items)["text"].to_pylist()
    assert texts == ["Nail Lacquer. Brand: OPI. Categories: Makeup, Nails", "Brand: Ghost", None]
    assert with_text(items, ["brand"])["text"].to_pylist() == ["Brand: OPI", "Brand: Ghost", None]
    given = items.append_column("text", pa.array(["x", "y", "z"]))
    assert with_text(given)["text"].to_pylist() == ["x", "y", "z"]
    assert with_text(given, ["brand"])["text"].to_pylist() == ["Brand: OPI", "Brand: Ghost", None]
    with pytest.raises(InputError, match="'colour' is not in the items table; allowed: key, title"):
        with_text(items, ["colour"])
