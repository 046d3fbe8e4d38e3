"""Exact scores of the whole catalogue: the beam search that prunes nothing.

The reference that :func:`sidera.decode.beam.beam_search` is held against, and the ranking to report when beam width is
not to be an influence. A run of consecutive leaves has consecutive ancestors on every level (the trie is sorted), so
the catalogue is walked in runs that fit in memory, each through the generator's own ``step``.

Shape legend: B histories · n_l nodes of level l inside the run · K codes of a level · N items.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.decode.eligible import NEG_INF
from sidera.decode.listing import level_scores
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, Generator


@torch.inference_mode()
def score_all_leaves(
    generator: Generator, context: Context | Batch, trie: CodeTrie, *, max_logits: int = 1 << 24
) -> Tensor:
    """(B, num_leaves) float32: the log-probability of every semantic ID of the trie.

    ``max_logits`` bounds the logits (B, W, K) that exist at a time.
    """
    if isinstance(context, Batch):
        context = generator.context(context)
    width = max(1, max_logits // (context.num_histories * max(trie.level_sizes)))
    num_rows = trie.num_nodes[-2] if trie.num_levels > 1 else 1  # prefixes that the last step continues
    parts = [
        _score_run(generator, context, trie, start, min(start + width, num_rows)) for start in range(0, num_rows, width)
    ]
    return torch.cat(parts, dim=1)


def score_all_items(generator: Generator, context: Context | Batch, trie: CodeTrie) -> Tensor:
    """(B, N) float32: every item's log-probability, -inf for removed ones. Items that share a semantic ID tie."""
    leaf_scores = score_all_leaves(generator, context, trie)
    leaves = torch.from_numpy(trie.leaf_of_item()).long().to(leaf_scores.device)  # (N,)
    return leaf_scores[:, leaves.clamp(min=0)].masked_fill(leaves < 0, NEG_INF)


def _score_run(generator: Generator, context: Context, trie: CodeTrie, start: int, end: int) -> Tensor:
    """(B, leaves of the run): scores below the nodes start..end of the last level but one."""
    runs = _ancestor_runs(trie, start, end)  # L of (first node, last node + 1)
    tokens = [array[low:high] for array, (low, high) in zip(trie.tokens, runs, strict=True)]
    parents = []
    for ptr, (above, _), (low, high) in zip(trie.ptr, runs[:-1], runs[1:], strict=True):
        parents.append(np.searchsorted(ptr, np.arange(low, high, dtype=np.int32), side="right") - 1 - above)
    codes, places = ([torch.from_numpy(array).long() for array in arrays] for arrays in (tokens, parents))
    return level_scores(generator, context, codes, places)[0]


def _ancestor_runs(trie: CodeTrie, start: int, end: int) -> list[tuple[int, int]]:
    """Per level the nodes that are ancestors or children of the nodes start..end of the last level but one."""
    if trie.num_levels == 1:
        return [(0, trie.num_leaves)]
    runs = [(start, end)]
    for ptr in reversed(trie.ptr[:-1]):
        low, high = runs[0]
        first, last = np.searchsorted(ptr, [low, high - 1], side="right") - 1
        runs.insert(0, (int(first), int(last) + 1))
    return [*runs, (int(trie.ptr[-1][start]), int(trie.ptr[-1][end]))]
