"""Free generation against scoring every possible tuple of codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from table_generator import TableGenerator, indices
from worlds import worlds

from sidera.core import InputError
from sidera.decode.free import free_beam
from sidera.ops.trie import CodeTrie


@given(worlds())
@settings(max_examples=40, deadline=None)
def test_a_wide_free_beam_ranks_all_tuples(world):
    generator = world.twin(ties=False)
    context = generator.context(world.batch)
    every = torch.tensor(list(itertools.product(*map(range, generator.level_sizes))))  # (tuples, L)
    scores = generator.log_probs(context, every.expand(world.num_histories, -1, -1)).sum(-1)
    beams = free_beam(generator, context, world.trie, width=10_000, num_results=len(every) + 5)
    order = beams.scores.sort(descending=True, stable=True).indices
    assert order.tolist() == [list(range(len(every)))] * world.num_histories
    legal = {tuple(sid) for sid in world.codes[world.alive].tolist()}
    for history in range(world.num_histories):
        found = {
            tuple(sid): score for sid, score in zip(beams.sids[history].tolist(), beams.scores[history], strict=True)
        }
        assert len(found) == len(every)
        expected = dict(zip(map(tuple, every.tolist()), scores[history], strict=True))
        assert all(torch.isclose(found[sid], expected[sid], atol=1e-4) for sid in expected)
        assert beams.legal_mask[history].tolist() == [tuple(sid) in legal for sid in beams.sids[history].tolist()]
    assert beams.legality() == pytest.approx(len(legal) / len(every))


@given(worlds())
@settings(max_examples=20, deadline=None)
def test_a_narrow_free_beam_repeats_itself_cached_or_not(world):
    beams = [
        free_beam(generator, world.batch, world.trie, width=3, num_results=2)
        for generator in (world.generator, world.generator, world.twin(recompute=True))
    ]
    assert all(torch.equal(beams[0].sids, other.sids) for other in beams)
    assert all(torch.equal(beams[0].scores, other.scores) for other in beams)


def test_ties_go_to_the_smaller_semantic_id():
    trie = CodeTrie.build(np.array([[0, 1], [1, 2]]), (2, 3))
    generator = TableGenerator((2, 3), 1, seed=0)
    for table in generator.tables:
        table.zero_()
    beams = free_beam(generator, indices(1), trie, width=2, num_results=4)
    assert beams.sids.tolist() == [[[0, 0], [0, 1], [0, 2], [1, 0]]]
    assert beams.legal_mask.tolist() == [[False, True, False, False]]
    assert beams.legality() == 0.25


def test_what_has_no_probability_was_not_written():
    trie = CodeTrie.build(np.array([[0, 0], [1, 1]]), (2, 2))
    generator = TableGenerator((2, 2), 1, seed=0)
    generator.tables[0][0, 0] = torch.tensor([0.0, -torch.inf])
    beams = free_beam(generator, indices(1), trie, width=4, num_results=4)
    assert beams.valid_mask.tolist() == [[True, True, False, False]]
    assert beams.legality() == 0.5


def test_bad_input_is_named():
    with pytest.raises(InputError, match="width is 0"):
        free_beam(None, None, None, width=0, num_results=1)
