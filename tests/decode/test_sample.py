"""Sampling: every draw is lawful, its probability is the reference's, and frequencies are the model's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_generator import TableGenerator, indices
from worlds import World, worlds

from sidera.core import InputError
from sidera.decode.exact import score_all_leaves
from sidera.decode.sample import Samples, free_log_probs, masked_log_probs, sample
from sidera.ops.trie import CodeTrie


def slow_sample(world: World, count: int, mode: str, temperature: float, seed: int) -> Samples:
    """One code at a time, the model asked anew for every prefix, the same uniform numbers."""
    generator, trie = world.generator, world.trie
    num_levels = trie.num_levels
    source = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(world.num_histories, count, num_levels, generator=source, dtype=torch.float64)
    context = generator.context(world.batch)
    legal = {tuple(codes[:level]) for codes in world.codes[world.alive].tolist() for level in range(num_levels + 1)}
    sids = torch.zeros(world.num_histories, count, num_levels, dtype=torch.int64)
    log_probs = torch.zeros(world.num_histories, count, num_levels)
    for history in range(world.num_histories):
        for place in range(count):
            for level in range(num_levels):
                prefix = sids[history, place].tolist()[:level]
                logits = generator.code_logits(context, sids)[level][history, place].double() / temperature
                if mode == "masked":
                    for code in range(len(logits)):
                        if (*prefix, code) not in legal:
                            logits[code] = -math.inf
                log_p = logits.log_softmax(0)
                code = int((log_p.exp().cumsum(0) <= uniforms[history, place, level]).sum())
                code = min(code, int((log_p > -math.inf).nonzero().max()))
                sids[history, place, level], log_probs[history, place, level] = code, log_p[code]
    leaves = torch.from_numpy(trie.find(sids.numpy()))
    items = torch.full_like(leaves, -1)
    for row, column in (leaves >= 0).nonzero().tolist():
        items[row, column] = int(trie.lookup(sids[row, column].tolist())[0])
    return Samples(sids, leaves, items, log_probs)


@settings(max_examples=25, deadline=None)
@given(worlds(), st.integers(1, 6), st.sampled_from(["masked", "free"]), st.sampled_from([0.5, 1.0]))
def test_it_draws_what_the_slow_reference_draws(world: World, count: int, mode: str, temperature: float) -> None:
    found = sample(world.generator, world.batch, world.trie, count=count, mode=mode, temperature=temperature, seed=3)
    slow = slow_sample(world, count, mode, temperature, 3)
    assert found.sids.tolist() == slow.sids.tolist()
    assert found.leaf_ids.tolist() == slow.leaf_ids.tolist()
    assert found.item_ids.tolist() == slow.item_ids.tolist()
    torch.testing.assert_close(found.log_probs, slow.log_probs, rtol=1e-4, atol=1e-5)
    if mode == "masked":
        assert (found.item_ids >= 0).all()


@settings(max_examples=25, deadline=None)
@given(worlds(), st.sampled_from([0.7, 1.0]))
def test_teacher_forcing_gives_the_probabilities_of_the_rollout(world: World, temperature: float) -> None:
    generator, context = world.generator, world.generator.context(world.batch)
    masked = sample(generator, context, world.trie, count=5, temperature=temperature)
    log_p = masked_log_probs(generator, context, masked.sids, world.trie, temperature)
    torch.testing.assert_close(log_p, masked.log_probs, rtol=1e-4, atol=1e-5)
    free = sample(generator, context, world.trie, count=5, mode="free", temperature=temperature)
    log_p = free_log_probs(generator, context, free.sids, temperature)
    torch.testing.assert_close(log_p, free.log_probs, rtol=1e-4, atol=1e-5)
    illegal_mask = free.leaf_ids < 0
    assert (masked_log_probs(generator, context, free.sids, world.trie)[illegal_mask] == -math.inf).all()


SIZES = (3, 4, 2)
CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 3, 1], [1, 2, 0], [1, 2, 1], [2, 1, 0]])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("mode", ["masked", "free"])
def test_frequencies_are_the_models(mode: str, temperature: float) -> None:
    """Chi-square over all semantic IDs that can be written, two histories, G = 512 a draw."""
    generator = TableGenerator(SIZES, 2, seed=1)
    trie = CodeTrie.build(CODES if mode == "masked" else np.array(list(np.ndindex(SIZES))), SIZES)
    context = generator.context(indices(2))
    every = torch.from_numpy(trie.leaf_codes(np.arange(trie.num_leaves))).expand(2, -1, -1)
    expected = masked_log_probs(generator, context, every, trie, temperature).sum(-1).exp()  # (2, leaves)
    torch.testing.assert_close(expected.sum(1), torch.ones(2))
    counts = torch.zeros_like(expected)
    for seed in range(20):
        drawn = sample(generator, context, trie, count=512, mode=mode, temperature=temperature, seed=seed)
        counts += torch.stack([torch.bincount(row, minlength=trie.num_leaves) for row in drawn.leaf_ids])
    total = 20 * 512
    chi_square = ((counts - total * expected) ** 2 / (total * expected)).sum(1)
    free = trie.num_leaves - 1
    assert (chi_square < free + 4 * math.sqrt(2 * free)).all()


def test_masked_probabilities_are_those_of_the_conditional_model() -> None:
    """With one level, masking is conditioning: p(item) / sum of p over items."""
    generator = TableGenerator((9,), 1, seed=2)
    trie = CodeTrie.build(np.array([[1], [4], [5]]), (9,))
    context = generator.context(indices(1))
    found = masked_log_probs(generator, context, torch.tensor([[[1], [4], [5], [0]]]), trie)[0, :, 0]
    exact = score_all_leaves(generator, context, trie)[0]
    torch.testing.assert_close(found[:3], exact - exact.logsumexp(0))
    assert found[3] == -math.inf


def test_each_prefix_is_asked_for_once() -> None:
    widths: list[int] = []

    class Counting(TableGenerator):
        def step(self, context, cache, level, codes, parents):
            widths.append(1 if codes is None else codes.shape[1])
            return super().step(context, cache, level, codes, parents)

    sample(Counting(SIZES, 2, seed=1), indices(2), CodeTrie.build(CODES, SIZES), count=500)
    assert widths == [1, 3, 4]  # not 500: there are 3 first codes and 4 prefixes of two


def test_a_gradient_reaches_the_tables_and_none_comes_from_illegal_codes() -> None:
    generator = TableGenerator(SIZES, 1, seed=1)
    generator.tables = [table.requires_grad_() for table in generator.tables]
    trie = CodeTrie.build(CODES, SIZES)
    sids = torch.tensor([[[0, 0, 1], [0, 1, 1]]])
    log_p = masked_log_probs(generator, generator.context(indices(1)), sids, trie)
    assert log_p[0, 1].tolist() == [-math.inf] * 3
    log_p[0, 0].sum().backward()
    gradient = generator.tables[1].grad[0, 0]  # after code 0: codes 0 and 3 are legal
    assert gradient[[1, 2]].tolist() == [0.0, 0.0]
    assert gradient[0] > 0 > gradient[3]
    assert all(table.grad.isfinite().all() for table in generator.tables)


def test_a_prefix_whose_items_the_model_does_not_know_writes_nothing() -> None:
    generator = TableGenerator(SIZES, 1, seed=1)
    generator.tables[1][:, 0] = -math.inf  # after code 0 nothing
    drawn = sample(generator, indices(1), CodeTrie.build(CODES, SIZES), count=200)
    dead_mask = drawn.item_ids < 0
    assert 0 < dead_mask.float().mean() < 1
    assert (drawn.sids[dead_mask] == -1).all()
    assert (drawn.log_probs[dead_mask] == -math.inf).all()
    assert (drawn.sids[~dead_mask][:, 0] > 0).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 1, "mode": "open"}, "masked, free"),
        ({"count": 1, "temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_bad_settings_are_named(settings: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        sample(TableGenerator(SIZES, 1, seed=1), indices(1), CodeTrie.build(CODES, SIZES), **settings)
