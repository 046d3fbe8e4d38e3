"""Codes that are written all at once: log p(item) is a sum over its codes, so items are scored and nothing is searched.

:class:`ExactSearch` gathers the codes' log-probabilities for every item: cheap up to some 100,000 items, and what
:class:`GraphSearch` is held against. That one walks (RPG, arXiv 2506.05781): each semantic ID knows those with the
most like codes (:mod:`sidera.decode.likeness`); from popular and random ones on, the neighbours of the best ``width``
are scored, round after round, until the best have no neighbour that was not scored.

Both answer as a beam search does: the trie says what exists, ``exclude`` and ``allowed`` bar items, equal scores go to
the lower leaf. What is barred is walked over and not answered. A walk that finds fewer items than may be answered is
followed by the exact search, and where little is allowed only that is made.

Shape legend: B histories · W semantic IDs that are expanded · E neighbours of each · V scored ones of a history · L
levels · K codes of a level · n items, or places in ``trie.leaf_items``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.decode.beam import Beams, Candidates, check_search, items_of, of_whole, results_of
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.likeness import like_neighbours
from sidera.ops.trie import CodeTrie
from sidera.roles import ParallelGenerator

BY_COLUMN = 4  # histories from which on a row of the table of codes is read for all of them at once
MAX_SCORES = 1 << 26  # (B, n) that exist at a time
REMADE = 0.1  # late semantic IDs, of those of a graph, from which on it is made again


class ExactSearch:
    """Scores of all items of a trie."""

    def __init__(self, generator: ParallelGenerator, trie: CodeTrie) -> None:
        self.generator, self.trie = generator, trie

    @cached_property
    def rows(self) -> Tensor:
        """(n, L): rows of the codes of each item of ``trie.leaf_items``, on the device of the last answer."""
        leaves = self.trie.leaf_of_place if self.trie.shared_leaves.size else np.arange(self.trie.num_leaves)
        return _rows(self.trie.leaf_codes(leaves), self.trie)

    @torch.inference_mode()
    def __call__(
        self, context: Any, *, width: int, num_results: int, exclude: Jagged | None = None,
        allowed: Allowed | None = None,
    ) -> Beams:  # fmt: skip
        """``width`` is not read: nothing is pruned."""
        check_search(self.generator, context, self.trie, max(1, width), num_results, exclude)
        return self.of_scores(self.generator.code_log_probs(context), num_results, exclude, allowed)

    def of_scores(
        self, log_probs: Sequence[Tensor], num_results: int, exclude: Jagged | None, allowed: Allowed | None
    ) -> Beams:
        """The best items for log-probabilities of all codes, L of (B, K)."""
        num_histories, device, trie = len(log_probs[0]), log_probs[0].device, self.trie
        if allowed is not None:
            allowed.check(trie, num_histories)
            if (sparse := allowed.one_sparse) is not None:
                part, leaves = sparse.part
                few = ExactSearch(self.generator, part)
                return of_whole(few.of_scores(log_probs, num_results, exclude, None), leaves)
        eligible = Eligible(trie, num_histories, device, exclude, allowed)
        scores = self.scores(torch.cat(tuple(log_probs), dim=1))  # (B, n)
        places = torch.arange(scores.shape[1], device=device)
        if eligible.masks:
            mask = eligible.masks[-1]
            scores.masked_fill_(~(mask if eligible.which is None else mask[eligible.which[:, 0]]), NEG_INF)
        if eligible.excluded is not None:
            room = F.pad(scores, (0, 1))  # the last column takes the filling
            scores = room.scatter_(1, eligible.excluded, NEG_INF)[:, :-1]
        tables = trie.tensors(device)
        leaves_of = torch.from_numpy(trie.leaf_of_place).to(device).long() if trie.shared_leaves.size else places
        found = Candidates(scores, leaves_of.expand_as(scores), places.expand_as(scores))
        return results_of(found, tables.leaf_items.long().expand_as(scores), tables, num_results, scores.is_cuda)

    def scores(self, table: Tensor) -> Tensor:
        """(B, sum of K) -> (B, n)"""
        rows = self.rows = self.rows.to(table.device)
        step = max(1, MAX_SCORES // max(1, len(rows)))
        parts = [_summed(part, rows) for part in table.split(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(codes: np.ndarray, trie: CodeTrie) -> Tensor:
    """Codes (n, L) -> (n, L) int64: where they stand in a table of all levels."""
    return torch.from_numpy(codes + np.concatenate([[0], np.cumsum(trie.level_sizes)[:-1]]))


def _summed(table: Tensor, rows: Tensor) -> Tensor:
    """(B, sum of K), places (n, L) -> (B, n) sums."""
    if len(table) >= BY_COLUMN:
        return F.embedding_bag(rows, table.T.contiguous(), mode="sum").T.contiguous()
    return torch.stack([row[rows].sum(1) for row in table])


class GraphSearch:
    """A walk over semantic IDs with like codes.

    The nodes of a graph stay when items come and go: one whose items are gone is walked over, and semantic IDs that
    came later are scored at the start of every walk, until they are a tenth (``REMADE``) of the graph and it is made
    again.
    """

    def __init__(
        self, generator: ParallelGenerator, trie: CodeTrie, num_neighbours: int = 32, rounds: int = 8,
        num_starts: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        self.generator, self.trie, self.rounds = generator, trie, rounds
        self.settings = {"num_neighbours": num_neighbours, "rounds": rounds, "num_starts": num_starts, "seed": seed}
        self.exact = ExactSearch(generator, trie)
        with torch.no_grad():
            vectors = torch.cat(tuple(generator.code_vectors())).detach()
        self.codes = trie.leaf_codes(np.arange(trie.num_leaves))  # (n, L) of each node
        self.leaves = torch.arange(trie.num_leaves, device=vectors.device)  # (n,) node -> leaf, -1: its items are gone
        self.rows = _rows(self.codes, trie).to(vectors.device)
        self.neighbours = like_neighbours(vectors, self.rows, num_neighbours, seed).to(vectors.device)
        drawn = torch.Generator().manual_seed(seed)
        self.starts = torch.randperm(trie.num_leaves, generator=drawn)[:num_starts].sort().values.to(vectors.device)

    def over(self, generator: ParallelGenerator, trie: CodeTrie) -> GraphSearch:
        """The same walk over a catalogue whose items came and went."""
        known, device = len(self.neighbours), self.rows.device
        leaves = trie.find(self.codes[:known])
        late = np.setdiff1d(np.arange(trie.num_leaves), leaves)
        if len(late) > REMADE * known:
            return GraphSearch(generator, trie, **self.settings)
        other = copy.copy(self)
        other.generator, other.trie, other.exact = generator, trie, ExactSearch(generator, trie)
        other.codes = np.concatenate([self.codes[:known], trie.leaf_codes(late)])
        other.leaves = torch.from_numpy(np.concatenate([leaves, late])).to(device)
        other.rows = _rows(other.codes, trie).to(device)
        starts = self.starts[self.starts < known]
        other.starts = torch.cat([starts, torch.arange(known, known + len(late), device=device)])
        return other

    @torch.inference_mode()
    def __call__(
        self, context: Any, *, width: int, num_results: int, exclude: Jagged | None = None,
        allowed: Allowed | None = None,
    ) -> Beams:  # fmt: skip
        """``width``: semantic IDs whose neighbours are scored in a round."""
        check_search(self.generator, context, self.trie, width, num_results, exclude)
        log_probs = self.generator.code_log_probs(context)
        if allowed is not None and allowed.one_sparse is not None:
            return self.exact.of_scores(log_probs, num_results, exclude, allowed)
        scores, nodes = self.walk(torch.cat(tuple(log_probs), dim=1), width)
        leaves, order = self.leaves[nodes].sort(dim=1, stable=True)  # equal scores go to the lower leaf
        scores, leaves = scores.gather(1, order).masked_fill_(leaves < 0, NEG_INF), leaves.clamp_(min=0)
        tables = self.trie.tensors(scores.device)
        eligible = Eligible(self.trie, len(scores), scores.device, exclude, allowed)
        candidates, places = items_of(Candidates(scores, leaves, torch.zeros_like(leaves)), tables)
        eligible.close_items(candidates.scores, places)
        items = tables.leaf_items[places].long()
        found = results_of(candidates, items, tables, num_results, scores.is_cuda)
        least = eligible.num_legal().clamp(max=num_results)
        if bool((found.valid_mask.sum(1) < least).any()):
            return self.exact.of_scores(log_probs, num_results, exclude, allowed)
        return found

    def walk(self, table: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """(B, sum of K) -> scores and nodes (B, V), each node once; score -inf behind a history's last."""
        rows, number, known = self.rows, len(self.rows), len(self.neighbours)
        found = self.starts.expand(len(table), -1)
        scores = _summed(table, rows[self.starts])
        visited = torch.zeros(len(table), number + 1, dtype=torch.bool, device=table.device)
        visited.scatter_(1, found, True)
        nodes, all_scores = found, scores
        open_scores = scores.masked_fill(found >= known, NEG_INF)  # -inf: its neighbours were scored, or it has none
        for _ in range(self.rounds):
            few = min(width, open_scores.shape[1])
            best, places = open_scores.topk(few, dim=1)
            floor = all_scores.topk(few, dim=1).values[:, -1:]  # what is worse than so many is not expanded
            live = (best >= floor) & (best > NEG_INF)
            if not bool(live.any()):
                break
            open_scores = open_scores.scatter(1, places, NEG_INF)
            expanded = nodes.gather(1, places).clamp_(max=known - 1)
            found = self.neighbours[expanded].masked_fill_(~live[:, :, None], number).flatten(1)
            found = found.sort(dim=1).values  # (B, W*E)
            again = F.pad(found[:, 1:] == found[:, :-1], (1, 0)) | visited.gather(1, found)
            found = found.masked_fill(again, number)
            visited.scatter_(1, found, True)
            new = _of_rows(table, rows, found.clamp(max=number - 1)).masked_fill_(found == number, NEG_INF)
            nodes, all_scores = torch.cat((nodes, found), dim=1), torch.cat((all_scores, new), dim=1)
            open_scores = torch.cat((open_scores, new), dim=1)
        return all_scores, nodes.clamp_(max=number - 1)


def _of_rows(table: Tensor, rows: Tensor, nodes: Tensor) -> Tensor:
    """(B, sum of K), nodes (B, V) -> (B, V) sums of each history's own."""
    codes = rows[nodes]  # (B, V, L)
    return table.gather(1, codes.flatten(1)).view_as(codes).sum(-1)
