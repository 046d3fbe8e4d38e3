"""Stochastic length: how much of a long history remains, what its targets are, and that an epoch can be repeated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hand_made import read_log
from sidera.data.batches import PackedSequences
from sidera.data.split import leave_one_out
from sidera.data.stochastic_length import drawn_lengths
from sidera.data.tiny import tiny_log


def test_short_histories_stay_and_long_ones_are_whole_as_often_as_published() -> None:
    rng = np.random.default_rng(0)
    longest, alpha = 100, 1.6
    part = round(100**0.8)
    assert (drawn_lengths(np.full(1000, part), longest, alpha, rng) == part).all()
    drawn = drawn_lengths(np.full(20_000, 80), longest, alpha, rng)
    assert set(drawn.tolist()) == {part, 80}
    assert (drawn == 80).mean() == pytest.approx((part / 80) ** 2, abs=0.015)
    assert (drawn_lengths(np.arange(101), longest, 0.0, rng) == np.arange(101)).all()


def source(alpha: float) -> PackedSequences:
    dataset = tiny_log()
    return PackedSequences(read_log(dataset, 24), leave_one_out(dataset), batch_size=8, seed=3, stochastic_length=alpha)


@pytest.fixture(scope="module")
def sources() -> Any:
    return SimpleNamespace(whole=source(0.0), thin=source(1.2))


def test_what_remains_is_a_part_in_order_whose_events_predict_the_next_of_it(sources: Any) -> None:
    whole = list(sources.whole.batches(0))
    by_user: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for batch in whole:
        for row in range(batch.num_histories):
            one = batch.cut(row, row + 1)
            key = int(one.requests.user_ids[0]), int(one.requests.as_of[0])
            by_user[key] = [*zip(one.events.times.tolist(), one.item_ids.tolist(), strict=True)]
            by_user[key].append((-1, int(one.target_ids[-1])))
    shorter = 0
    for batch in sources.thin.batches(0):
        assert batch.global_count == batch.events.num_values == batch.targets.num_values
        for row in range(batch.num_histories):
            one = batch.cut(row, row + 1)
            full = by_user[int(one.requests.user_ids[0]), int(one.requests.as_of[0])]
            found = [*zip(one.events.times.tolist(), one.item_ids.tolist(), strict=True)]
            places = iter(full)
            assert all(event in places for event in found)  # in order
            assert found[-1] == full[-2]
            assert one.target_ids.tolist() == [*one.item_ids.tolist()[1:], full[-1][1]]
            shorter += len(found) < len(full) - 1
    assert shorter


def test_an_epoch_is_repeated_and_entered_anywhere(sources: Any) -> None:
    first, again = list(sources.thin.batches(1)), list(sources.thin.batches(1))
    assert [batch.item_ids.tolist() for batch in first] == [batch.item_ids.tolist() for batch in again]
    late = list(sources.thin.batches(1, start=1))
    assert [batch.item_ids.tolist() for batch in first[1:]] == [batch.item_ids.tolist() for batch in late]
    assert first[0].item_ids.tolist() != next(iter(sources.thin.batches(2))).item_ids.tolist()
    assert sources.thin.digest != sources.whole.digest


def test_processes_share_the_count(sources: Any) -> None:
    for batch, *parts in zip(
        sources.thin.batches(0), *(sources.thin.batches(0, rank=rank, world_size=2) for rank in range(2)), strict=True
    ):
        assert batch.global_count == sum(part.events.num_values for part in parts) == parts[0].global_count
