"""sidera's generator: its loss is its log_probs, its tree is the catalogue's, and it names what it cannot write."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_catalog import SmallCatalog, position_batch, small_catalog

from hand_made import hand_made
from sidera.config import written
from sidera.core import InputError
from sidera.data.items import ItemTable
from sidera.decode.sample import free_log_probs
from sidera.models import parse_model
from sidera.models.generators.sidera import SideraGenerator
from sidera.nn.item_embedding import grown
from sidera.ops.attention import layout_of
from sidera.ops.columns import Texts

NUM_ITEMS = 12


def make(catalog: SmallCatalog | None = None, **changes: Any) -> SideraGenerator:
    torch.manual_seed(0)
    small = {"max_history": 8, "width": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    model = SideraGenerator(SideraGenerator.Config(**{**small, **changes}), catalog or small_catalog(NUM_ITEMS))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def sids_of(catalog: SmallCatalog, item_ids: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(catalog.codes).long()[item_ids]


@pytest.mark.parametrize("leaf", ["tied", "untied", "sum"])
@pytest.mark.parametrize("level_sizes", [(12,), (4, 3), (4, 3, 2)])
def test_loss_is_minus_log_probs_of_every_prefix(leaf: str, level_sizes: tuple[int, ...]) -> None:
    catalog = small_catalog(NUM_ITEMS, level_sizes)
    model = make(catalog, leaf=leaf)
    batch = position_batch([4, 1, 6], NUM_ITEMS, sizes=level_sizes)
    reference = torch.zeros(())
    with torch.no_grad():
        for row in range(batch.num_histories):
            start, end = int(batch.events.offsets[row]), int(batch.events.offsets[row + 1])
            for stop in range(start + 1, end + 1):
                context = model.context(
                    hand_made(batch.item_ids[start:stop], torch.tensor([0, stop - start]), items=catalog)
                )
                sid = sids_of(catalog, batch.target_ids[stop - 1])[None, None]
                reference = reference - free_log_probs(model, context, sid).sum()
        loss = model.loss(batch)
    assert loss.count == 11
    torch.testing.assert_close(loss.total, reference, rtol=1e-4, atol=1e-4)
    assert sum(loss.parts.values()) == pytest.approx(float(loss.total) / loss.count, rel=1e-4)


def test_a_share_of_the_loss_is_the_cross_entropy_with_the_teachers_mean() -> None:
    catalog = small_catalog(NUM_ITEMS, (4, 3))
    model, batch = make(catalog), position_batch([4, 1, 6], NUM_ITEMS, sizes=(4, 3))
    other = make(catalog)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        alone, both = float(model.loss(batch).total), float(model.loss(batch, [model, other], 0.25).total)
        layout, offsets = layout_of(batch.events.offsets), batch.events.offsets
        paths = model._paths(batch.items.codes)
        visited = model._visited(batch, paths, offsets[layout.row_ids], layout.positions + 1)
        asked = (batch, layout, paths, paths[batch.targets_of("event").items], visited)
        soft = 0.0
        for (mine, _), (theirs, _) in zip(model.target_logits(*asked), other.target_logits(*asked), strict=True):
            mean = (mine.softmax(1) + theirs.softmax(1)) / 2
            soft -= float((mean * mine.log_softmax(1).nan_to_num(neginf=0.0)).sum())
    assert both == pytest.approx(0.75 * alone + 0.25 * soft, rel=1e-4)


def test_label_smoothing_spreads_over_siblings() -> None:
    catalog = small_catalog(NUM_ITEMS, (4, 3, 2))
    model = make(catalog, label_smoothing=0.25)
    batch = position_batch([3], NUM_ITEMS, sizes=(4, 3, 2))
    sids = torch.as_tensor(catalog.codes).long()  # (N, L)
    reference = 0.0
    with torch.no_grad():
        for stop in range(1, 4):
            context = model.context(hand_made(batch.item_ids[:stop], torch.tensor([0, stop]), items=catalog))
            log_p = free_log_probs(model, context, sids[None])[0]  # (N, L)
            target = int(batch.target_ids[stop - 1])
            for level in range(3):
                siblings = {
                    int(sids[item, level]): float(log_p[item, level])
                    for item in range(NUM_ITEMS)
                    if torch.equal(sids[item, :level], sids[target, :level])
                }
                spread = sum(siblings.values()) / len(siblings)
                reference -= 0.75 * float(log_p[target, level]) + 0.25 * spread
        assert float(model.loss(batch).total) == pytest.approx(reference, rel=1e-4)


def test_all_probability_lies_on_items() -> None:
    catalog = small_catalog(NUM_ITEMS)
    model = make(catalog)
    with torch.no_grad():
        log_p = free_log_probs(
            model,
            model.context(position_batch([4, 1], NUM_ITEMS, sizes=(4, 3, 2))),
            sids_of(catalog, torch.arange(NUM_ITEMS)).expand(2, -1, -1),
        )
    torch.testing.assert_close(log_p.sum(-1).exp().sum(1), torch.ones(2))


def test_codes_of_no_item_have_no_probability() -> None:
    catalog = small_catalog(NUM_ITEMS)
    model = make(catalog)
    taken = {tuple(codes) for codes in catalog.codes.tolist()}
    free = [sid for sid in np.ndindex(4, 3, 2) if sid not in taken]
    with torch.no_grad():
        log_p = free_log_probs(
            model, model.context(position_batch([4], NUM_ITEMS, sizes=(4, 3, 2))), torch.tensor(free)[None]
        ).sum(-1)
    assert (log_p == float("-inf")).all()


def test_shared_semantic_ids_are_refused() -> None:
    catalog = small_catalog(NUM_ITEMS)
    codes = catalog.codes.copy()
    codes[3] = codes[5]
    with pytest.raises(InputError, match="1 items share their semantic ID"):
        make(replace(catalog, codes=codes))


@pytest.mark.parametrize("change", ["in training mode", "in place", "loaded", "replaced"])
def test_leaf_vectors_follow_the_weights(change: str) -> None:
    """What was folded for answering is made anew, however the weights changed."""
    model, other = make(leaf="sum"), make(leaf="sum")
    with torch.no_grad():
        other.leaf.weight.normal_()
    batch = position_batch([4], NUM_ITEMS, sizes=(4, 3, 2))
    sids = sids_of(small_catalog(NUM_ITEMS), torch.arange(NUM_ITEMS))[None]
    with torch.no_grad():
        before = free_log_probs(model, model.context(batch), sids)
        if change == "loaded":
            model.load_state_dict(other.state_dict())
        elif change == "replaced":
            model.leaf.weight = torch.nn.Parameter(other.leaf.weight.clone())
        else:
            model.train(change == "in training mode")
            model.leaf.weight.copy_(other.leaf.weight)
            model.eval()
        after = free_log_probs(model, model.context(batch), sids)
        expected = free_log_probs(other, other.context(batch), sids)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected)


def test_leaf_vectors_are_folded_once() -> None:
    model, batch = make(leaf="sum"), position_batch([4], NUM_ITEMS, sizes=(4, 3, 2))
    sids = sids_of(small_catalog(NUM_ITEMS), torch.arange(NUM_ITEMS))[None]
    with torch.inference_mode():
        free_log_probs(model, model.context(batch), sids)
        folded = model._node_vectors(len(model.level_sizes) - 1)
        free_log_probs(model, model.context(batch), sids)
        assert model._node_vectors(len(model.level_sizes) - 1) is folded


def test_gradients_after_answering() -> None:
    """log_probs in eval mode (alignment) reaches the leaves, though beam search has folded them before."""
    model, batch = make(leaf="untied"), position_batch([4], NUM_ITEMS, sizes=(4, 3, 2))
    sids = sids_of(small_catalog(NUM_ITEMS), torch.arange(NUM_ITEMS))[None]
    with torch.inference_mode():
        free_log_probs(model, model.context(batch), sids)
    free_log_probs(model, model.context(batch), sids).sum().backward()
    assert model.leaf.weight.grad is not None
    assert float(model.leaf.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_history", 0), ("num_heads", 0), ("ff_multiple", -1), ("dropout", 1.5), ("label_smoothing", float("nan"))],
)
def test_sizes_out_of_range_are_refused(key: str, value: float) -> None:
    """By the recipe's section, before any data is read."""
    with pytest.raises(InputError, match=rf"\[model\] {key} = {value} is out of range; allowed: "):
        parse_model({"name": "sidera", key: value})


