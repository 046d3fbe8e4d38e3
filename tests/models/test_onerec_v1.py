"""OneRec v1: what it reads of a history, what its loss counts, and its experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_catalog import small_catalog

from hand_made import changed, hand_made
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.features import FeatureSchema
from sidera.decode.sample import free_log_probs
from sidera.models import parse_model
from sidera.models.generators.onerec_v1 import OneRecV1
from sidera.nn.moe import MoE
from sidera.nn.t5 import FeedForward

NUM_ITEMS, LENGTH = 12, 3
TOKENS = ["item", "codes"]
SCHEMA = FeatureSchema(positive="click", labels=("click", "like"))


def make(**changes: Any) -> OneRecV1:
    torch.manual_seed(0)
    small = {
        "max_history": 16, "width": 16, "num_layers": 2, "num_heads": 2, "ff_width": 32, "dropout": 0.0,
        "num_experts": 4, "expert_width": 16, "session_length": LENGTH, "min_watched": 1,
    }  # fmt: skip
    catalog = replace(small_catalog(NUM_ITEMS), schema=SCHEMA)
    return OneRecV1(OneRecV1.Config(**{**small, **changes}), catalog).eval()  # type: ignore[arg-type]


def make_batch(lengths: list[int], num_targets: list[int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    offsets, bounds = (torch.tensor([0, *counts]).cumsum(0) for counts in (lengths, num_targets))
    total = int(offsets[-1])
    return hand_made(
        torch.randint(NUM_ITEMS, (total,), generator=generator),
        offsets,
        torch.randint(NUM_ITEMS, (int(bounds[-1]),), generator=generator),
        times=torch.arange(total),
        target_offsets=bounds,
        kind="list",
        items=small_catalog(NUM_ITEMS),
        as_of=torch.full((len(lengths),), total),
        feedback={
            "click": (torch.rand(total, generator=generator) < 0.5).float(),
            "like": (torch.rand(total, generator=generator) < 0.2).float(),
        },
    )


def logits_of(model: OneRecV1, batch: Batch) -> torch.Tensor:
    """(B, N) log-probabilities of all items as the first of a list."""
    sids = torch.from_numpy(small_catalog(NUM_ITEMS).codes).long()[None].expand(batch.num_histories, -1, -1)
    with torch.no_grad():
        return free_log_probs(model, model.context(batch), sids).sum(-1)


@pytest.mark.parametrize("tokens", TOKENS)
def test_loss_is_minus_the_log_probability_of_every_list(tokens: str) -> None:
    """Lists of different lengths in one batch: the padding behind the shorter ones counts for nothing."""
    model = make(history_tokens=tokens)
    batch = make_batch([5, 1, 9, 4], [3, 1, 2, 3])
    loss = model.loss(batch)
    assert loss.count == 9
    expected = torch.zeros(())
    for row in range(batch.num_histories):
        mine = batch.cut(row, row + 1)
        sids = mine.items.codes[mine.targets.items][None, None]  # (1, 1, m, L)
        expected = expected - model.log_probs_lists(model.context(mine), sids).sum()
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-4)
    assert sum(loss.parts[f"level_{level}"] for level in range(3)) == pytest.approx(
        float(loss.total.detach()) / loss.count, rel=1e-4
    )


@pytest.mark.parametrize("tokens", TOKENS)
def test_only_what_was_liked_is_read(tokens: str) -> None:
    model = make(history_tokens=tokens)
    batch = make_batch([8], [1])
    batch.events.feedback["click"][:] = torch.tensor([1, 0, 0, 1, 0, 0, 1, 0]).float()
    batch.events.feedback["like"][:] = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0]).float()
    expected = logits_of(model, batch)
    assert model.liked(batch).events.offsets.tolist() == [0, 4]  # clicked, or liked without a click
    for place in range(8):
        item_ids = batch.item_ids.clone()
        item_ids[place] = (item_ids[place] + 1) % NUM_ITEMS
        same = torch.allclose(
            logits_of(model, changed(batch, small_catalog(NUM_ITEMS), item_ids=item_ids)), expected, atol=1e-5
        )
        assert same == (place not in (0, 2, 3, 6))


@pytest.mark.parametrize("tokens", TOKENS)
def test_order_matters_and_neighbours_in_the_batch_do_not(tokens: str) -> None:
    model = make(history_tokens=tokens)
    batch = make_batch([3, 12, 1, 12, 7], [1] * 5)
    batch.events.feedback["click"][:] = 1
    together = logits_of(model, batch)
    for row in range(5):
        torch.testing.assert_close(logits_of(model, batch.cut(row, row + 1))[0], together[row], rtol=1e-4, atol=1e-4)
    turned = batch.cut(1, 2)
    turned = changed(turned, item_ids=turned.item_ids.flip(0))
    assert not torch.allclose(logits_of(model, turned)[0], together[1], atol=1e-4)


@pytest.mark.parametrize("tokens", TOKENS)
def test_somebody_who_liked_nothing_is_answered(tokens: str) -> None:
    model = make(history_tokens=tokens)
    batch = make_batch([4, 6], [1, 1])
    batch.events.feedback["click"][:4], batch.events.feedback["like"][:4] = 0, 0
    found = logits_of(model, batch)
    assert found.isfinite().all()
    torch.testing.assert_close(logits_of(model, batch.cut(1, 2))[0], found[1], rtol=1e-4, atol=1e-4)
    assert model.context(batch).mask.sum(1).tolist()[0] == 1  # the user's token alone


@pytest.mark.parametrize(("tokens", "per_item"), [("item", 1), ("codes", 4)])
def test_tokens_of_an_item(tokens: str, per_item: int) -> None:
    """The paper's reading: three codes and a separator."""
    model = make(history_tokens=tokens)
    batch = make_batch([5, 2], [1, 1])
    batch.events.feedback["click"][:] = 1
    context = model.context(batch)
    assert context.mask.sum(1).tolist() == [1 + 5 * per_item, 1 + 2 * per_item]
    assert context.nbytes == 2 * 2 * context.mask.numel() * 16 * 4  # layers, keys and values, width, float32


