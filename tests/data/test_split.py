"""Splits give the rows they promise, and a corrupted split does not pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidera.core import InputError
from sidera.data.config import DataConfig, make_split
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset
from sidera.data.split import EvalRows, LeakError, Split, check_leaks, item_popularity, leave_one_out, temporal
from sidera.data.tiny import tiny_log


def from_lengths(lengths: list[int], seed: int = 0, num_seconds: int = 40) -> Dataset:
    """Users of the given numbers of events, over few items and few distinct seconds (so ties and repeats abound)."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = rng.integers(0, 7, len(user))
    return build_dataset("x", pa.table({"user": user, "item": item, "time": rng.integers(0, num_seconds, len(user))}))


def test_leave_one_out_by_hand() -> None:
    dataset = build_dataset(
        "x",
        pa.table({"user": list("uuuuvvw"), "item": list("abcdabc"), "time": [1, 2, 3, 4, 1, 2, 1]}),
    )
    split = leave_one_out(dataset)
    assert split.train_ends.tolist() == [2, 6, 7]  # v and w have fewer than three events: all are trained on
    assert (split.valid.starts.tolist(), split.valid.ends.tolist()) == ([0], [2])
    assert (split.test.starts.tolist(), split.test.ends.tolist()) == ([0], [3])
    assert dataset.item_keys[split.valid.target_ids].tolist() == ["c"]
    assert dataset.item_keys[split.test.target_ids].tolist() == ["d"]
    assert dict(zip(dataset.item_keys, item_popularity(dataset, split), strict=True)) == {
        "a": 2,
        "b": 2,
        "c": 1,
        "d": 0,
    }


def test_temporal_by_hand() -> None:
    events = {
        "user": list("uuuvvvwwxx"),
        "item": list("abcabdcdab"),
        "time": [1, 5, 9, 2, 3, 8, 6, 8, 9, 9],
    }
    dataset = build_dataset("x", pa.table(events))
    split = temporal(dataset, valid_share=0.3, test_share=0.3)
    # sorted times 1 2 3 5 | 6 8 8 | 9 9 9
    assert split.cut_times == (6, 9)
    assert split.train_ends.tolist() == [2, 5, 6, 8]
    assert split.valid.ends.tolist() == [5, 7]  # v: d at 8; w: d at 8, whose history is its own event at 6
    assert split.valid.starts.tolist() == [3, 6]
    assert split.test.ends.tolist() == [2, 9]  # x asks for its second event of the same second, after the first
    assert split.num_without_history == (1, 1)  # w's first event, x's first event


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 99))
def test_leave_one_out_asks_each_long_user_twice(lengths: list[int], seed: int) -> None:
    dataset = from_lengths(lengths, seed)
    split = leave_one_out(dataset)
    check_leaks(dataset, split)
    long = np.flatnonzero(np.diff(dataset.offsets) >= 3)
    for rows, back in ((split.valid, 2), (split.test, 1)):
        assert rows.user_ids.tolist() == long.tolist()
        assert rows.ends.tolist() == (dataset.offsets[1:][long] - back).tolist()
    assert int((split.train_ends - dataset.offsets[:-1]).sum()) == dataset.num_events - 2 * len(long)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(0, 99), st.sampled_from([0.05, 0.2, 0.4]))
def test_temporal_puts_every_event_in_one_part(lengths: list[int], seed: int, share: float) -> None:
    dataset = from_lengths(lengths, seed)
    try:
        split = temporal(dataset, share, share)
    except InputError:
        with pytest.raises(InputError, match="would be empty"):  # ties at the cuts left a part empty
            temporal(dataset, share, share)
        return
    check_leaks(dataset, split)
    assert split.cut_times is not None
    num_train = int((split.train_ends - dataset.offsets[:-1]).sum())
    assert num_train == int((dataset.times < split.cut_times[0]).sum()) > 0
    assert num_train + len(split.valid) + len(split.test) + sum(split.num_without_history) == dataset.num_events


def _shift(rows: EvalRows, **shifts: int) -> EvalRows:
    return dataclasses.replace(rows, **{name: getattr(rows, name) + shift for name, shift in shifts.items()})


