"""KuaiFormer: who reads whom, the best interest, and the loss against a loop."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_catalog import position_batch

from hand_made import hand_made
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.features import FeatureSchema
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.models.retrievers.kuaiformer import KuaiFormer

NUM_ITEMS = 12
CATALOG: Any = SimpleNamespace(num_items=NUM_ITEMS, schema=SimpleNamespace(batched=()))


def make(**changes: Any) -> KuaiFormer:
    torch.manual_seed(0)
    small = {
        "recent": 3, "middle_groups": 1, "middle_size": 2, "early_groups": 1, "early_size": 3, "width": 8,
        "num_layers": 1, "num_heads": 2, "num_queries": 3, "dropout": 0.0,
    }  # fmt: skip
    return KuaiFormer(KuaiFormer.Config(**{**small, **changes}), CATALOG).eval()


def questions() -> Batch:
    packed = position_batch([8, 1, 4, 5], NUM_ITEMS)
    return hand_made(packed.item_ids, packed.events.offsets, torch.tensor([3, 5, 3, 7]), kind="history")


def test_an_interest_reads_the_history_and_the_interests_before_it() -> None:
    model, batch = make(), questions()
    with torch.no_grad():
        before = model.user_vectors(batch)
        model.queries[1] += 1.0
        after = model.user_vectors(batch)
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1:] - after[:, 1:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("place", range(8))
def test_every_event_reaches_its_own_user_and_no_other(place: int) -> None:
    model, batch = make(), questions()
    moved = batch.events.items.clone()
    moved[place] = (moved[place] + 1) % batch.items.num_items
    changed = replace(batch, events=replace(batch.events, items=moved))
    with torch.no_grad():
        before, after = model.user_vectors(batch), model.user_vectors(changed)
    assert (before[0] - after[0]).abs().max() > 1e-4
    assert torch.equal(before[1:], after[1:])


def test_order_counts_among_the_newest_events() -> None:
    model = make()
    one, other = (hand_made(torch.tensor(items), torch.tensor([0, 3])) for items in ([1, 2, 3], [2, 1, 3]))
    with torch.no_grad():
        assert (model.user_vectors(one) - model.user_vectors(other)).abs().max() > 1e-4


def test_an_empty_history_is_the_queries_alone() -> None:
    model, empty = make(), hand_made(torch.empty(0, dtype=torch.int64), torch.tensor([0, 0]))
    assert model.item_scores(empty).isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_in_batch_loss_equals_a_loop(smoothing: float) -> None:
    """Targets 3, 5, 3, 7: the two histories of target 3 are no negatives of each other."""
    model, batch = make(smoothing=smoothing), questions()
    shares = torch.rand(NUM_ITEMS)
    model.log_share.copy_(shares.log())
    with torch.no_grad():
        found = model.loss(batch)
        users, targets, total = model.user_vectors(batch), [3, 5, 3, 7], 0.0
        for row, target in enumerate(targets):
            best = [max(float(user @ model.item.weight[item]) for user in users[row]) for item in targets]
            scores = {
                (place, item): best[place] - math.log(shares[item])
                for place, item in enumerate(targets)
                if place == row or item != target
            }
            norm = math.log(sum(math.exp(score) for score in scores.values()))
            assert len(scores) == (3 if target == 3 else 4)
            total -= (1 - smoothing) * (scores[row, target] - norm)
            for (place, _), score in scores.items():
                if place != row:
                    total -= smoothing / 4 * math.log(1 - math.exp(score - norm))
    assert found.count == 4
    assert float(found.total) == pytest.approx(total, rel=1e-4)


def test_shares_are_those_of_the_training_events() -> None:
    dataset = tiny_log(num_users=30, num_items=NUM_ITEMS)
    split = leave_one_out(dataset)
    model = make()
    model.fit_once(View(dataset, split, FeatureSchema()))
    counts = [1] * dataset.num_items
    for user in range(dataset.num_users):
        for item in dataset.item_ids[dataset.offsets[user] : split.train_ends[user]]:
            counts[item] += 1
    expected = torch.tensor(counts, dtype=torch.float32)
    torch.testing.assert_close(model.log_share, (expected / expected.sum()).log())


def test_bad_values_are_named() -> None:
    for key, value in (("smoothing", 1.0), ("num_heads", 3), ("recent", 0), ("num_queries", 0)):
        with pytest.raises(InputError, match=key):
            make(**{key: value})
