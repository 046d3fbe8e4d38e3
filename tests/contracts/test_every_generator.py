"""What every model that writes codes promises: steps, teacher forcing, beams and exact scoring tell one story."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checkerboard_world import GENERATORS, batch_of, build, trained, world

from sidera.core import InputError
from sidera.decode.beam import beam_search, normalised
from sidera.decode.exact import score_all_items
from sidera.decode.sample import free_log_probs, masked_log_probs, sample

HISTORIES = [[3, 7], [1], [0, 4, 8, 12]]


def all_sids() -> torch.Tensor:
    """(1, N, L)"""
    return torch.tensor(np.asarray(world().catalog.codes)).long()[None]


@pytest.mark.parametrize("name", GENERATORS)
def test_it_says_what_codes_it_writes(name: str) -> None:
    model = build(name)
    assert model.codebook_id == world().catalog.codebook_id
    assert tuple(model.level_sizes) == world().catalog.level_sizes
    context = model.eval().context(batch_of(HISTORIES))
    assert context.num_histories == 3
    assert context.nbytes > 0


@pytest.mark.parametrize("name", GENERATORS)
def test_steps_equal_log_probs(name: str) -> None:
    """Beams that are dropped, doubled and reordered between steps: every code's probability is that of its prefix."""
    model = trained(name).model
    catalog = world().catalog
    generator = torch.Generator().manual_seed(0)
    width = 6
    item_ids = torch.randint(catalog.num_items, (3, width), generator=generator)
    sids = torch.tensor(np.asarray(catalog.codes)).long()[item_ids]  # (B, W, L): what the beams end as
    with torch.no_grad():
        context = model.context(batch_of(HISTORIES))
        expected = free_log_probs(model, context, sids)
        cache = model.new_cache(context, width)
        output = model.step(context, cache, 0, None, None)
        order = torch.zeros(3, width, dtype=torch.int64)
        for level in range(catalog.num_levels):
            logits, log_norm = normalised(output)
            log_p = (logits - log_norm[..., None]).gather(1, order[..., None].expand(-1, -1, logits.shape[-1]))
            picked = log_p.gather(2, sids[:, :, level, None]).squeeze(2)
            torch.testing.assert_close(picked, expected[:, :, level], rtol=1e-4, atol=1e-4)
            if level + 1 < catalog.num_levels:
                # beams stand in another order than the step before had them, and say so through `parents`
                shuffle = torch.randperm(width, generator=generator)
                parents = order[:, shuffle]
                output = model.step(context, cache, level + 1, sids[:, shuffle, level], parents)
                order = shuffle.argsort().expand(3, -1)


@pytest.mark.parametrize("name", GENERATORS)
def test_log_probs_has_a_gradient(name: str) -> None:
    model = build(name).train()
    total = free_log_probs(model, model.context(batch_of(HISTORIES)), all_sids().expand(3, -1, -1)[:, :4]).sum()
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("mode", ["masked", "free"])
def test_samples_have_the_probabilities_that_teacher_forcing_gives(name: str, mode: str) -> None:
    """Rollout and update speak of one distribution, also in a catalogue that lost items, and it has a gradient."""
    model, catalog = trained(name).model.eval(), world().catalog.without(["item0011", "item0002"])
    batch = batch_of(HISTORIES)
    drawn = sample(model, batch, catalog.trie, count=40, mode=mode, temperature=0.8, seed=1)
    context = model.context(batch)  # with gradient
    if mode == "masked":
        assert not {catalog.ids_by_key["item0011"], catalog.ids_by_key["item0002"]} & set(drawn.item_ids[0].tolist())
        log_p = masked_log_probs(model, context, drawn.sids, catalog.trie, temperature=0.8)
    else:
        log_p = free_log_probs(model, context, drawn.sids, temperature=0.8)
    torch.testing.assert_close(log_p, drawn.log_probs, rtol=1e-3, atol=1e-4)
    log_p.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", GENERATORS)
def test_probabilities_of_all_items_sum_to_at_most_one(name: str) -> None:
    model = trained(name).model
    with torch.no_grad():
        context = model.context(batch_of(HISTORIES))
        log_p = free_log_probs(model, context, all_sids().expand(3, -1, -1)).sum(-1)  # (B, N)
    assert (log_p.exp().sum(1) <= 1 + 1e-4).all()
    if name == "sidera":  # its softmax runs over existing children: no probability leaks to what does not exist
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_full_beam_is_exact(name: str) -> None:
    model, catalog = trained(name).model, world().catalog
    batch = batch_of(HISTORIES)
    exact = score_all_items(model, batch, catalog.trie)  # (B, N)
    with torch.no_grad():
        forced = free_log_probs(model, model.context(batch), all_sids().expand(3, -1, -1)).sum(-1)
    torch.testing.assert_close(exact, forced, rtol=1e-4, atol=1e-4)
    found = beam_search(model, batch, catalog.trie, width=catalog.num_items, num_results=catalog.num_items)
    assert found.item_ids.sort(1).values.tolist() == [list(range(catalog.num_items))] * 3
    torch.testing.assert_close(found.scores, exact.gather(1, found.item_ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("width", [1, 2, 5, 50])
def test_any_beam_finds_legal_items_with_their_own_scores(name: str, width: int) -> None:
    model, catalog = trained(name).model, world().catalog.without(["item0011", "item0002"])
    batch = batch_of(HISTORIES)
    found = beam_search(model, batch, catalog.trie, width=width, num_results=5)
    exact = score_all_items(model, batch, catalog.trie)
    for row in range(3):
        items = found.item_ids[row][found.valid_mask[row]].tolist()
        assert items
        assert len(items) == len(set(items))
        assert not {catalog.ids_by_key["item0011"], catalog.ids_by_key["item0002"]} & set(items)
        torch.testing.assert_close(found.scores[row, : len(items)], exact[row, items], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_late_items_are_answered_lawfully(name: str) -> None:
    """An item that came after training may get any probability or none, but breaks nothing."""
    model, catalog = trained(name).model, world().catalog
    vectors = torch.randn(3, catalog.codebooks.dim, generator=torch.Generator().manual_seed(0))
    grown = catalog.with_items(["late0", "late1", "late2"], vectors)
    found = beam_search(model, batch_of(HISTORIES), grown.trie, width=40, num_results=grown.num_items)
    for row in range(3):
        items = found.item_ids[row][found.valid_mask[row]].tolist()
        assert set(range(catalog.num_items)) <= set(items) <= set(range(grown.num_items))
        assert all(math.isfinite(score) for score in found.scores[row, : len(items)].tolist())


@pytest.mark.parametrize("name", GENERATORS)
def test_a_batch_of_the_wrong_kind_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        build(name).loss(batch_of(HISTORIES))
