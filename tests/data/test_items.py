"""The sub-table of a batch: each item once, whichever way it was found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.data.items import DENSE, ItemTable
from sidera.ops.columns import Column


def table_of(num_items: int) -> ItemTable:
    codes = np.stack([np.arange(num_items) % 7, np.arange(num_items) // 7], axis=1)
    return ItemTable(Column(codes.astype(np.int16)), {"kind": np.arange(num_items) % 5})


def check(table: ItemTable, columns: list[np.ndarray]) -> None:
    items, positions = table.distinct(*columns)
    ids = items.ids.numpy()
    assert (ids[1:] > ids[:-1]).all()
    for column, places in zip(columns, positions, strict=True):
        assert np.array_equal(ids[places.numpy()], column)
    assert np.array_equal(items.codes.numpy(), np.asarray(table.codes)[ids])
    assert np.array_equal(items.features["kind"].numpy(), np.asarray(table.features["kind"])[ids])
    assert items.codes.numpy().dtype == np.int64
    named = np.unique(np.concatenate(columns))
    if table.num_items > sum(map(len, columns)):
        assert np.array_equal(ids, named)  # no other item is carried along


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.sampled_from([1, 2, 30, 300, 5_000]),
    sizes=st.lists(st.sampled_from([0, 1, 2, 17, 40, 320]), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_positions_point_at_the_items_that_columns_name(num_items: int, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    check(table_of(num_items), [rng.integers(num_items, size=size) for size in sizes])


def test_few_ids_of_a_large_table_follow_a_small_tables() -> None:
    check(table_of(50), [np.array([3, 3, 1])])
    check(table_of(90_000), [np.array([88_000, 5, 88_000]), np.array([5])])
    check(table_of(50), [np.array([49])])


@pytest.mark.parametrize("count", [4, 100 // DENSE + 1, 100])
def test_threads_do_not_share_their_room(count: int) -> None:
    table, failures = table_of(100), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(200):
                check(table, [rng.integers(100, size=count)])
        except AssertionError as error:
            failures.append(error)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what a thread raised
    assert not failures
