"""SASRec's three losses against slow references, and its three kinds of output vectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_catalog import position_batch, small_catalog

from hand_made import changed
from sidera.core import InputError
from sidera.models.retrievers.sasrec import SASRec

NUM_ITEMS = 12
BATCH = position_batch([4, 1, 6], NUM_ITEMS)


def make(**changes: Any) -> SASRec:
    torch.manual_seed(0)
    small = {"max_history": 8, "width": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    model = SASRec(SASRec.Config(**{**small, **changes}), small_catalog(NUM_ITEMS))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


def scores(model: SASRec) -> torch.Tensor:
    """(T, N), written out."""
    states, vectors = model.states(BATCH), model.item_vectors()
    return torch.stack([torch.stack([(state * vector).sum() for vector in vectors]) for state in states])


def test_full_is_cross_entropy_over_the_catalogue() -> None:
    model = make(loss="full")
    reference = sum(
        row.exp().sum().log() - row[target] for row, target in zip(scores(model), BATCH.target_ids, strict=True)
    )
    torch.testing.assert_close(model.loss(BATCH).total, reference, rtol=1e-4, atol=1e-4)


def test_full_with_label_smoothing() -> None:
    model = make(loss="full", label_smoothing=0.2)
    log_p = scores(model).log_softmax(1)
    aim = torch.full_like(log_p, 0.2 / NUM_ITEMS)
    aim[torch.arange(len(aim)), BATCH.target_ids] += 0.8
    torch.testing.assert_close(model.loss(BATCH).total, -(aim * log_p).sum(), rtol=1e-4, atol=1e-4)


def test_bce_has_one_negative_per_target() -> None:
    model = make(loss="bce")
    torch.manual_seed(7)
    total = model.loss(BATCH).total
    torch.manual_seed(7)
    negatives = torch.randint(NUM_ITEMS, BATCH.target_ids.shape)
    rows, table = torch.arange(len(negatives)), scores(model)
    reference = -(table[rows, BATCH.target_ids].sigmoid().log() + (1 - table[rows, negatives].sigmoid()).log()).sum()
    torch.testing.assert_close(total, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_sampled_equals_a_loop_over_its_negatives(smoothing: float) -> None:
    model = make(loss="sampled", num_negatives=7, label_smoothing=smoothing)
    torch.manual_seed(7)
    total = model.loss(BATCH).total
    torch.manual_seed(7)
    negatives = torch.randint(NUM_ITEMS, (7,)).tolist()
    reference = torch.zeros(())
    for row, target in zip(scores(model), BATCH.target_ids.tolist(), strict=True):
        others = [row[item] + math.log(NUM_ITEMS / 7) for item in negatives if item != target]
        log_norm = torch.stack([row[target], *others]).logsumexp(0)
        spread = torch.stack([log_norm - other for other in others]).sum() if others else torch.zeros(())
        # accidental hits take their share of the smoothing mass as a score of zero
        spread = (spread + (7 - len(others)) * log_norm) / 7
        reference = reference + (1 - smoothing) * (log_norm - row[target]) + smoothing * spread
    torch.testing.assert_close(total, reference, rtol=1e-4, atol=1e-4)


def test_sampled_normaliser_is_unbiased() -> None:
    """Each negative stands for N/M items: the sampled normaliser's mean is that of the whole catalogue.

    The target itself is counted once more than among N uniform draws, less its accidental hits: exactly the full sum.
    """
    model = make(loss="sampled", num_negatives=64)
    table = scores(model).detach()
    rows = torch.arange(len(table))
    positive = table[rows, BATCH.target_ids]
    generator = torch.Generator().manual_seed(0)
    norms = []
    for _ in range(2000):
        negatives = torch.randint(NUM_ITEMS, (64,), generator=generator)
        sampled = (table[:, negatives] + math.log(NUM_ITEMS / 64)).exp()
        sampled = sampled.masked_fill(negatives == BATCH.target_ids[:, None], 0.0)
        norms.append(positive.exp() + sampled.sum(1))
    expected = table.exp().sum(1)
    torch.testing.assert_close(torch.stack(norms).mean(0), expected, rtol=0.02, atol=0.0)
    torch.manual_seed(0)  # and with many negatives the loss itself comes near the full one
    many, full = make(loss="sampled", num_negatives=20_000), make(loss="full")
    many.load_state_dict(full.state_dict())
    torch.testing.assert_close(many.loss(BATCH).total, full.loss(BATCH).total, rtol=0.01, atol=0.0)


def test_output_vectors() -> None:
    tied, untied, both = (make(output=kind) for kind in ("tied", "untied", "sum"))
    assert tied.item_vectors() is tied.item.weight
    assert not hasattr(tied, "output")
    assert untied.item_vectors() is untied.output.weight
    torch.testing.assert_close(both.item_vectors(), both.item.weight + both.output.weight)


def test_sum_starts_as_tied() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRec.Config(output="sum"), small_catalog(NUM_ITEMS))  # type: ignore[arg-type]
    torch.testing.assert_close(model.item_vectors(), model.item.weight)


def test_scores_come_from_the_last_state() -> None:
    model = make(output="untied")
    last = [3, 4, 10]
    torch.testing.assert_close(model.item_scores(BATCH), scores(model)[last], rtol=1e-4, atol=1e-4)


def test_one_target_per_history_is_refused() -> None:
    batch = changed(BATCH, target_ids=BATCH.target_ids[:3], kind="history")
    with pytest.raises(InputError, match="targets of kind event"):
        make().loss(batch)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 9}, "width = 9 is not a multiple of num_heads = 2"),
        ({"num_heads": 0}, "num_heads = 0"),
        ({"max_history": 0}, "max_history = 0"),
        ({"num_negatives": 0}, "num_negatives = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make(**change)
