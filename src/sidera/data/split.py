"""Splits: which events may be learned from, and which questions are asked of the model.

* ``leave_one_out``: last event of a user = test, the one before = validation, the rest = train (the protocol of SASRec,
  S3-Rec, TIGER). A user with fewer than 3 events trains only.
* ``temporal``: two moments cut the whole log. Every event in the validation (test) window is a row whose history is
  all that its user did before it, in (time, position) order. Events whose user did nothing before have no history and
  make no row; ``num_without_history`` counts them. Rows whose item was never trained on (cold) stay.

A row's target is the event at position ``ends``, the first one that its history leaves out. That makes leaks a matter
of positions, so an item that a user meets twice is not mistaken for one. :func:`check_leaks` always runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sidera.core import InputError
from sidera.data.dataset import Dataset

Fit = Literal["train", "train+valid"]  # the events that a model has learned from: tables name it beside every figure


class LeakError(AssertionError):
    """A split lets the model see what it is asked for. Never a matter of taste: the run stops."""


@dataclass(frozen=True)
class EvalRows:
    """R questions: what comes after ``item_ids[starts:ends]`` of this user? The answer is ``target_ids``."""

    user_ids: np.ndarray  # (R,) int64
    starts: np.ndarray  # (R,) int64, absolute event positions
    ends: np.ndarray  # (R,) int64
    target_ids: np.ndarray  # (R,) int64

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, rows: np.ndarray) -> EvalRows:
        """The rows that an index or mask selects."""
        return EvalRows(self.user_ids[rows], self.starts[rows], self.ends[rows], self.target_ids[rows])


@dataclass(frozen=True)
class Split:
    name: str
    train_ends: np.ndarray  # (U,) int64: training events of user u are item_ids[offsets[u]:train_ends[u]]
    valid: EvalRows
    test: EvalRows
    cut_times: tuple[int, int] | None = None  # temporal: first second of the validation and of the test window
    num_without_history: tuple[int, int] = (0, 0)  # temporal: window events that make no row (valid, test)

    def keep(self, kept_mask: np.ndarray) -> Split:
        """The same questions over ``dataset.keep(kept_mask)``; every target must be kept."""
        places = np.concatenate([[0], np.cumsum(kept_mask)]).astype(np.int64)  # old position -> new one

        def rows(old: EvalRows) -> EvalRows:
            return EvalRows(old.user_ids, places[old.starts], places[old.ends], old.target_ids)

        return replace(self, train_ends=places[self.train_ends], valid=rows(self.valid), test=rows(self.test))

    def of_users(self, dataset: Dataset, user_mask: np.ndarray) -> Split:
        """Only these users train and are asked; the others' events stay where they are and teach nothing."""

        def rows(old: EvalRows) -> EvalRows:
            return old.take(user_mask[old.user_ids])

        train_ends = np.where(user_mask, self.train_ends, dataset.offsets[:-1])
        return replace(self, train_ends=train_ends, valid=rows(self.valid), test=rows(self.test))


def user_groups(user_keys: Sequence[str] | np.ndarray, shares: Sequence[float], salt: str = "") -> np.ndarray:
    """(U,) int64: the group of each user, ``shares`` of them in each; decided by the key alone, so that a user stays
    in its group whatever else is in the log. Another ``salt`` is another division."""
    if not len(shares) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"shares of users {list(shares)}", allowed="numbers above 0 whose sum is 1")
    hashes = (hashlib.blake2b(f"{salt}:{key}".encode(), digest_size=8).digest() for key in user_keys)
    places = np.fromiter((int.from_bytes(word, "big") / 2**64 for word in hashes), np.float64, count=len(user_keys))
    return np.minimum(np.searchsorted(np.cumsum(shares), places, side="right"), len(shares) - 1)


def leave_one_out(dataset: Dataset, positive_mask: np.ndarray | None = None) -> Split:
    """``positive_mask`` (E,): events that may be asked for (all); a user's last two of them are, histories hold all."""
    positive = np.arange(dataset.num_events) if positive_mask is None else np.flatnonzero(positive_mask)
    ends = np.searchsorted(positive, dataset.offsets[1:])  # (U,) in ``positive``
    asked = np.flatnonzero(ends - np.searchsorted(positive, dataset.offsets[:-1]) >= 3)  # users with enough of them
    valid, test = positive[ends[asked] - 2], positive[ends[asked] - 1]
    train_ends = dataset.offsets[1:].copy()
    train_ends[asked] = valid
    return Split("leave_one_out", train_ends, _rows(dataset, asked, valid), _rows(dataset, asked, test))