def test_wrong_width_is_refused() -> None:
    with pytest.raises(InputError, match="width = 9 is not a multiple"):
        make(width=9)


@pytest.mark.parametrize("work", ["the whole level", "what is asked for"])
@pytest.mark.parametrize("level_sizes", [(4, 3), (4, 3, 2)])
def test_both_ways_of_scoring_children_are_the_trained_one(work: str, level_sizes: tuple[int, ...]) -> None:
    """Histories that come back to items, and beams that stand twice on one node; gradients go the trained way."""
    catalog = small_catalog(NUM_ITEMS, level_sizes)
    asked = [[3, 3, 11, 0, 5], [0, 7, 2, 1, 3]] if work == "the whole level" else [[3, 3], [0, 7]]
    model, items = make(catalog), torch.tensor([3, 3, 5, 3, 0, 7, 11, 0])
    sids = torch.as_tensor(catalog.codes).long()[torch.tensor(asked)]  # (B, G, L)
    with torch.no_grad():
        context = model.context(hand_made(items, torch.tensor([0, 4, 8]), items=catalog))
        found = model.code_logits(context, sids)
    for ours, trained in zip(found, model.code_logits(context, sids), strict=True):
        assert trained.requires_grad
        torch.testing.assert_close(ours, trained.detach(), rtol=1e-5, atol=1e-5)


