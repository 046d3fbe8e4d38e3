"""A quota at serving: a share of all slots is kept for items of a set, such as those that nobody was shown yet.

    sidera.load("runs/x", serve=ServeConfig(cold_share=0.01))       # of all slots, new items get one in a hundred

A policy that learned from a log writes next to nothing that the log does not hold, and rewards learned from that log do
not change it (docs/understand/alignment.md). The quota's slots are filled by the same policy, which searches the set's
items alone: who gets which new item is still personal. They are the last of an answer; items of the set that the answer
holds anyway count.

How many slots one request gives is decided by a hash of its history, so that the mean is exact though one request's
share is no whole number, and an answer does not depend on which requests it was batched with.

Shape legend: B histories · N items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.core import InputError
from sidera.engine.pipeline import Candidates, Query, search

STRIDES = (0.7548776662466927, 0.5698402909980532, 0.6180339887498949)  # their multiples fill 0..1 evenly


@dataclass(eq=False)
class Quota:
    """``share`` of the slots for the items that ``chooses`` names: a mask (N,) of the catalogue that answers."""

    share: float
    chooses: Callable[[Catalog], np.ndarray]
    _set: _Set | None = field(default=None, repr=False)  # in the catalogue that answered last

    def __post_init__(self) -> None:
        check_value("quota", "share", self.share, 0 <= self.share <= 1, "0 to 1")

    @classmethod
    def cold(cls, share: float) -> Quota:
        """Items without a training event."""
        return cls(share, lambda catalog: catalog.popularity == 0)

    def check(self, catalog: Catalog) -> Quota:
        """Itself; InputError when no item of the catalogue is in the set."""
        if self.set_of(catalog).own is None:
            raise InputError("no item of the catalogue is in the quota's set", fix="serve without the quota")
        return self

    def set_of(self, catalog: Catalog) -> _Set:
        """The set in this catalogue; kept until another catalogue answers."""
        found = self._set
        if found is None or found.catalog is not catalog:
            item_mask = self.chooses(catalog)
            if item_mask.shape != (catalog.num_items,):
                raise InputError(f"the quota's mask has shape {item_mask.shape}", allowed=f"({catalog.num_items},)")
            alive = (item_mask & ~catalog.removed).any()
            own = replace(catalog, removed=catalog.removed | ~item_mask) if alive else None
            found = self._set = _Set(catalog, item_mask, own)
        return found

    def needs(self, k: int, beam: int) -> int:
        return k

    def __call__(self, query: Query, candidates: Candidates, number: int) -> Candidates:
        """Candidates with the quota's slots filled; only histories that give one are searched again."""
        chosen, k = self.set_of(query.snapshot.catalog), number
        wanted = self.num_slots(query.batch, k)
        rows = torch.nonzero(wanted > 0).squeeze(1)
        if chosen.own is None or not len(rows):
            return candidates
        most = int(wanted.max()) + k
        theirs = search(query.of_rows(rows, most, replace(query.snapshot, catalog=chosen.own)), most)
        item_ids, scores = candidates.item_ids.clone(), candidates.scores.clone()
        item_ids[rows], scores[rows] = fill(
            item_ids[rows], scores[rows], theirs.item_ids, wanted[rows], chosen.item_mask
        )
        return replace(candidates, item_ids=item_ids, scores=scores, leaf_ids=None, ties=None)

    def num_slots(self, batch: Batch, k: int) -> Tensor:
        """(B,) slots of k that each request gives."""
        ids, as_of = batch.item_ids, batch.requests.as_of
        last = ids[(batch.events.offsets[1:] - 1).clamp(min=0)] if ids.numel() else batch.lengths
        moment = as_of % (1 << 20) if as_of is not None else torch.zeros_like(last)
        parts = [value.double() * stride for value, stride in zip((last, batch.lengths, moment), STRIDES, strict=True)]
        return (self.share * k + torch.stack(parts).sum(0) % 1.0).floor().long()


@dataclass(frozen=True, eq=False)
class _Set:
    """The quota's items in one catalogue."""

    catalog: Catalog
    item_mask: np.ndarray  # (N,) bool
    own: Catalog | None  # as if the set's items were all there is; None: none of them can be answered


def fill(
    item_ids: Tensor, scores: Tensor, chosen: Tensor, wanted: Tensor, item_mask: np.ndarray
) -> tuple[Tensor, Tensor]:
    """(B, k) items and scores; ``chosen`` (B, c) has the last places of each row until it holds ``wanted`` (B,).

    -1 in ``chosen``: the set has no more items for this history, whose own items then stay. A slot that was given
    carries the score of the last own one: it stands there by rule, not by score.
    """
    item_ids, scores = item_ids.clone(), scores.clone()
    for row, number in enumerate(wanted.tolist()):
        own = item_ids[row].tolist()
        others = [place for place, item in enumerate(own) if item < 0 or not item_mask[item]]
        new = [item for item in chosen[row].tolist() if item >= 0 and item not in own]
        new = new[: max(0, number - (len(own) - len(others)))]
        if not new:
            continue
        dropped = set(others[-len(new) :])
        stay = [place for place in range(len(own)) if place not in dropped]
        kept = scores[row, stay]
        last = kept[-1:] if len(stay) else scores[row, :1]
        item_ids[row] = torch.tensor([own[place] for place in stay] + new, device=item_ids.device)
        scores[row] = torch.cat((kept, last.expand(len(new))))
    return item_ids, scores