def temporal(
    dataset: Dataset, valid_share: float = 0.1, test_share: float = 0.1, positive_mask: np.ndarray | None = None
) -> Split:
    """Cut the log at two moments so that the windows hold about these shares of all events.

    Events of the cutting second go to the later part: with day-resolution times a window can grow by a whole day.
    Only events of ``positive_mask`` (E,) are asked for.
    """
    if dataset.time_kind != "seconds":
        raise InputError(
            f"data set {dataset.name!r} publishes an order, no times: it cannot be cut by time",
            allowed="split = 'leave_one_out'",
        )
    shares_allowed = "numbers above 0 whose sum is below 1"
    if not (valid_share > 0 and test_share > 0 and valid_share + test_share < 1):
        raise InputError(f"valid_share = {valid_share}, test_share = {test_share}", allowed=shares_allowed)
    by_time = np.sort(dataset.times)
    num = dataset.num_events
    num_test = max(1, round(num * test_share))
    num_valid = max(1, round(num * valid_share))
    test_cut = int(by_time[max(0, num - num_test)])
    valid_cut = int(by_time[max(0, num - num_test - num_valid)])
    if not by_time[0] < valid_cut < test_cut:
        raise InputError(
            f"{num} events from second {by_time[0]} to {by_time[-1]} cannot be cut into train, validation and test: "
            "a part would be empty",
            fix="use split = 'leave_one_out' or larger shares",
        )
    before_valid = np.concatenate([[0], np.cumsum(dataset.times < valid_cut)])  # (E+1,)
    train_ends = dataset.offsets[:-1] + before_valid[dataset.offsets[1:]] - before_valid[dataset.offsets[:-1]]
    positive = np.ones(num, dtype=bool) if positive_mask is None else positive_mask.astype(bool)
    before = np.concatenate([[0], np.cumsum(positive)])  # (E+1,) positives so far
    has_history = before[:-1] > before[dataset.offsets[dataset.event_users]]  # the user did something positive before
    windows = (
        positive & (dataset.times >= valid_cut) & (dataset.times < test_cut),
        positive & (dataset.times >= test_cut),
    )
    valid, test = (np.flatnonzero(window & has_history) for window in windows)
    return Split(
        name="temporal",
        train_ends=train_ends,
        valid=_rows(dataset, dataset.event_users[valid], valid),
        test=_rows(dataset, dataset.event_users[test], test),
        cut_times=(valid_cut, test_cut),
        num_without_history=(int((windows[0] & ~has_history).sum()), int((windows[1] & ~has_history).sum())),
    )


def train_item_ids(dataset: Dataset, split: Split) -> np.ndarray:
    """The item of every training event, by user, oldest first."""
    position = np.arange(dataset.num_events)
    return dataset.item_ids[position < split.train_ends[dataset.event_users]]