# -- titles in the leaf ---------------------------------------------------------------------------------------------

TITLES = [f"{'red' if item % 2 else 'blue'} thing {item // 4}" for item in range(NUM_ITEMS)]


def titled(**changes: Any) -> SideraGenerator:
    small: Any = small_catalog(NUM_ITEMS, (4, 3))
    catalog: Any = SimpleNamespace(
        codebook_id="c", level_sizes=(4, 8), item_keys=small.item_keys, codes=small.codes, titles=TITLES
    )
    return make(catalog, content="titles", **changes)


def with_later(model: SideraGenerator, *titles: str | None) -> Any:
    """The model and its table, grown by items that share a first code and differ in their titles alone."""
    old = np.asarray(small_catalog(NUM_ITEMS, (4, 3)).codes)
    codes = np.concatenate([old, [[0, 3 + place] for place in range(len(titles))]])
    table = ItemTable(codes, titles=Texts.of([*TITLES, *titles]))
    return grown(model, table), table


@pytest.mark.parametrize("leaf", ["tied", "sum"])
def test_items_that_came_later_are_told_apart_by_their_titles(leaf: str) -> None:
    model = titled(leaf=leaf)
    new, table = with_later(model, "red thing 0", "red thing 0", "blue thing 9", None)
    batch = hand_made(torch.tensor([1, 5]), torch.tensor([0, 2]), items=table)
    sids = torch.as_tensor(table.codes)[None].long()
    with torch.no_grad():
        log_p = free_log_probs(new, new.context(batch), sids).sum(-1)[0]
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
    assert float(log_p[12]) == pytest.approx(float(log_p[13]), abs=1e-5)  # one title, one vector
    assert abs(float(log_p[12] - log_p[14])) > 1e-3
    vectors = [new.item(torch.tensor([item])) for item in (12, 13, 15)]
    assert torch.equal(vectors[0], vectors[1])
    assert not vectors[2].any()  # nothing is known of it
    contexts = [
        new.context(hand_made(torch.tensor([1, item]), torch.tensor([0, 2]), items=table)).states for item in (12, 14)
    ]
    assert not torch.allclose(*contexts)  # in a history, too


def test_the_ids_part_is_dropped_for_whole_items_in_training_alone() -> None:
    model = titled(id_dropout=0.5)
    ids = torch.arange(NUM_ITEMS)
    with torch.no_grad():
        whole, own = model.item(ids), model.item.own(ids)
        assert torch.equal(model.item(ids), whole)
        model.train()
        dropped = (model.item(ids) - (whole - own)).abs().sum(1) < 1e-6
        kept = (model.item(ids) - whole).abs().sum(1) < 1e-6
    assert 0 < int(dropped.sum()) < NUM_ITEMS
    assert 0 < int(kept.sum()) < NUM_ITEMS


def test_words_learn_from_the_loss_and_answers_follow_them() -> None:
    model = titled()
    batch = position_batch([4, 1, 6], NUM_ITEMS, sizes=(4, 3))
    model.loss(batch).total.backward()
    read = torch.unique(model.item.buckets[model.item.shares > 0])
    assert model.item.word.weight.grad is not None
    assert model.item.word.weight.grad[read].abs().sum(1).min() > 0
    with torch.no_grad():
        context = model.context(batch)
        before = model.step(context, model.new_cache(context, 1), 0, None, None).logits
        folded = model._node_vectors(1).clone()
        model.item.word.weight.add_(0.1)
        assert not torch.equal(model._node_vectors(1), folded)  # what was folded is not kept
        context = model.context(batch)
        assert not torch.equal(model.step(context, model.new_cache(context, 1), 0, None, None).logits, before)


def test_titles_want_a_leaf_that_reads_them() -> None:
    with pytest.raises(InputError, match="content = 'titles' with leaf = 'untied'"):
        titled(leaf="untied")
    with pytest.raises(InputError, match=r"id_dropout = 1\.0"):
        titled(id_dropout=1.0)
    assert "content" not in written(SideraGenerator.Config())  # recipes of before keep their digests