def test_the_decoder_is_sparse_and_the_encoder_dense() -> None:
    model = make(num_experts=24)
    layers = model.decoder.layers
    assert all(isinstance(layer.ff, MoE) for layer in layers)
    assert {(layer.ff.num_experts, layer.ff.num_active, layer.ff.gate) for layer in layers} == {(24, 2, "softmax")}
    assert all(layer.ff.shared is None for layer in layers)
    assert all(isinstance(layer.feed_forward, FeedForward) for layer in model.encoder.layers)
    x = torch.randn(7, 16)
    chosen, weights = layers[0].ff.route(x)
    scores = layers[0].ff.router(x).softmax(-1)
    torch.testing.assert_close(weights, scores.gather(1, chosen))  # the softmax's own values: not renormalised
    assert not any(isinstance(module, MoE) for module in make(num_experts=0).modules())


def test_experts_are_balanced_while_training() -> None:
    model = make().train()
    batch = make_batch([5, 6], [3, 3])
    model.loss(batch)
    moe = model.decoder.layers[0].ff
    assert moe.counts.sum() == 2 * (LENGTH * 4 - 1) * 2  # two lists of 3 x 4 - 1 places, two experts each
    model.loss(batch)
    assert moe.bias.abs().max() > 0
    model.eval()
    counts = moe.counts.clone()
    model.loss(batch)
    assert torch.equal(moe.counts, counts)


def test_a_missing_column_is_named() -> None:
    batch = make_batch([4], [1])
    with pytest.raises(InputError, match="'like'"):
        make().loss(changed(batch, feedback={"click": batch.events.feedback["click"]}))


@pytest.mark.parametrize(
    "bad", [{"session_length": 0}, {"min_watched": 9}, {"list_beam": 0}, {"num_active": 9}, {"history_tokens": "x"}]
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        parse_model({"name": "onerec_v1", **bad})
