"""Drafts that the full model checks: a cheap reader names many items, the full one scores exactly those.

The drafter finds ``drafts`` items: heads that write all codes at once (a ``ParallelGenerator``), or a small model that
searches by a beam (a ``TaughtGenerator`` drafts for its teacher). The full model then scores each, a step a level over
the distinct prefixes of the drafts, without a choice in between; the best are answered with the full model's scores.

An answer differs from the beam's where the draft lacked an item that the beam finds (or where the beam pruned one that
the draft has). What was left out cannot be known, but how near it came: when an item of the answer stood in the last
``1 - TRUSTED`` of its draft, more of them probably stand behind its end, and that history is searched by the full
model's beam. So is one whose draft holds fewer items than are asked for and could be answered.

Shape legend: B histories · M drafts of each · L levels · R results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from sidera.decode.beam import Beams, beam_search
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.given import given_log_probs
from sidera.decode.parallel import ExactSearch
from sidera.decode.select import best_first
from sidera.ops.jagged import jagged_rows
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, Generator, ParallelGenerator, TaughtGenerator

DRAFTS = 4  # of each item that is asked for
FEWEST = 40  # drafts
TRUSTED = 0.75  # of a draft: an answer from behind it is searched again


class DraftSearch:
    """Drafts of ``model``, checked by its full model."""

    def __init__(self, model: Any, writing: Callable[[Any], Generator], trie: CodeTrie) -> None:
        """``writing``: a generator as it writes late items too."""
        self.model, self.trie = model, trie
        self.parallel = not isinstance(model, TaughtGenerator)
        self.full = writing(model if self.parallel else cast(TaughtGenerator, model).teacher)
        self.draft = ExactSearch(cast(ParallelGenerator, model), trie) if self.parallel else self._beam(writing(model))
        self.histories = self.again = 0  # asked, and searched again

    def _beam(self, generator: Generator) -> Callable[..., Beams]:
        return lambda context, **settings: beam_search(generator, context, self.trie, **settings)

    @torch.inference_mode()
    def __call__(
        self, context: Any, *, width: int, num_results: int, exclude: Jagged | None = None,
        allowed: Allowed | None = None,
    ) -> Beams:  # fmt: skip
        """``width``: of the search where a draft cannot be trusted."""
        number = max(FEWEST, DRAFTS * num_results)
        limits: dict[str, Any] = {"exclude": exclude, "allowed": allowed}
        drafts = self.draft(context, width=number, num_results=number, **limits)
        full_context = context if self.parallel else self.model.teacher_context(context)
        found, trusted = self.checked(full_context, drafts, num_results)
        least = Eligible(self.trie, len(trusted), found.scores.device, **limits).num_legal()
        trusted &= found.valid_mask.sum(1) >= least.clamp(max=num_results)
        trusted |= drafts.valid_mask.sum(1) >= least  # the draft holds everything that may be answered
        self.histories += len(trusted)
        rows = (~trusted).nonzero()[:, 0]
        if not len(rows):
            return found
        self.again += len(rows)
        again = beam_search(
            self.full, full_context.rows(rows), self.trie, width=width, num_results=num_results,
            exclude=None if exclude is None else _rows_of(exclude, rows),
            allowed=None if allowed is None else Allowed([allowed.masks[row] for row in rows.tolist()]),
        )  # fmt: skip
        names = [one.name for one in fields(Beams) if one.name != "log_probs"]
        return Beams(*(getattr(found, name).index_copy(0, rows, getattr(again, name)) for name in names))

    def checked(self, context: Context, drafts: Beams, num_results: int) -> tuple[Beams, Tensor]:
        """The best drafts by the full model's scores, and whether (B,) all of them stood in the trusted part."""
        by_leaf = drafts.leaf_ids.argsort(dim=1, stable=True)  # equal scores go to the lower leaf, in serving order
        leaves = drafts.leaf_ids.gather(1, by_leaf)
        sids = drafts.sids.gather(1, by_leaf[..., None].expand(-1, -1, self.trie.num_levels))
        log_p = given_log_probs(self.full, context, sids)  # (B, M)
        best = best_first(log_p, num_results)
        scores, leaves = log_p.gather(1, best), leaves.gather(1, best)
        sids = sids.gather(1, best[..., None].expand(-1, -1, self.trie.num_levels))
        ranks = by_leaf.gather(1, best)
        behind = (ranks >= TRUSTED * log_p.shape[1]) & (scores > NEG_INF)
        return Beams(drafts.item_ids.gather(1, ranks), leaves, scores, sids, scores > NEG_INF), ~behind.any(1)


def _rows_of(exclude: Jagged, rows: Tensor) -> Jagged:
    places, offsets = jagged_rows(exclude[1], rows.to(exclude[1].device))
    return exclude[0][places], offsets
