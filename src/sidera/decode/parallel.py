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


class ExactSearch:
    """Scores of all items of a trie."""

    def __init__(self, generator: ParallelGenerator, trie: CodeTrie) -> None:
        self.generator, self.trie = generator, trie

    @cached_property
    def rows(self) -> Tensor:
        """(n, L) int64: where the codes of each item of ``trie.leaf_items`` stand in a table of all levels."""
        starts = np.concatenate([[0], np.cumsum(self.trie.level_sizes)[:-1]])
        leaves = self.trie.leaf_of_place if self.trie.shared_leaves.size else np.arange(self.trie.num_leaves)
        return torch.from_numpy(self.trie.leaf_codes(leaves) + starts)

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
        rows = self.rows.to(table.device)
        step = max(1, MAX_SCORES // max(1, len(rows)))
        parts = [_summed(part, rows) for part in table.split(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _summed(table: Tensor, rows: Tensor) -> Tensor:
    """(B, sum of K), places (n, L) -> (B, n) sums."""
    if len(table) >= BY_COLUMN:
        return F.embedding_bag(rows, table.T.contiguous(), mode="sum").T.contiguous()
    return torch.stack([row[rows].sum(1) for row in table])


class GraphSearch:
    """A walk over semantic IDs with like codes."""

    def __init__(
        self, generator: ParallelGenerator, trie: CodeTrie, num_neighbours: int = 32, rounds: int = 8,
        num_starts: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        self.generator, self.trie, self.rounds = generator, trie, rounds
        self.exact = ExactSearch(generator, trie)
        starts = np.concatenate([[0], np.cumsum(trie.level_sizes)[:-1]])
        self.rows = torch.from_numpy(trie.leaf_codes(np.arange(trie.num_leaves)) + starts)  # (leaves, L)
        with torch.no_grad():
            vectors = torch.cat(tuple(generator.code_vectors())).detach()
            self.neighbours = like_neighbours(vectors, self.rows.to(vectors.device), num_neighbours, seed)
        drawn = torch.Generator().manual_seed(seed)
        self.starts = torch.randperm(trie.num_leaves, generator=drawn)[:num_starts].sort().values

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
        scores, leaves = self.walk(torch.cat(tuple(log_probs), dim=1), width)
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
        """(B, sum of K) -> scores and leaves (B, V), each leaf once, ascending; score -inf behind a history's last."""
        device = table.device
        rows, neighbours = self.rows.to(device), self.neighbours.to(device)
        leaves = self.starts.to(device).expand(len(table), -1)
        scores = _summed(table, rows[self.starts.to(device)])
        visited = torch.zeros(len(table), self.trie.num_leaves + 1, dtype=torch.bool, device=device)
        visited.scatter_(1, leaves, True)
        open_scores = scores.clone()  # -inf: its neighbours were scored
        all_leaves, all_scores = [leaves], [scores]
        for _ in range(self.rounds):
            best, places = open_scores.topk(min(width, open_scores.shape[1]), dim=1)
            # what is worse than the best `width` found so far is not expanded
            floor = torch.cat(all_scores, dim=1).topk(min(width, open_scores.shape[1]), dim=1).values[:, -1:]
            live = (best >= floor) & (best > NEG_INF)
            if not bool(live.any()):
                break
            open_scores = open_scores.scatter(1, places, NEG_INF)
            expanded = torch.cat(all_leaves, dim=1).gather(1, places).clamp_(max=self.trie.num_leaves - 1)
            found = neighbours[expanded].masked_fill_(~live[:, :, None], self.trie.num_leaves).flatten(1)
            found = found.sort(dim=1).values  # (B, W*E)
            again = F.pad(found[:, 1:] == found[:, :-1], (1, 0)) | visited.gather(1, found)
            found = found.masked_fill(again, self.trie.num_leaves)
            visited.scatter_(1, found, True)
            there = found < self.trie.num_leaves
            new = _of_rows(table, rows, found.clamp(max=self.trie.num_leaves - 1)).masked_fill_(~there, NEG_INF)
            all_leaves.append(found)
            all_scores.append(new)
            open_scores = torch.cat((open_scores, new), dim=1)
        leaves, order = torch.cat(all_leaves, dim=1).sort(dim=1)
        return torch.cat(all_scores, dim=1).gather(1, order), leaves.clamp_(max=self.trie.num_leaves - 1)


def _of_rows(table: Tensor, rows: Tensor, leaves: Tensor) -> Tensor:
    """(B, sum of K), leaves (B, V) -> (B, V) sums of each history's own."""
    codes = rows[leaves]  # (B, V, L)
    return table.gather(1, codes.flatten(1)).view_as(codes).sum(-1)
