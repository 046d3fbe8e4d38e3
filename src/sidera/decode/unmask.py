"""Codes that are filled in any order: the surest first, and only what some item has (masked diffusion).

A hypothesis has some codes filled and the others open. In a round the model scores all codes of every hypothesis at
once; each then fills the open level that it is surest of, with every code that an item of it has, and the best
``width`` of what comes out live on. In the last round the open levels are filled together: a hypothesis then scores
each of its items by the sum of the codes that are left. So a search takes ``rounds`` passes however many levels there
are, and writes nothing that does not exist.

The hypotheses of a history part the items among them, so which items belong to one is a list (row, hypothesis, leaf),
and no trie of every subset of levels is needed. Items that are barred are not in the list from the first round on.

Scores are log p of the codes in the order in which they were filled. Ties go to the lower leaf.

Shape legend: B histories · W hypotheses · L levels · K most codes of a level · m leaves of all hypotheses · n places in
``trie.leaf_items``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.decode.beam import Beams, Candidates, check_search, items_of, of_whole, results_of
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.select import best_positions
from sidera.ops.trie import CodeTrie
from sidera.roles import MaskedGenerator

ROUNDS = 3  # passes of a search, where there are as many levels


class UnmaskSearch:
    """Fills the codes of items of a trie."""

    def __init__(self, generator: MaskedGenerator, trie: CodeTrie, rounds: int = ROUNDS) -> None:
        self.generator, self.trie, self.rounds = generator, trie, min(rounds, trie.num_levels)
        weights = getattr(generator, "parameters", None)
        device = None if weights is None else next(iter(weights())).device
        self.codes = torch.from_numpy(trie.leaf_codes(np.arange(trie.num_leaves))).to(device)  # (leaves, L)

    @torch.inference_mode()
    def __call__(
        self, context: Any, *, width: int, num_results: int, exclude: Jagged | None = None,
        allowed: Allowed | None = None,
    ) -> Beams:  # fmt: skip
        check_search(self.generator, context, self.trie, width, num_results, exclude)
        if allowed is not None:
            allowed.check(self.trie, context.num_histories)
            if (sparse := allowed.one_sparse) is not None:
                part, leaves = sparse.part
                few = UnmaskSearch(self.generator, part, self.rounds)
                return of_whole(few(context, width=width, num_results=num_results, exclude=exclude), leaves)
        device = self.codes.device
        first = self.generator.fill_log_probs(context, self._open(context.num_histories, 1, device))
        eligible = Eligible(self.trie, context.num_histories, device, exclude, allowed)
        leaf_scores = self._filled(context, first, self._eligible_leaves(eligible), width)  # (B, leaves)
        tables = self.trie.tensors(device)
        every = torch.arange(leaf_scores.shape[1], device=device).expand_as(leaf_scores)
        candidates, places = items_of(Candidates(leaf_scores, every, torch.zeros_like(every)), tables)
        eligible.close_items(candidates.scores, places)
        return results_of(candidates, tables.leaf_items[places].long(), tables, num_results, leaf_scores.is_cuda)

    def _open(self, num_histories: int, width: int, device: torch.device) -> Tensor:
        return torch.full((num_histories, width, self.trie.num_levels), -1, device=device)

    def _eligible_leaves(self, eligible: Eligible) -> Tensor:
        """(B, leaves) bool: leaves with an item that may be answered."""
        leaves = torch.arange(self.trie.num_leaves, device=eligible.device).expand(eligible.num_histories, -1)
        if eligible.masks or eligible.excluded is not None:
            return eligible.num_left(leaves, self.trie.num_levels - 1) > 0
        return torch.ones_like(leaves, dtype=torch.bool)

    def _filled(self, context: Any, log_probs: Any, there: Tensor, width: int) -> Tensor:
        """Scores (B, leaves) of what the hypotheses end as, -inf elsewhere. ``there``: leaves that may be written."""
        (num_histories, num_leaves), device = there.shape, there.device
        all_codes, num_levels = self.codes, self.trie.num_levels
        rows, leaves = there.nonzero().unbind(1)  # (m,) each
        owner = torch.zeros_like(rows)  # (m,) hypothesis of each leaf in its row
        scores = there.new_zeros(num_histories, 1, dtype=torch.float32)  # (B, W)
        codes = self._open(num_histories, 1, device)  # (B, W, L)
        most = max(self.trie.level_sizes)
        for number in range(self.rounds):
            if number:
                log_probs = self.generator.fill_log_probs(context, codes)
            table = torch.stack([F.pad(part, (0, most - part.shape[-1]), value=NEG_INF) for part in log_probs], dim=2)
            if number + 1 == self.rounds:
                break
            open_mask = codes < 0
            surest = table.amax(-1).masked_fill(~open_mask, NEG_INF).argmax(-1)  # (B, W) level that each fills
            level = surest[rows, owner]
            code = all_codes[leaves, level]
            by_code = table.gather(2, surest[..., None, None].expand(-1, -1, 1, most)).squeeze(2)  # (B, W, K)
            exists = torch.zeros_like(by_code, dtype=torch.bool)
            exists[rows, owner, code] = True
            grown = (scores[..., None] + by_code).masked_fill(~exists, NEG_INF).flatten(1)  # (B, W*K)
            kept = best_positions(grown, min(width, grown.shape[1]))  # (B, W')
            scores = grown.gather(1, kept)
            before = torch.div(kept, most, rounding_mode="floor")  # (B, W') hypothesis that each continues
            place = torch.full_like(grown, -1, dtype=torch.int64)
            place.scatter_(1, kept, torch.arange(kept.shape[1], device=device).expand_as(kept))
            new_owner = place[rows, owner * most + code]
            codes = codes.gather(1, before[..., None].expand(-1, -1, num_levels))
            filled = (kept % most).masked_fill_(scores == NEG_INF, 0)  # a dead one may name a code of another level
            codes.scatter_(2, surest.gather(1, before)[..., None], filled[..., None])
            alive = (new_owner >= 0) & (scores[rows, new_owner.clamp(min=0)] > NEG_INF)
            rows, leaves, owner = rows[alive], leaves[alive], new_owner[alive]
        picked = table[rows, owner].gather(2, all_codes[leaves][..., None]).squeeze(2)  # (m, L)
        open_mask = codes[rows, owner] < 0
        total = scores[rows, owner] + picked.masked_fill(~open_mask, 0.0).sum(1)
        found = torch.full((num_histories, num_leaves), NEG_INF, device=device)
        found[rows, leaves] = total
        return found
