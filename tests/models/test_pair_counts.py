"""Counts of pairs against a loop, and what a history votes for against the formula."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sidera.models.retrievers.pair_counts import KINDS, LONG_WINDOW, SHARE_SCALE, VOTES, PairCounts, kind_weights

ITEMS = 30


def sequences(seed: int = 0, users: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, users)
    return rng.zipf(1.4, lengths.sum()) % ITEMS, np.concatenate([[0], np.cumsum(lengths)])


def slow_counts(item_ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(KINDS, N, N)"""
    found = np.zeros((len(KINDS), ITEMS, ITEMS))
    for place, kind in enumerate(KINDS):
        forward, backward = kind_weights(kind)
        for begin, end in pairwise(offsets.tolist()):
            for i in range(begin, end):
                for j in range(begin, end):
                    if i == j or (kind == "together" and item_ids[i] == item_ids[j]):
                        continue
                    weights, steps = (forward, j - i) if j > i else (backward, i - j)
                    if steps <= len(weights):
                        found[place, item_ids[i], item_ids[j]] += weights[steps - 1]
    return found


def dense(counts: PairCounts) -> np.ndarray:
    found = np.zeros((len(KINDS), ITEMS, ITEMS))
    for left in range(ITEMS):
        row = slice(int(counts.begins[left]), int(counts.ends[left]))
        found[:, left, counts.right_ids[row].numpy()] = counts.counts[row].numpy().T
    return found


def test_counts_are_those_of_a_loop() -> None:
    item_ids, offsets = sequences()
    counts = PairCounts.of(item_ids, offsets, ITEMS, neighbours=ITEMS)
    np.testing.assert_allclose(dense(counts), slow_counts(item_ids, offsets), rtol=1e-5)
    assert counts.popularity.tolist() == np.bincount(item_ids, minlength=ITEMS).tolist()


def test_the_best_pairs_are_kept() -> None:
    item_ids, offsets = sequences()
    whole, few = (dense(PairCounts.of(item_ids, offsets, ITEMS, neighbours=n)) for n in (ITEMS, 4))
    worth = whole[KINDS.index("near")] / np.sqrt(np.bincount(item_ids, minlength=ITEMS).clip(min=1))
    for left in range(ITEMS):
        kept = np.flatnonzero(few[:, left].any(0))
        assert len(kept) == min(4, (worth[left] > 0).sum())
        left_out = np.setdiff1d(np.arange(ITEMS), kept)
        assert worth[left, kept].min(initial=np.inf) >= worth[left, left_out].max() - 1e-6
        np.testing.assert_array_equal(few[:, left, kept], whole[:, left, kept])


def test_votes_follow_the_formula() -> None:
    item_ids, offsets = sequences()
    counts, table = PairCounts.of(item_ids, offsets, ITEMS, neighbours=ITEMS), slow_counts(item_ids, offsets)
    popularity = np.bincount(item_ids, minlength=ITEMS)
    share = popularity.clip(min=1) / popularity.sum()
    histories = [[3, 1, 4, 1], [2], [7, ITEMS + 1, 7]]  # the last knows an item that nothing was counted of
    span, history = ITEMS + 5, 3
    rows = np.array([row for row, one in enumerate(histories) for _ in one])
    items = np.array([item for one in histories for item in one])
    ages = np.array([len(one) - 1 - place for one in histories for place in range(len(one))])
    keys, votes = counts.votes(items, rows, ages, span, history)
    assert keys.tolist() == sorted(set(keys.tolist()))
    for row, one in enumerate(histories):
        expected = np.zeros((span, len(VOTES)))
        for age, item in enumerate(one[::-1][:history]):
            if item >= ITEMS:
                continue
            for place, (kind, fading) in enumerate(VOTES.values()):
                count = table[KINDS.index(kind), item]
                if kind == "together":
                    value = count / np.sqrt((popularity[item] + 1) * (popularity + 1))
                else:
                    value = np.log1p(count / (SHARE_SCALE * share))
                expected[:ITEMS, place] += value * (float(age == 0) if fading is None else fading**age)
        found = np.zeros_like(expected)
        mine = (keys // span) == row
        found[keys[mine] % span] = votes[mine]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert set(one) <= set((keys[mine] % span).tolist()), "an event names its own item"
    weights = np.random.default_rng(0).random((len(items), len(VOTES))).astype(np.float32)
    owners, right, sums = counts.vote_sums(items, ages, weights, history)
    weighed = np.zeros(len(items))
    np.add.at(weighed, owners, sums)
    for event in range(len(items)):
        alone = counts.votes(items[event : event + 1], rows[:1] * 0, ages[event : event + 1], span, history)
        np.testing.assert_allclose(weighed[event], (alone[1] @ weights[event]).sum(), rtol=1e-4, atol=1e-6)
    assert set(right.tolist()) <= set((keys % span).tolist())


@pytest.mark.parametrize("item_ids", [[], [0], [0, 0]])
def test_logs_without_pairs_are_counted_too(item_ids: list[int]) -> None:
    counts = PairCounts.of(np.array(item_ids, np.int64), np.array([0, len(item_ids)]), 2, neighbours=3)
    keys, votes = counts.votes(*(np.zeros(1, np.int64),) * 3, 2, 5)
    assert keys.tolist() == [0]
    assert np.isfinite(votes).all()


def test_counts_follow_events_as_if_all_had_been_counted_at_once() -> None:
    item_ids, offsets = sequences()
    item_ids = np.where(item_ids == ITEMS - 1, 0, item_ids)
    item_ids[offsets[1:] - 1] = ITEMS - 1  # an item that nothing was counted of comes last, for everybody
    rng, lengths = np.random.default_rng(3), np.diff(offsets)
    num_new = np.minimum(rng.integers(1, 4, len(lengths)), lengths)
    ages = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(item_ids))
    old_mask = ages >= np.repeat(num_new, lengths)
    old = PairCounts.of(item_ids[old_mask], np.concatenate([[0], np.cumsum(lengths - num_new)]), ITEMS - 1, ITEMS)
    recent = ages < np.repeat(num_new, lengths) + LONG_WINDOW  # what the counts have to be shown
    recent &= np.repeat(num_new, lengths) > 0
    shown = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[recent], minlength=len(lengths))
    new = old.followed(item_ids[recent], np.concatenate([[0], np.cumsum(shown)]), num_new, ITEMS)
    np.testing.assert_allclose(dense(new), slow_counts(item_ids, offsets), rtol=1e-4, atol=1e-4)
    assert new.popularity.tolist() == np.bincount(item_ids, minlength=ITEMS).tolist()
    histories = (np.array([1, 2, 3]), np.array([0, 0, 0]), np.array([2, 1, 0]))
    whole = PairCounts.of(item_ids, offsets, ITEMS, ITEMS)
    for one, other in zip(new.votes(*histories, ITEMS, 9), whole.votes(*histories, ITEMS, 9), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
