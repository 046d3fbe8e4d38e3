"""Lists: an exhaustive search and a slow beam search are the references; no item comes twice, none gets stuck."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from list_tables import ListTables
from table_generator import indices

from sidera.core import InputError
from sidera.decode.session import rank_by_lists, session_beam_search
from sidera.ops.trie import CodeTrie
from sidera.roles import SessionGenerator

SIZES = (3, 2)
CODES = np.array([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 1], [1, 1]])  # items 4 and 5 share a semantic ID
NUM_ITEMS, NUM_HISTORIES = len(CODES), 3


def tables(seed: int = 0, length: int = 3, **settings) -> ListTables:
    return ListTables(SIZES, length, num_histories=NUM_HISTORIES, seed=seed, **settings)


def trie(removed: tuple[int, ...] = ()) -> CodeTrie:
    return CodeTrie.build(CODES, SIZES, alive=~np.isin(np.arange(NUM_ITEMS), removed))


def jagged(lists: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = torch.tensor([0, *(len(entry) for entry in lists)]).cumsum(0)
    return torch.tensor([item for entry in lists for item in entry], dtype=torch.int64), offsets


def exhaustive(generator: ListTables, items: list[int], length: int, history: int) -> list[tuple[float, tuple]]:
    """Every list of distinct items with its log-probability, best first."""
    lists = list(itertools.permutations(items, length))
    sids = torch.from_numpy(CODES[np.array(lists)])[None]
    context = generator.context(indices(NUM_HISTORIES).cut(history, history + 1))
    scores = generator.log_probs_lists(context, sids)[0].sum((1, 2)).tolist()
    return sorted(zip(scores, lists, strict=True), key=lambda pair: -pair[0])


def slow_beam(
    generator: ListTables, items: list[int], length: int, width: int, code_width: int, history: int
) -> list[tuple[float, tuple]]:
    """Beam search with Python lists: partial items are prefixes, legal when an unused item below them exists."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # score, items
    leaf_order = sorted(items, key=lambda item: (*CODES[item], item))
    for _ in range(length):
        partial = [(score, done, ()) for score, done in beams]
        for level in range(len(SIZES)):
            grown = []
            for _, done, prefix in partial:
                for code in range(SIZES[level]):
                    now = (*prefix, code)
                    if any(tuple(CODES[item][: level + 1]) == now and item not in done for item in items):
                        grown.append((score_of(generator, history, done, now), done, now))
            if level + 1 < len(SIZES):
                partial = keep(grown, code_width)
        found = [
            (score, (*done, item))
            for score, done, prefix in grown
            for item in leaf_order
            if tuple(CODES[item]) == prefix and item not in done
        ]
        beams = keep(found, width)
    return sorted(beams, key=lambda beam: -beam[0])


def keep(candidates: list, width: int) -> list:
    """The best, in the order that they came in; of equal scores the first."""
    best = sorted(range(len(candidates)), key=lambda place: -candidates[place][0])[:width]
    return [candidates[place] for place in sorted(best)]


def score_of(generator: ListTables, history: int, done: tuple[int, ...], prefix: tuple[int, ...]) -> float:
    stream = [int(code) for item in done for code in CODES[item]] + list(prefix)
    number, total = 0, 0.0
    for level, code in enumerate(stream):
        logits = generator.inner.tables[level][history, number]
        total += float(logits[code] - (0 if generator.inner.norm == "none" else logits.logsumexp(-1)))
        number = number * generator.inner.level_sizes[level] + code
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_wide_search_is_exhaustive(seed: int, length: int) -> None:
    generator = tables(seed)
    excluded = [[0], [], [3, 3, 6]]
    found = session_beam_search(
        generator, indices(3), trie(removed=(2,)), length=length, width=500, num_results=10, exclude=jagged(excluded)
    )
    for history in range(NUM_HISTORIES):
        items = [item for item in range(NUM_ITEMS) if item != 2 and item not in excluded[history]]
        expected = exhaustive(generator, items, length, history)[:10]
        number = len(expected)
        assert found.valid_mask[history].sum() == number
        np.testing.assert_allclose(found.scores[history, :number], [score for score, _ in expected], rtol=1e-5)
        for place in range(number):
            answered = found.item_ids[history, place].tolist()
            alike = [entry for score, entry in expected if abs(score - expected[place][0]) < 1e-4]
            assert tuple(answered) in alike or place >= number - 2  # items of one ID tie, perhaps across the cut
            assert len(set(answered)) == length
        last = found.item_scores[history, :number, -1]
        np.testing.assert_allclose(last, found.scores[history, :number], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("width", "code_width"), [(1, None), (2, None), (3, 5), (1, 4), (7, None)])