def train_sequences(dataset: Dataset, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(item ids, offsets (U + 1,)) of every user's training events."""
    lengths = split.train_ends - dataset.offsets[:-1]
    return train_item_ids(dataset, split), np.concatenate([[0], np.cumsum(lengths)])


def fitted_split(dataset: Dataset, split: Split, fit: Fit) -> Split:
    """The split whose training part is what a model of this ``fit`` learns from.

    "train+valid": every event before a user's test target, or before the test window; the validation rows are then no
    questions any more. InputError without validation rows; LeakError should it reach a test target.
    """
    if fit == "train":
        return split
    if not len(split.valid):
        raise InputError(
            f"[fit] refit = true, but {split.name!r} of data set {dataset.name!r} has no validation rows to choose by",
            fix="--set fit.refit=false, or give a log in which users have 4 or more events",
        )
    wider, _ = window(dataset, split, "valid")
    cuts = None if split.cut_times is None else (split.cut_times[1], split.cut_times[1])
    fitted = replace(wider, valid=split.valid.take(np.empty(0, dtype=np.int64)), cut_times=cuts)
    check_leaks(dataset, fitted)
    return fitted


def fitted_sequences(dataset: Dataset, split: Split, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """(item ids, offsets (U + 1,)) of every user's events that a model of this ``fit`` learns from."""
    return train_sequences(dataset, fitted_split(dataset, split, fit))


def item_popularity(dataset: Dataset, split: Split) -> np.ndarray:
    """(N,) int64: training events per item."""
    return np.bincount(train_item_ids(dataset, split), minlength=dataset.num_items).astype(np.int64)


def repeat_share(dataset: Dataset, split: Split) -> float:
    """Share of the training events, a user's first one aside, that came back to an item of the same user."""
    trained_mask = np.arange(dataset.num_events) < split.train_ends[dataset.event_users]
    users = dataset.event_users[trained_mask]
    pairs = np.unique(users * dataset.num_items + dataset.item_ids[trained_mask])
    later = len(users) - len(np.unique(users))
    return float((len(users) - len(pairs)) / later) if later else 0.0


def window(dataset: Dataset, split: Split, which: Literal["valid", "test"]) -> tuple[Split, np.ndarray]:
    """Every event of a part, whatever came of it: (the split whose training part reaches to that part's end, a mask
    (E,) of the part's events). Rankers are measured on these, with the histories before them.

    Leave-one-out: a user's validation part begins with the validation target and ends before the test target, with
    which the test part begins; users who are not asked have neither.
    """
    if split.cut_times is not None:
        before = np.concatenate([[0], np.cumsum(dataset.times < split.cut_times[1])])
        valid_ends = dataset.offsets[:-1] + before[dataset.offsets[1:]] - before[dataset.offsets[:-1]]
    else:
        valid_ends = split.train_ends.copy()
        valid_ends[split.test.user_ids] = split.test.ends
    low, high = (split.train_ends, valid_ends) if which == "valid" else (valid_ends, dataset.offsets[1:])
    if which == "test" and split.cut_times is None:
        high = np.where(np.isin(np.arange(dataset.num_users), split.test.user_ids), high, low)
    position, users = np.arange(dataset.num_events), dataset.event_users
    return replace(split, train_ends=high), (position >= low[users]) & (position < high[users])


def check_leaks(dataset: Dataset, split: Split) -> None:
    """Raise LeakError when training or a history reaches an event that is asked for, or the future."""
    inside = dataset.event_users[1:] == dataset.event_users[:-1]
    _refuse(inside & (np.diff(dataset.times) < 0), "events whose user did a later one before them")
    first, last = dataset.offsets[:-1], dataset.offsets[1:]
    _refuse((split.train_ends < first) | (split.train_ends > last), "users whose train part leaves their own events")
    for part, rows in (("valid", split.valid), ("test", split.test)):
        mine = first[rows.user_ids], last[rows.user_ids]
        _refuse(rows.starts < mine[0], f"{part} histories that start at another user")
        _refuse(rows.starts >= rows.ends, f"{part} rows without a history")
        _refuse(rows.ends >= mine[1], f"{part} histories that hold their user's last event, the target among them")
        _refuse(dataset.item_ids[rows.ends] != rows.target_ids, f"{part} rows whose target is not the event after")
        _refuse(rows.ends < split.train_ends[rows.user_ids], f"{part} targets inside the train part")
        _refuse(_repeats(rows.ends), f"{part} targets asked for twice")
    _refuse(np.isin(split.valid.ends, split.test.ends), "events that are both validation and test targets")
    last_valid = np.full(dataset.num_users, -1, dtype=np.int64)
    np.maximum.at(last_valid, split.valid.user_ids, split.valid.ends)
    _refuse(split.test.ends < last_valid[split.test.user_ids], "test targets older than a validation target")
    if split.cut_times is not None:
        _check_cuts(dataset, split, *split.cut_times)


def _check_cuts(dataset: Dataset, split: Split, valid_cut: int, test_cut: int) -> None:
    trained = np.arange(dataset.num_events) < split.train_ends[dataset.event_users]
    _refuse(trained & (dataset.times >= valid_cut), f"training events at or after the cut ({valid_cut})")
    valid, test = dataset.times[split.valid.ends], dataset.times[split.test.ends]
    _refuse((valid < valid_cut) | (valid >= test_cut), f"valid targets outside {valid_cut}..{test_cut}")
    _refuse(test < test_cut, f"test targets before the cut ({test_cut})")


def _rows(dataset: Dataset, user_ids: np.ndarray, targets: np.ndarray) -> EvalRows:
    """Rows that ask for the events at positions ``targets``, with all earlier events of the user as history."""
    return EvalRows(user_ids.astype(np.int64), dataset.offsets[user_ids], targets, dataset.item_ids[targets])


def _repeats(values: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    return ordered[1:] == ordered[:-1]


def _refuse(bad_mask: np.ndarray, what: str) -> None:
    if bad_mask.any():
        raise LeakError(f"leak: {int(bad_mask.sum())} {what} (first at {int(np.argmax(bad_mask))})")
