"""A quota at serving: a share of all slots is kept for items of a set, such as those that nobody was shown yet.

    recommender.quota = Quota.cold(recommender.catalog, share=0.01)     # of all slots, new items get one in a hundred

A policy that learned from a log writes next to nothing that the log does not hold, and rewards learned from that log do
not change it (docs/alignment.md). The quota's slots are filled by the same policy, which searches the set's items
alone: who gets which new item is still personal. They are the last of an answer; items of the set that the answer holds
anyway count.

How many slots one request gives is decided by a hash of its history, so that the mean is exact though one request's
share is no whole number, and an answer does not depend on which requests it was batched with.

Shape legend: B histories · N items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.core import CatalogMismatch, InputError

STRIDES = (0.7548776662466927, 0.5698402909980532, 0.6180339887498949)  # their multiples fill 0..1 evenly


@dataclass(frozen=True, eq=False)
class Quota:
    """``share`` of the slots for the items of ``item_mask`` (N,) of one catalogue."""

    catalog: Catalog
    share: float
    item_mask: np.ndarray
    name: str = "quota"

    def __post_init__(self) -> None:
        check_value("quota", "share", self.share, 0 <= self.share <= 1, "0 to 1")
        if self.item_mask.shape != (self.catalog.num_items,):
            allowed = f"({self.catalog.num_items},)"
            raise InputError(f"the quota's mask has shape {self.item_mask.shape}", allowed=allowed)
        if not (self.item_mask & ~self.catalog.removed).any():
            raise InputError("no item of the catalogue is in the quota's set", fix="serve without the quota")

    @classmethod
    def cold(cls, catalog: Catalog, share: float) -> Quota:
        """Items without a training event."""
        return cls(catalog, share, catalog.popularity == 0, "cold")

    @cached_property
    def own(self) -> Catalog:
        """The catalogue as if the set's items were all there is."""
        return replace(self.catalog, removed=self.catalog.removed | ~self.item_mask)

    def check(self, catalog: Catalog) -> None:
        """CatalogMismatch when the catalogue that answers is not the quota's."""
        ours, theirs = ((one.codebook_id, one.items_version) for one in (self.catalog, catalog))
        if ours != theirs:
            raise CatalogMismatch(f"the quota is of catalogue {ours}, {theirs} answers", fix="make the quota again")

    def num_slots(self, batch: Batch, k: int) -> Tensor:
        """(B,) slots of k that each request gives."""
        ids, as_of = batch.item_ids, batch.requests.as_of
        last = ids[(batch.events.offsets[1:] - 1).clamp(min=0)] if ids.numel() else batch.lengths
        moment = as_of % (1 << 20) if as_of is not None else torch.zeros_like(last)
        parts = [value.double() * stride for value, stride in zip((last, batch.lengths, moment), STRIDES, strict=True)]
        return (self.share * k + torch.stack(parts).sum(0) % 1.0).floor().long()

    def fill(self, item_ids: Tensor, scores: Tensor, chosen: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(B, k) items and scores; ``chosen`` (B, c) has the last places of each row until it holds ``wanted`` (B,).

        -1 in ``chosen``: the set has no more items for this history, whose own items then stay. A slot that was given
        carries the score of the last own one: it stands there by rule, not by score.
        """
        item_ids, scores = item_ids.clone(), scores.clone()
        for row, number in enumerate(wanted.tolist()):
            own = item_ids[row].tolist()
            others = [place for place, item in enumerate(own) if item < 0 or not self.item_mask[item]]
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