@pytest.mark.parametrize("ties", [False, True])
def test_any_width_equals_the_slow_search(seed: int, width: int, code_width: int | None, ties: bool) -> None:
    generator = tables(seed, norm="none", ties=ties)
    excluded = [[1, 4], [], [0]]
    found = session_beam_search(
        generator, indices(3), trie(), length=3, width=width, code_width=code_width, num_results=width,
        exclude=jagged(excluded),
    )  # fmt: skip
    for history in range(NUM_HISTORIES):
        items = [item for item in range(NUM_ITEMS) if item not in excluded[history]]
        expected = slow_beam(generator, items, 3, width, code_width or width, history)
        answered = found.item_ids[history][found.valid_mask[history]].tolist()
        assert [tuple(entry) for entry in answered] == [entry for _, entry in expected]
        scores = found.scores[history][found.valid_mask[history]]
        np.testing.assert_allclose(scores, [score for score, _ in expected], rtol=1e-5)


@pytest.mark.parametrize("width", [1, 3])
def test_the_caches_are_followed(width: int) -> None:
    cached, recomputing = tables(5, ties=True), tables(5, ties=True, recompute=True)
    first, second = (
        session_beam_search(generator, indices(3), trie(), length=3, width=width, num_results=width)
        for generator in (cached, recomputing)
    )
    assert torch.equal(first.item_ids, second.item_ids)
    assert torch.equal(first.item_scores, second.item_scores)


@pytest.mark.parametrize("width", [1, 2])
def test_a_favoured_prefix_that_is_used_up_does_not_hold_the_list_up(width: int) -> None:
    """Nearly all probability lies on first code 0, which leads to two items: the third must come from elsewhere."""
    generator = tables(1)
    for place in (0, 2, 4):
        generator.inner.tables[place][:, :, 0] += 50
    found = session_beam_search(generator, indices(3), trie(), length=3, width=width)
    assert found.valid_mask.all()
    for row in found.item_ids[:, 0].tolist():
        assert set(row[:2]) == {0, 1}
        assert row[2] in range(2, NUM_ITEMS)


def test_lists_end_where_items_do() -> None:
    left = [[3], [0, 5], []]  # what may be answered
    exclude = jagged([[item for item in range(NUM_ITEMS) if item not in entry] for entry in left])
    found = session_beam_search(tables(2), indices(3), trie(), length=3, width=4, num_results=3, exclude=exclude)
    assert found.valid_mask.tolist() == [[True, False, False], [True, True, False], [False] * 3]
    assert found.item_ids[0, 0].tolist() == [3, -1, -1]
    assert sorted(found.item_ids[1, :2, :2].tolist()) == [[0, 5], [5, 0]]
    assert (found.item_ids[1, :, 2] == -1).all()
    assert (found.item_ids[2] == -1).all()
    assert found.item_scores[0, 0, 1:].tolist() == [-math.inf] * 2
    _, scores = rank_by_lists(tables(2), indices(3), trie(), k=5, beam=5, exclude=exclude)
    assert scores.isfinite().sum(1).tolist() == [1, 2, 0]


@pytest.mark.parametrize("exclude", [None, jagged([[1, 4], [], [0]])])
def test_ranking_goes_on_with_other_lists_without_repeats(exclude) -> None:
    generator = tables(3)
    answers = {k: rank_by_lists(generator, indices(3), trie(), k=k, beam=20, exclude=exclude) for k in (1, 2, 3, 5, 9)}
    for k, (item_ids, scores) in answers.items():
        assert item_ids.shape == scores.shape == (3, k)
        assert torch.equal(item_ids, answers[9][0][:, :k])
    item_ids, scores = answers[9]
    best = session_beam_search(generator, indices(3), trie(), length=3, width=4, code_width=20, exclude=exclude)
    assert torch.equal(item_ids[:, :3], best.item_ids[:, 0])
    context = generator.context(indices(3))
    first = generator.log_probs(context, torch.from_numpy(CODES)[None].expand(3, -1, -1)).sum(-1)  # (B, N)
    for history in range(3):
        gone = [] if exclude is None else exclude[0][exclude[1][history] : exclude[1][history + 1]].tolist()
        answered = [item for item in item_ids[history].tolist() if item >= 0]
        assert sorted(answered) == [item for item in range(NUM_ITEMS) if item not in gone]
        others = first[history][answered[3:]]
        assert others.tolist() == sorted(others.tolist(), reverse=True)
        found = scores[history, : len(answered)]
        assert found.tolist() == sorted(found.tolist(), reverse=True)
        torch.testing.assert_close(found[3:], found[2] + others.cumsum(0))


def test_bad_questions_are_refused() -> None:
    assert isinstance(tables(), SessionGenerator)
    with pytest.raises(InputError, match="session_length"):
        session_beam_search(tables(), indices(3), trie(), length=4, width=2)
    with pytest.raises(InputError, match="width"):
        session_beam_search(tables(), indices(3), trie(), length=3, width=0)
    with pytest.raises(InputError, match="exclude names 1 histories"):
        session_beam_search(tables(), indices(3), trie(), length=3, width=2, exclude=jagged([[0]]))
