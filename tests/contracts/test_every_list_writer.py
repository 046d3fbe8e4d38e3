"""What every model that writes lists promises: steps, teacher forcing, search and answers tell one story."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from checkerboard_world import GENERATORS, batch_of, build, trained, world

from sidera.core import InputError
from sidera.decode.beam import normalised
from sidera.decode.sample import free_log_probs
from sidera.decode.session import session_beam_search
from sidera.roles import SessionGenerator

HISTORIES = [[3, 7], [1], [0, 4, 8, 12]]
LIST_WRITERS = [name for name in GENERATORS if isinstance(build(name), SessionGenerator)]


def random_lists(num_lists: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, G, m) item ids and (3, G, m, L) codes."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.rand(3, num_lists, world().catalog.num_items, generator=generator).argsort(-1)[..., :length]
    return items, torch.tensor(np.asarray(world().catalog.codes)).long()[items]


@pytest.mark.parametrize("name", LIST_WRITERS)
def test_the_first_item_of_a_list_is_a_single_item(name: str) -> None:
    model = trained(name).model
    _, sids = random_lists(4, model.session_length)
    with torch.no_grad():
        context = model.context(batch_of(HISTORIES))
        lists, singles = model.log_probs_lists(context, sids), free_log_probs(model, context, sids[:, :, 0])
    assert lists.shape == sids.shape
    torch.testing.assert_close(lists[:, :, 0], singles, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LIST_WRITERS)
def test_an_item_knows_those_before_it_and_none_after(name: str) -> None:
    model = trained(name).model
    _, sids = random_lists(2, model.session_length)
    with torch.no_grad():
        context = model.context(batch_of(HISTORIES))
        whole = model.log_probs_lists(context, sids)
        for length in range(1, model.session_length):
            torch.testing.assert_close(
                model.log_probs_lists(context, sids[:, :, :length]), whole[:, :, :length], rtol=1e-4, atol=1e-4
            )
        changed = sids.clone()
        changed[:, :, 0] = sids[:, :, 1]
        assert not torch.allclose(model.log_probs_lists(context, changed)[:, :, 1:], whole[:, :, 1:], atol=1e-3)


@pytest.mark.parametrize("name", LIST_WRITERS)
def test_steps_through_a_list_equal_log_probs(name: str) -> None:
    """Beams that are reordered and doubled between steps, inside items and between them."""
    model, num_levels, width = trained(name).model, world().catalog.num_levels, 4
    generator = torch.Generator().manual_seed(1)
    _, sids = random_lists(width, model.session_length)
    with torch.no_grad():
        context = model.context(batch_of(HISTORIES))
        expected = model.log_probs_lists(context, sids).flatten(2)  # (B, W, m L)
        stream = sids.flatten(2)
        cache = model.new_cache(context, width)
        output = model.step(context, cache, 0, None, None)
        row_of = torch.zeros(3, width, dtype=torch.int64)  # where the output has list w
        for place in range(stream.shape[2]):
            logits, log_norm = normalised(output)
            log_p = (logits - log_norm[..., None]).gather(1, row_of[..., None].expand(-1, -1, logits.shape[-1]))
            picked = log_p.gather(2, stream[:, :, place, None]).squeeze(2)
            torch.testing.assert_close(picked, expected[:, :, place], rtol=1e-3, atol=1e-4)
            if place + 1 < stream.shape[2]:
                shuffle = torch.randperm(width, generator=generator)
                level = (place + 1) % num_levels
                output = model.step(context, cache, level, stream[:, shuffle, place], row_of[:, shuffle])
                row_of = shuffle.argsort().expand(3, -1)
        with pytest.raises(InputError, match="session_length"):
            model.step(context, cache, 0, stream[:, :, -1], row_of)


@pytest.mark.parametrize("name", LIST_WRITERS)
def test_log_probs_of_lists_have_a_gradient(name: str) -> None:
    model = build(name).train()
    _, sids = random_lists(3, model.session_length)
    model.log_probs_lists(model.context(batch_of(HISTORIES)), sids).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


@pytest.mark.parametrize("name", LIST_WRITERS)
def test_too_long_a_list_is_refused(name: str) -> None:
    model = build(name).eval()
    _, sids = random_lists(1, model.session_length + 1)
    with pytest.raises(InputError, match="session_length"):
        model.log_probs_lists(model.context(batch_of(HISTORIES)), sids)


@pytest.mark.parametrize("name", LIST_WRITERS)
def test_the_answer_begins_with_the_best_list(name: str) -> None:
    """On the checkerboard the right list is known: the items that follow, one after the other."""
    asked = trained(name).recommender
    batch, targets = world().questions()
    ranked = asked.rank(batch, asked.model.session_length + 2)
    following = torch.from_numpy(world().following)
    right = [torch.from_numpy(targets)]
    for _ in range(asked.model.session_length - 1):
        right.append(following[right[-1]])
    assert (ranked.item_ids[:, : len(right)] == torch.stack(right, 1)).float().mean() > 0.9  # chance: one of 24
    beams = {"width": asked.model.list_beam, "code_width": asked.beam}
    found = session_beam_search(asked.model, batch, asked.catalog.trie, length=len(right), **beams)
    assert torch.equal(ranked.item_ids[:, : len(right)], found.item_ids[:, 0])


@pytest.mark.parametrize("name", LIST_WRITERS)
def test_a_search_that_prunes_nothing_finds_the_best_list(name: str) -> None:
    model = trained(name).model
    left = [0, 3, 6, 9, 17]
    catalog = world().catalog
    here = catalog.without([str(key) for item, key in enumerate(catalog.item_keys) if item not in left])
    lists = list(itertools.permutations(left, 2))
    sids = torch.tensor(np.asarray(catalog.codes)).long()[torch.tensor(lists)]
    with torch.no_grad():
        context = model.context(batch_of(HISTORIES))
        scores = model.log_probs_lists(context, sids[None].expand(3, -1, -1, -1)).sum((2, 3))  # (B, lists)
        found = session_beam_search(model, context, here.trie, length=2, width=50, num_results=len(lists))
    for row in range(3):
        order = scores[row].argsort(descending=True)
        torch.testing.assert_close(found.scores[row], scores[row][order], rtol=1e-4, atol=1e-3)
        assert tuple(found.item_ids[row, 0].tolist()) == lists[int(order[0])]
