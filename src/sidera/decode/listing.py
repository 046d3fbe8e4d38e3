"""Scores of all items at once, where a trie has few prefixes: no beam, so nothing is pruned and nothing is missed.

A search of W beams asks the model what follows W prefixes. Where no level of the trie has more than that, all of them
cost the same, and there is nothing left to choose or to keep track of on the way.

Shape legend: B histories · L levels · n_l nodes of level l · n items that are alive · K codes of a level · R places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sidera.decode.beam import among_siblings, normalised
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, Generator

MOST_LISTED = 20_000  # items
MOST_PREFIXES = 350  # of a level: as many as a recipe's search follows, three times 50 beams and 200 proposals
Links = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Listing:
    """What a generator gives every item that is alive."""

    trie: CodeTrie
    scores: Tensor  # (B, n) float32 log-probabilities of semantic IDs, in the order of ``trie.leaf_items``
    log_probs: tuple[Tensor, ...] = ()  # where asked: L of (B, n_l), of a node's code among its siblings'

    @property
    def item_ids(self) -> Tensor:
        """(n,) int64"""
        return self.trie.tensors(self.scores.device).leaf_items.long()

    def of_codes(self, places: Tensor) -> Tensor:
        """Places (B, R) of items in ``leaf_items`` -> (B, R, L) log-probabilities of each of their codes."""
        nodes, columns = places, []
        if self.trie.shared_leaves.size:
            nodes = torch.searchsorted(self.trie.ranges(places.device).starts[-1], places.int(), right=True) - 1
        parents = [level.to(places.device) for level in links_of(self.trie)[1]]
        for level in reversed(range(self.trie.num_levels)):
            columns.append(self.log_probs[level].gather(1, nodes))
            nodes = parents[level - 1][nodes] if level else nodes
        return torch.stack(columns[::-1], dim=-1)


def lists_whole(trie: CodeTrie) -> bool:
    """Whether the whole trie is listed in place of a search."""
    return trie.leaf_items.size <= MOST_LISTED and max(trie.num_nodes[:-1], default=1) <= MOST_PREFIXES


@torch.inference_mode()
def list_items(generator: Generator, context: Context, trie: CodeTrie, log_probs: bool = False) -> Listing:
    """``log_probs``: of each code among those that may follow its prefix too, as a masked policy draws them."""
    scores, among = level_scores(generator, context, *links_of(trie), log_probs)
    return Listing(trie, of_items(trie, scores), tuple(among))


def of_items(trie: CodeTrie, scores: Tensor) -> Tensor:
    """Scores (B, n_L) of leaves -> (B, n) of their items."""
    if not trie.shared_leaves.size:
        return scores
    return scores.index_select(1, torch.from_numpy(trie.leaf_of_place).long().to(scores.device))


def level_scores(
    generator: Generator, context: Context, tokens: Sequence[Tensor], parents: Sequence[Tensor], log_probs: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities (B, n_L) of all leaves below consecutive prefixes, and with ``log_probs`` of each node's code
    among its siblings', L of (B, n_l).

    tokens: L of (n_l,) codes of the nodes; parents: L-1 of (n_{l+1},) places of their parents in the level above;
    int64, on any device.
    """
    cache = generator.new_cache(context, max((len(level) for level in tokens[:-1]), default=1))
    logits, log_norm = normalised(generator.step(context, cache, 0, None, None))
    tokens, parents = ([level.to(logits.device) for level in levels] for levels in (tokens, parents))
    scores = logits[:, 0].float().index_select(1, tokens[0]) - log_norm  # (B, n_0)
    among, above = [scores.log_softmax(1)] if log_probs else [], torch.zeros_like(tokens[0])
    for level in range(1, len(tokens)):
        codes = tokens[level - 1].expand(scores.shape[0], -1)  # (B, n_{l-1})
        logits, log_norm = normalised(generator.step(context, cache, level, codes, above.expand_as(codes)))
        above = parents[level - 1]
        of_codes = logits.flatten(1).index_select(1, above * logits.shape[2] + tokens[level]).float()  # (B, n_l)
        scores = (scores - log_norm).index_select(1, above) + of_codes
        if log_probs:
            among.append(among_siblings(of_codes, above.expand_as(of_codes), codes.shape[1]))
    return scores, among


_KEPT: WeakKeyDictionary[CodeTrie, Links] = WeakKeyDictionary()


def links_of(trie: CodeTrie) -> Links:
    """``tokens`` and ``parents`` of :func:`level_scores` for the whole trie; made once."""
    if trie not in _KEPT:
        tokens, parents = ([torch.from_numpy(one).long() for one in each] for each in (trie.tokens, trie.parents))
        _KEPT[trie] = tokens, parents
    return _KEPT[trie]