CORRUPTIONS: dict[str, tuple[Callable[[Dataset, Split], Split], str]] = {
    "train holds the validation target": (
        lambda _, split: dataclasses.replace(split, train_ends=split.train_ends + 1),
        "valid targets inside the train part",
    ),
    "train holds all": (
        lambda dataset, split: dataclasses.replace(split, train_ends=dataset.offsets[1:]),
        "inside the train part",
    ),
    "train of the next user": (
        lambda _, split: dataclasses.replace(split, train_ends=split.train_ends + 3),
        "leaves their own events",
    ),
    "history holds its target": (
        lambda _, split: dataclasses.replace(split, valid=_shift(split.valid, ends=1)),
        "target is not the event after",
    ),
    "history holds the last event": (
        lambda _, split: dataclasses.replace(split, test=_shift(split.test, ends=1)),
        "hold their user's last event",
    ),
    "history of another user": (
        lambda _, split: dataclasses.replace(split, test=split.test.take(np.arange(1, 9)), valid=_stolen(split)),
        "start at another user",
    ),
    "no history": (
        lambda _, split: dataclasses.replace(split, test=dataclasses.replace(split.test, starts=split.test.ends)),
        "without a history",
    ),
    "foreign target": (
        lambda _, split: dataclasses.replace(
            split, test=dataclasses.replace(split.test, target_ids=split.test.target_ids + 1)
        ),
        "target is not the event after",
    ),
    "asked twice": (
        lambda _, split: dataclasses.replace(split, test=split.test.take(np.array([0, 0]))),
        "asked for twice",
    ),
    "test is validation": (
        lambda _, split: dataclasses.replace(split, test=split.valid),
        "both validation and test",
    ),
    "validation is later than test": (
        lambda _, split: dataclasses.replace(split, valid=split.test, test=split.valid),
        "older than a validation target",
    ),
}


def _stolen(split: Split) -> EvalRows:
    """User 1's history begins inside user 0's events."""
    starts = split.valid.starts.copy()
    starts[1] -= 1
    return dataclasses.replace(split.valid, starts=starts)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_leave_one_out_is_refused(name: str) -> None:
    dataset = tiny_log(num_users=30, num_items=60)
    split = leave_one_out(dataset)
    check_leaks(dataset, split)
    corrupt, words = CORRUPTIONS[name]
    with pytest.raises(LeakError, match=words):
        check_leaks(dataset, corrupt(dataset, split))


def test_corrupted_temporal_is_refused() -> None:
    dataset = tiny_log(num_users=60, num_items=60)
    split = temporal(dataset)
    check_leaks(dataset, split)
    assert split.cut_times is not None
    valid_cut, test_cut = split.cut_times
    late = dataclasses.replace(split, cut_times=(valid_cut - 86_400, test_cut))
    with pytest.raises(LeakError, match="training events at or after the cut"):
        check_leaks(dataset, late)
    with pytest.raises(LeakError, match="valid targets outside"):
        check_leaks(dataset, dataclasses.replace(split, cut_times=(valid_cut, test_cut - 86_400)))
    with pytest.raises(LeakError, match="test targets before the cut"):
        check_leaks(dataset, dataclasses.replace(split, cut_times=(valid_cut, test_cut + 86_400)))
    # one training part grown past the cut, where no target stands in its way
    users = np.flatnonzero(dataset.times[dataset.offsets[:-1]] >= valid_cut)
    grown = split.train_ends.copy()
    grown[users[:1]] += 1
    with pytest.raises(LeakError, match="training events at or after the cut"):
        check_leaks(dataset, dataclasses.replace(split, train_ends=grown))


def test_unsorted_events_are_a_leak() -> None:
    dataset = tiny_log(num_users=10, num_items=60)
    times = dataset.times.copy()
    times[[0, 1]] = times[[1, 0]]
    with pytest.raises(LeakError, match="later one before"):
        check_leaks(dataclasses.replace(dataset, times=times), leave_one_out(dataset))


def test_make_split_checks_what_it_made(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny_log(num_users=10, num_items=60)
    leaky = dataclasses.replace(leave_one_out(dataset), train_ends=dataset.offsets[1:])
    monkeypatch.setattr("sidera.data.config.leave_one_out", lambda _, mask=None: leaky)
    with pytest.raises(LeakError):
        make_split(dataset)


def test_splits_that_cannot_be_made_are_refused() -> None:
    order_only = build_dataset("x", pa.table({"user": ["u", "u"], "item": ["a", "b"], "position": [0, 1]}))
    with pytest.raises(InputError, match=r"order, no times.*leave_one_out"):
        temporal(order_only)
    same_second = build_dataset("x", pa.table({"user": ["u", "u"], "item": ["a", "b"], "time": [5, 5]}))
    with pytest.raises(InputError, match="cannot be cut"):
        temporal(same_second)
    with pytest.raises(InputError, match="sum is below 1"):
        temporal(same_second, 0.5, 0.5)
    with pytest.raises(InputError, match="'random' is not known; allowed: leave_one_out, temporal"):
        make_split(same_second, DataConfig(split="random"))  # type: ignore[arg-type]


def test_short_users_make_no_rows() -> None:
    dataset = from_lengths([1, 2, 1])
    split = make_split(dataset)
    assert len(split.valid) == len(split.test) == 0
    assert split.train_ends.tolist() == dataset.offsets[1:].tolist()
