"""Filling codes surest first, against a slow reference that walks sets of items; and nothing but items is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidera.decode.eligible import Allowed
from sidera.decode.unmask import UnmaskSearch
from sidera.ops.trie import CodeTrie

SIZES, NUM_ITEMS = (5, 4, 6, 3), 60


@dataclass
class Rows:
    numbers: Tensor  # (B,) which history

    @property
    def num_histories(self) -> int:
        return len(self.numbers)


class Filler:
    """Log-probabilities that depend on the history and on every filled code, through a random table."""

    level_sizes = SIZES

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.base = torch.randn(8, sum(SIZES), generator=generator)
        self.seen = torch.randn(sum(SIZES) + 1, sum(SIZES), generator=generator)
        self.passes = 0

    def fill_log_probs(self, context: Rows, codes: Tensor) -> list[Tensor]:
        self.passes += 1
        starts = torch.tensor((0, *np.cumsum(SIZES)[:-1]))
        rows = torch.where(codes >= 0, codes + starts, sum(SIZES))  # (B, W, L)
        self.seen[-1] = 0
        logits = self.base[context.numbers][:, None] + self.seen[rows].sum(2)
        return [part.log_softmax(-1) for part in logits.split(SIZES, dim=-1)]


def slow(
    model: Filler, number: int, codes: np.ndarray, allowed: np.ndarray, width: int, rounds: int
) -> dict[int, float]:
    """item -> score, of one history."""
    context = Rows(torch.tensor([number]))
    hypotheses = [((-1,) * len(SIZES), 0.0, np.flatnonzero(allowed).tolist())]
    for turn in range(rounds):
        grown = []
        for filled, score, items in hypotheses:
            parts = [part[0, 0] for part in model.fill_log_probs(context, torch.tensor([[filled]]))]
            open_levels = [level for level, code in enumerate(filled) if code < 0]
            if turn + 1 == rounds:
                grown += [
                    (item, score + sum(float(parts[at][codes[item, at]]) for at in open_levels)) for item in items
                ]
                continue
            level = max(open_levels, key=lambda level: float(parts[level].max()))
            for code in sorted({int(codes[item, level]) for item in items}):
                own = [item for item in items if codes[item, level] == code]
                after = tuple(code if at == level else old for at, old in enumerate(filled))
                grown.append((after, score + float(parts[level][code]), own))
        if turn + 1 == rounds:
            return dict(grown)
        hypotheses = sorted(grown, key=lambda one: -one[1])[:width]
    raise AssertionError


def world() -> tuple[np.ndarray, CodeTrie]:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, size, NUM_ITEMS) for size in SIZES], axis=1)
    codes[5] = codes[9]
    return codes, CodeTrie.build(codes, SIZES, alive=np.arange(NUM_ITEMS) != 3)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [1, 4, 200])
def test_it_fills_as_the_slow_one_does(rounds: int, width: int) -> None:
    codes, trie = world()
    rng, model = np.random.default_rng(1), Filler()
    allowed = rng.random((3, NUM_ITEMS)) < 0.7
    excluded = [np.array([2, 5]), np.array([], dtype=np.int64), np.array([3, 40])]
    offsets = torch.tensor([0, 2, 2, 4])
    search = UnmaskSearch(model, trie, rounds)
    found = search(
        Rows(torch.arange(3)), width=width, num_results=12,
        exclude=(torch.from_numpy(np.concatenate(excluded)), offsets), allowed=Allowed.of_items(trie, allowed),
    )  # fmt: skip
    assert model.passes == rounds
    for row in range(3):
        mask = allowed[row] & (np.arange(NUM_ITEMS) != 3)
        mask[excluded[row]] = False
        expected = slow(model, row, codes, mask, width, rounds)
        best = sorted(expected.values(), reverse=True)[:12]
        items = found.item_ids[row][found.valid_mask[row]].tolist()
        np.testing.assert_allclose(found.scores[row][: len(items)], best, atol=1e-4)
        np.testing.assert_allclose([expected[item] for item in items], best, atol=1e-4)
        assert len(items) == len(set(items)) == len(best)


def test_a_filter_that_leaves_little_is_searched_alone() -> None:
    codes, trie = world()
    few = np.isin(np.arange(NUM_ITEMS), [1, 5, 9, 30])
    mask: Any = Allowed.of_items(trie, few[None]).masks[0]
    found = UnmaskSearch(Filler(), trie)(Rows(torch.arange(2)), width=1, num_results=9, allowed=Allowed([mask, mask]))
    found = UnmaskSearch(Filler(), trie)(Rows(torch.arange(2)), width=9, num_results=9, allowed=Allowed([mask, mask]))
    assert [sorted(row) for row in found.item_ids.tolist()] == [[-1] * 5 + [1, 5, 9, 30]] * 2
    assert torch.equal(found.sids[found.valid_mask], torch.from_numpy(codes)[found.item_ids[found.valid_mask]])
