"""Given items are scored as a search would have scored them, in one pass over the shared context."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from table_generator import Norm, TableGenerator

from hand_made import hand_made
from sidera.decode.exact import score_all_items
from sidera.decode.given import given_log_probs
from sidera.ops.trie import CodeTrie

SIZES = (3, 4, 5)


def world(norm: Norm = "codes", recompute: bool = False) -> tuple[TableGenerator, CodeTrie, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, size, 30) for size in SIZES], axis=1)
    codes = np.unique(codes, axis=0)
    return TableGenerator(SIZES, 4, 0, norm=norm, recompute=recompute), CodeTrie.build(codes, SIZES), codes


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("recompute", [False, True])
def test_given_items_score_as_the_exhaustive_search_scores_them(norm: Norm, recompute: bool) -> None:
    generator, trie, codes = world(norm, recompute)
    histories = torch.arange(4)
    context = generator.context(hand_made(histories, torch.arange(5)))
    exact = score_all_items(generator, context, trie)  # (B, N)
    chosen = torch.stack([torch.randperm(len(codes), generator=torch.Generator().manual_seed(row))[:11]
                          for row in range(4)])  # fmt: skip
    sids = torch.from_numpy(codes)[chosen]
    torch.testing.assert_close(given_log_probs(generator, context, sids), exact.gather(1, chosen))
    sids[1, 3:] = -1  # empty places
    sids[2] = -1
    found = given_log_probs(generator, context, sids)
    empty = (sids < 0).any(-1)
    assert torch.equal(found == float("-inf"), empty)
    torch.testing.assert_close(found[~empty], exact.gather(1, chosen)[~empty])
