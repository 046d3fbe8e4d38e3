"""Swing: the streamed sums equal the formula read aloud, on any cut; caps keep what they say; no later event enters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sidera.catalog import swing as module
from sidera.catalog.swing import events_for_swing, swing, thin
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset
from sidera.data.split import LeakError, leave_one_out

Events = tuple[np.ndarray, np.ndarray]


def looped_swing(users: np.ndarray, items: np.ndarray, alpha: float = 1.0) -> dict[tuple[int, int], float]:
    """The reference of :func:`swing`: the formula read aloud, on an already thinned log. (i, j) -> similarity."""
    items_of: dict[int, set[int]] = {}
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        items_of.setdefault(user, set()).add(item)
    found: dict[tuple[int, int], float] = {}
    everything = sorted(set(items.tolist()))
    for i in everything:
        for j in everything:
            both = [user for user, mine in items_of.items() if i in mine and j in mine]
            total = 0.0
            for u in both:
                for v in both:
                    if u != v:
                        weight = (len(items_of[u]) * len(items_of[v])) ** -0.5
                        total += weight / (alpha + len(items_of[u] & items_of[v]))
            if total and i != j:
                found[i, j] = total
    return found


def log(num_users: int = 30, num_items: int = 25, num_events: int = 300, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    return np.sort(rng.integers(0, num_users, num_events)), rng.integers(0, num_items, num_events)


def as_pairs(found: module.Neighbours) -> dict[tuple[int, int], float]:
    rows, places = np.nonzero(found.item_ids >= 0)
    return {
        (int(row), int(found.item_ids[row, place])): float(found.scores[row, place])
        for row, place in zip(rows, places, strict=True)
    }


@pytest.mark.parametrize(("alpha", "max_items", "max_users"), [(1.0, 100, 100), (0.3, 8, 9)])
@pytest.mark.parametrize("block", [50, 8_000_000])
def test_streamed_equals_the_formula(
    alpha: float, max_items: int, max_users: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_TRIPLES", block)
    monkeypatch.setattr(module, "PIECE", max(block // 10, 7))
    users, items = log()
    expected = looped_swing(*thin(users, items, max_items=max_items, max_users=max_users), alpha=alpha)
    found = swing(users, items, 25, count=24, alpha=alpha, max_items=max_items, max_users=max_users)
    assert as_pairs(found) == pytest.approx(expected, rel=1e-5)
    assert len(expected) > 100
    assert (np.diff(found.scores) <= 0).all()


def test_only_the_best_are_kept_and_ties_go_to_the_smaller_number() -> None:
    users = np.repeat([0, 1, 2], 3)
    items = np.array([5, 2, 9, 2, 5, 9, 2, 5, 9])  # three people with the same three items: all alike
    found = swing(users, items, 10, count=1)
    assert found.item_ids[[2, 5, 9], 0].tolist() == [5, 2, 2]
    assert (found.item_ids[[0, 1, 3]] == -1).all()


def test_people_who_agree_on_little_else_say_more() -> None:
    # users 0, 1 share items 0, 1 only; users 2, 3 share 2, 3 and four more
    items_of = [[0, 1, 20, 21, 22, 23], [0, 1, 24, 25, 26, 27], [2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7]]
    users, items = np.repeat(np.arange(4), 6), np.concatenate(items_of)
    found = swing(users, items, 28)
    assert found.scores[0, 0] == pytest.approx(2 / 6 / (1 + 2))
    assert found.scores[2, 0] == pytest.approx(2 / 6 / (1 + 6))
    assert found.similarity(np.array([0, 0, 2]), np.array([1, 2, 9])).tolist() == [found.scores[0, 0], 0, 0]


def test_caps_keep_the_newest_items_and_a_lot_of_users() -> None:
    users = np.concatenate([np.zeros(6, np.int64), np.arange(1, 9)])
    items = np.concatenate([[4, 5, 6, 4, 7, 8], np.full(8, 8)])  # item 4 comes again, later than 6
    kept_users, kept_items = thin(users, items, max_items=3, max_users=100)
    assert kept_items[kept_users == 0].tolist() == [4, 7, 8]
    kept_users, kept_items = thin(users, items, max_items=9, max_users=4)
    assert (kept_items == 8).sum() == 4
    assert (kept_items != 8).sum() == 4
    again = thin(users, items, max_items=9, max_users=4)
    assert np.array_equal(again[0], kept_users)


def test_an_empty_log_has_no_neighbours() -> None:
    empty = np.empty(0, np.int64)
    assert (swing(empty, empty, 3).item_ids == -1).all()


def small_dataset() -> Dataset:
    events = pa.table(
        {
            "user": ["a"] * 4 + ["b"] * 4,
            "item": ["i", "j", "k", "l"] * 2,
            "time": [1, 2, 3, 4] * 2,
            "click": [True, False, True, True] * 2,
        }
    )
    return build_dataset("small", events)


def test_later_events_do_not_enter_and_leaks_are_refused() -> None:
    dataset = small_dataset()
    split = leave_one_out(dataset)
    users, items = events_for_swing(dataset, split)
    assert items.tolist() == [0, 1, 0, 1]
    assert users.tolist() == [0, 0, 1, 1]
    with pytest.raises(LeakError):
        events_for_swing(dataset, replace(split, train_ends=dataset.offsets[1:].copy()))


def test_positives_are_chosen_by_a_column() -> None:
    dataset = small_dataset()
    assert events_for_swing(dataset, leave_one_out(dataset), "click")[1].tolist() == [0, 0]
    with pytest.raises(InputError, match="no feedback column 'like'"):
        events_for_swing(dataset, leave_one_out(dataset), "like")


@pytest.mark.parametrize("wrong", [{"count": 0}, {"alpha": 0.0}, {"max_items": 0}, {"max_users": -1}])
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        swing(*log(), 25, **wrong)  # type: ignore[arg-type]
