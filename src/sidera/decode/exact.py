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
from sidera.decode.beam import normalised
from sidera.decode.eligible import NEG_INF
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
    cache = generator.new_cache(context, max(high - low for low, high in runs[:-1]) if len(runs) > 1 else 1)
    logits, log_norm = normalised(generator.step(context, cache, 0, None, None))
    device = logits.device
    tokens = [
        torch.from_numpy(array[low:high]).to(device).long()
        for array, (low, high) in zip(trie.tokens, runs, strict=True)
    ]
    scores = logits[:, 0, tokens[0]].float() - log_norm  # (B, n_0)
    parents = torch.zeros_like(tokens[0])  # (n_0,)
    for level in range(1, trie.num_levels):
        codes = tokens[level - 1].expand(context.num_histories, -1)  # (B, n_{l-1})
        output = generator.step(context, cache, level, codes, parents.expand_as(codes))
        logits, log_norm = normalised(output)
        low, high = runs[level]
        nodes = np.arange(low, high, dtype=np.int32)
        above = np.searchsorted(trie.ptr[level - 1], nodes, side="right") - 1 - runs[level - 1][0]
        parents = torch.from_numpy(above).to(device)  # (n_l,) place of each node's parent in the level above
        scores = (scores - log_norm)[:, parents] + logits[:, parents, tokens[level]].float()  # (B, n_l)
    return scores


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
