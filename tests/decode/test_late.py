"""Late semantic IDs: one rule, held against a slow reference wherever log-probabilities of codes are made."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from list_tables import ListTables
from table_generator import TableGenerator, indices
from worlds import World, worlds

from sidera.decode.beam import beam_search
from sidera.decode.exact import score_all_leaves
from sidera.decode.late import LateCodes, LateListWriter, LateWriter, writing_late
from sidera.decode.sample import free_log_probs, masked_log_probs, sample
from sidera.decode.session import session_beam_search
from sidera.ops.trie import CodeTrie
from sidera.roles import Generator, SessionGenerator

Prefix = tuple[int, ...]


class Slow:
    """The rule with Python sets."""

    def __init__(self, codes: np.ndarray, alive: np.ndarray, num_known: int) -> None:
        rows = [tuple(row) for row in codes.tolist()]
        self.leaves = sorted({row for row, here in zip(rows, alive, strict=True) if here})
        self.known = {row[:length] for row in rows[:num_known] for length in range(codes.shape[1] + 1)}

    def below(self, prefix: Prefix) -> int:
        return sum(leaf[: len(prefix)] == prefix for leaf in self.leaves)

    def children(self, prefix: Prefix) -> list[int]:
        return sorted({leaf[len(prefix)] for leaf in self.leaves if leaf[: len(prefix)] == prefix})

    def after(self, prefix: Prefix, log_p: torch.Tensor) -> torch.Tensor:
        """(K,) log-probabilities of the next code -> of the legal ones by the rule, -inf for the others."""
        found = torch.full_like(log_p, -math.inf)
        children = self.children(prefix)
        known = [code for code in children if (*prefix, code) in self.known]
        late = [code for code in children if code not in known]
        n, m = (sum(self.below((*prefix, code)) for code in part) for part in (known, late))
        for code in known:
            found[code] = log_p[code] + math.log(n / (n + m))
        mass = log_p[known].exp().sum() if known else 1.0
        for code in late:
            found[code] = math.log(max(mass * self.below((*prefix, code)) / (n + m), 1e-300))
        return found


def prefix_log_p(generator: TableGenerator, history: int, prefix: Prefix) -> torch.Tensor:
    """(K,) of the generator alone."""
    number = 0
    for code, size in zip(prefix, generator.level_sizes, strict=False):
        number = number * size + code
    logits = generator.tables[len(prefix)][history, number].double()
    return logits - generator._norm(logits[None].float()).double()


def slow_scores(slow: Slow, generator: TableGenerator, num_histories: int) -> torch.Tensor:
    """(B, leaves)"""
    return torch.tensor(
        [
            [
                sum(
                    float(slow.after(leaf[:level], prefix_log_p(generator, history, leaf[:level]))[leaf[level]])
                    for level in range(len(leaf))
                )
                for leaf in slow.leaves
            ]
            for history in range(num_histories)
        ],
        dtype=torch.float32,
    )


def late_writer(world: World, num_known: int) -> Generator:
    removed = np.flatnonzero(~world.alive)
    return writing_late(world.generator, LateCodes.of(world.trie, world.codes, num_known, removed))


@settings(max_examples=20, deadline=None)
@given(worlds(), st.floats(0, 1))
def test_search_and_exact_scores_follow_the_slow_reference(world: World, share: float) -> None:
    num_known = int(share * len(world.codes))
    writer, slow = late_writer(world, num_known), Slow(world.codes, world.alive, num_known)
    expected = slow_scores(slow, world.generator, world.num_histories)
    exact = score_all_leaves(writer, world.batch, world.trie)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-4)
    in_runs = score_all_leaves(writer, world.batch, world.trie, max_logits=1)
    torch.testing.assert_close(in_runs, exact, rtol=1e-4, atol=1e-4)
    beams = beam_search(writer, world.batch, world.trie, width=10_000, num_results=len(world.codes))
    scored = exact.gather(1, beams.leaf_ids.clamp(min=0)).masked_fill(~beams.valid_mask, -math.inf)
    torch.testing.assert_close(beams.scores, scored, rtol=1e-4, atol=1e-4)
    assert beams.valid_mask.sum() == world.num_histories * world.alive.sum()


@settings(max_examples=12, deadline=None)
@given(worlds(), st.floats(0, 1), st.sampled_from([0.7, 1.0]))
def test_draws_have_the_probabilities_that_teacher_forcing_gives(
    world: World, share: float, temperature: float
) -> None:
    num_known = int(share * len(world.codes))
    writer, slow = late_writer(world, num_known), Slow(world.codes, world.alive, num_known)
    context = writer.context(world.batch)
    drawn = sample(writer, context, world.trie, count=5, temperature=temperature, seed=1)
    log_p = masked_log_probs(writer, context, drawn.sids, world.trie, temperature)
    torch.testing.assert_close(log_p, drawn.log_probs, rtol=1e-4, atol=1e-4)
    free = sample(writer, context, world.trie, count=5, mode="free", temperature=temperature, seed=1)
    log_p = free_log_probs(writer, context, free.sids, temperature)
    torch.testing.assert_close(log_p, free.log_probs, rtol=1e-4, atol=1e-4)
    for history in range(world.num_histories):
        for place in range(5):
            sid = tuple(drawn.sids[history, place].tolist())
            for level, code in enumerate(sid):
                among = slow.after(sid[:level], prefix_log_p(world.generator, history, sid[:level]))
                expected = (among / temperature).log_softmax(0)[code]
                assert abs(float(drawn.log_probs[history, place, level]) - float(expected)) < 1e-3


SIZES = (4, 4)
#         known: three below 0, one below 1       late: beside the three, a prefix of its own with two, one shared sid
CODES = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [0, 3], [2, 1], [2, 3], [1, 0]])


def hand_made_world(
    num_known: int = 4, removed: tuple[int, ...] = ()
) -> tuple[TableGenerator, LateCodes | None, CodeTrie]:
    generator = TableGenerator(SIZES, 1, seed=0)
    trie = CodeTrie.build(CODES, SIZES, alive=~np.isin(np.arange(len(CODES)), removed))
    return generator, LateCodes.of(trie, CODES, num_known, np.array(removed, dtype=np.int64)), trie


def test_a_late_item_is_as_likely_as_those_beside_it_on_average() -> None:
    generator, late, trie = hand_made_world()
    first = generator.tables[0][0, 0].log_softmax(0)
    second = generator.tables[1][0].log_softmax(1)
    scores = score_all_leaves(writing_late(generator, late), indices(1), trie).exp()[0]
    # six leaves: [0,0] [0,1] [0,2] [0,3] [1,0] [2,1] [2,3]; below [0] and [1] stand five, below [2] two late ones
    known_first = first[:2].exp().sum()
    below_0 = second[0, :3].exp()
    expected = [*(first[0].exp() * 5 / 7 * 3 / 4 * below_0), first[0].exp() * 5 / 7 * below_0.sum() / 4]
    expected += [first[1].exp() * 5 / 7 * second[1, 0].exp(), known_first / 7, known_first / 7]
    torch.testing.assert_close(scores, torch.stack([value.float() for value in expected]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[3], scores[:3].mean(), rtol=1e-5, atol=1e-6)


def test_nothing_is_around_a_generator_where_no_node_is_late() -> None:
    generator, late, _ = hand_made_world(num_known=len(CODES))
    assert late is None
    assert writing_late(generator, late) is generator
    generator, late, trie = hand_made_world(removed=(4, 5, 6))  # item 7 is late and shares its whole semantic ID
    assert late is None
    assert trie.num_leaves == 4


def test_what_a_removed_item_taught_stays_known() -> None:
    codes = np.array([[0, 0], [1, 0], [0, 0], [1, 1]])
    alive = np.array([False, False, True, True])
    trie = CodeTrie.build(codes, SIZES, alive=alive)
    late = LateCodes.of(trie, codes, 2, np.array([0, 1]))
    assert late is not None
    generator = TableGenerator(SIZES, 1, seed=0)
    scores = score_all_leaves(writing_late(generator, late), indices(1), trie)[0]
    first, second = generator.tables[0][0, 0].log_softmax(0), generator.tables[1][0].log_softmax(1)
    torch.testing.assert_close(scores[0], first[0] + second[0, 0])  # another item of this semantic ID was learned from
    torch.testing.assert_close(scores[1], first[1])  # the prefix too, but none of what stands below it now


def test_a_prefix_whose_known_codes_cannot_be_written_leaves_no_nan() -> None:
    generator, late, trie = hand_made_world()
    generator.tables[1][0, 0] = -math.inf
    table = generator.tables[0].requires_grad_()
    writer = writing_late(generator, late)
    found = masked_log_probs(writer, writer.context(indices(1)), torch.from_numpy(CODES)[None], trie)
    assert not found.isnan().any()
    assert (found[0, [0, 4], 1] == -math.inf).all()
    found[0, [3, 5, 6]].sum().backward()
    assert table.grad is not None
    assert table.grad.isfinite().all()


def test_lists_begin_every_item_at_the_root() -> None:
    generator = ListTables(SIZES, 2, num_histories=1, seed=0)
    _, late, trie = hand_made_world()
    writer = writing_late(generator, late)
    assert isinstance(writer, SessionGenerator)
    found = session_beam_search(writer, indices(1), trie, length=2, width=200, code_width=200, num_results=100)
    slow = Slow(CODES, np.ones(len(CODES), dtype=bool), 4)
    inner = generator.inner
    for items, score in zip(found.item_ids[0].tolist(), found.scores[0].tolist(), strict=True):
        if items[0] < 0:
            continue
        stream, expected = tuple(CODES[items].reshape(-1).tolist()), 0.0
        for place in range(4):
            own = stream[2 * (place // 2) : place]  # of the item that is being written
            expected += float(slow.after(own, prefix_log_p(inner, 0, stream[:place]))[stream[place]])
        assert abs(score - expected) < 1e-4
    assert int(found.valid_mask.sum()) == 8 * 7  # every list of two


def test_wrappers_play_the_role_of_what_they_are_around() -> None:
    generator, late, _ = hand_made_world()
    assert isinstance(writing_late(generator, late), LateWriter)
    assert isinstance(writing_late(ListTables(SIZES, 2, num_histories=1, seed=0), late), LateListWriter)
    generator.scores_late_codes = True  # type: ignore[attr-defined]
    assert writing_late(generator, late) is generator


@pytest.mark.parametrize("num_late", [1, 50, 2_000])
def test_tables_are_as_large_as_what_is_late(num_late: int) -> None:
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 64, (20_000, 3)), axis=0)
    codes = codes[rng.permutation(len(codes))]
    trie = CodeTrie.build(codes, (64, 64, 64))
    late = LateCodes.of(trie, codes, len(codes) - num_late, np.array([], dtype=np.int64))
    assert late is not None
    for above, here in pairwise(late.levels):
        assert len(here.keys) <= num_late
        assert here.keys.max() < len(above.keys) * 64
    assert sum(int((level.late < 64).sum()) for level in late.levels[-1:]) == num_late
