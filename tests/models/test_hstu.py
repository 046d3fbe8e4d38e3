"""HSTU as a retriever: its losses against slow references, cosines, and which parts of a history it is trained on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_catalog import position_batch, small_catalog

from sidera.core import InputError
from sidera.models.retrievers.hstu import HSTU

NUM_ITEMS = 12
BATCH = position_batch([4, 1, 6], NUM_ITEMS)


def make(**changes: Any) -> HSTU:
    torch.manual_seed(0)
    small = {"max_history": 8, "width": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0, "temperature": 0.5}
    model = HSTU(HSTU.Config(**{**small, **changes}), small_catalog(NUM_ITEMS))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


def cosines(model: HSTU) -> torch.Tensor:
    """(T, N) over the temperature, written out."""
    states = model.states(BATCH)
    return torch.stack([F.cosine_similarity(state, model.item.weight, dim=1) for state in states]) / 0.5


def test_full_is_cross_entropy_over_the_catalogue() -> None:
    model = make(loss="full")
    reference = -cosines(model).log_softmax(1)[torch.arange(len(BATCH.target_ids)), BATCH.target_ids].sum()
    loss = model.loss(BATCH)
    torch.testing.assert_close(loss.total, reference, rtol=1e-4, atol=1e-4)
    assert loss.count == 11


def test_sampled_equals_a_loop_over_its_negatives() -> None:
    model = make(loss="sampled", num_negatives=7)
    torch.manual_seed(7)
    total = model.loss(BATCH).total
    torch.manual_seed(7)
    negatives = torch.randint(NUM_ITEMS, (7,)).tolist()
    reference = torch.zeros(())
    for row, target in zip(cosines(model), BATCH.target_ids.tolist(), strict=True):
        others = [row[item] + math.log(NUM_ITEMS / 7) for item in negatives if item != target]
        reference = reference + torch.stack([row[target], *others]).logsumexp(0) - row[target]
    torch.testing.assert_close(total, reference, rtol=1e-4, atol=1e-4)


def test_own_equals_a_loop_over_the_negatives_of_each_target() -> None:
    model = make(loss="own", num_negatives=7)
    torch.manual_seed(7)
    loss = model.loss(BATCH)
    torch.manual_seed(7)
    drawn = torch.randint(NUM_ITEMS, (11, 7)).tolist()
    reference = torch.zeros(())
    for row, target, negatives in zip(cosines(model), BATCH.target_ids.tolist(), drawn, strict=True):
        scored = [row[target], *(row[item] for item in negatives if item != target)]
        reference = reference + torch.stack(scored).logsumexp(0) - row[target]
    torch.testing.assert_close(loss.total, reference, rtol=1e-4, atol=1e-4)
    assert loss.count == 11


def test_scores_are_cosines_with_the_last_state() -> None:
    model = make()
    ends = BATCH.events.offsets[1:] - 1
    torch.testing.assert_close(model.item_scores(BATCH), cosines(model)[ends], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("stochastic_length", 0.5), ("stochastic_length", 2.5), ("temperature", 0.0), ("num_heads", 3), ("dropout", 1.0)],
)
def test_bad_values_are_named(key: str, value: float) -> None:
    with pytest.raises(InputError, match=key):
        make(**{key: value})


def test_stochastic_length_reaches_the_feed() -> None:
    assert make(stochastic_length=1.6).feed.keywords == {"stochastic_length": 1.6}
