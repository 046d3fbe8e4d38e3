"""The table of items: what is known of every item, and the sub-table of those that a batch speaks of.

The class is here, its versioned instance belongs to a Catalog. Columns are read where they lie (they may be
memory-mapped): only the rows that a batch names are copied.

Shape legend: N items · U distinct items of a batch · L levels of a semantic ID.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from sidera.batch import Items
from sidera.ops.columns import Column, Texts

DENSE = 16  # a batch of at least N / 16 ids marks their items in a table instead of sorting them


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Codes and features of every item."""

    codes: Column | np.ndarray  # (N, L) integers; L = 0: no semantic IDs
    features: Mapping[str, Column | np.ndarray] = field(default_factory=dict)  # feature -> (N, ...)
    version: int = 0  # moves when items come and go
    batched: frozenset[str] | None = None  # features that batches carry; None: all
    titles: Texts | None = None  # (N,) None where none is known; no batch carries them

    @classmethod
    def plain(cls, num_items: int) -> ItemTable:
        """Items of which nothing is known but their ids."""
        return cls(np.zeros((num_items, 0), dtype=np.int64))

    @property
    def num_items(self) -> int:
        return len(self.codes)

    def titles_from(self, first: int) -> list[str | None]:
        """Titles of the items from ``first`` on."""
        if self.titles is None:
            return [None] * (self.num_items - first)
        return list(self.titles[np.arange(first, self.num_items)])

    def items(self, ids: np.ndarray) -> Items:
        """The rows of ``ids`` (U,)."""
        features = {
            name: torch.from_numpy(values[ids])
            for name, values in self.features.items()
            if self.batched is None or name in self.batched
        }
        return Items(torch.from_numpy(ids), torch.from_numpy(self.codes[ids].astype(np.int64, copy=False)), features)

    def codes_of(self, ids: torch.Tensor) -> torch.Tensor:
        """(...,) ids on any device -> (..., L) int64 on it."""
        return torch.from_numpy(self.codes[ids.cpu().numpy()].astype(np.int64, copy=False)).to(ids.device)

    @cached_property
    def whole(self) -> Items:
        """All rows, made once: the sub-table of every batch that names at least as many places as there are items."""
        return self.items(np.arange(self.num_items))

    def distinct(self, *columns: np.ndarray) -> tuple[Items, list[torch.Tensor]]:
        """A sub-table that holds the items of several columns of ids (n_i,), and for each column the positions (n_i,)
        in it: the distinct items, or all items where there are no more of them than ids. Ids are then the positions.
        """
        if self.num_items <= sum(map(len, columns)):
            return self.whole, [torch.from_numpy(column) for column in columns]
        joined = columns[0] if len(columns) == 1 else np.concatenate(columns)
        if self.num_items <= DENSE * len(joined):
            marks = np.zeros(self.num_items, dtype=bool)
            marks[joined] = True
            ids = marks.nonzero()[0]
        else:
            ids = np.sort(joined)
            ids = ids[np.append(True, ids[1:] != ids[:-1])] if len(ids) else ids
        position = _position(self.num_items)
        position[ids] = np.arange(len(ids))
        inverse = torch.from_numpy(position.take(joined))
        return self.items(ids), list(inverse.split([len(column) for column in columns]))


_thread = threading.local()


def _position(num_items: int) -> np.ndarray:
    """(N or more,) int64 room of this thread, which holds whatever was written there before."""
    room = getattr(_thread, "position", None)
    if room is None or len(room) < num_items:
        room = _thread.position = np.empty(num_items, dtype=np.int64)
    return room
