"""The table of items: what is known of every item, and the sub-table of those that a batch speaks of.

The class is here, its versioned instance belongs to a Catalog. Columns are read where they lie (they may be
memory-mapped): only the rows that a batch names are copied.

Shape legend: N items · U distinct items of a batch · L levels of a semantic ID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from sidera.batch import Items
from sidera.ops.columns import Column

DENSE = 16  # a batch that names a 16th of the items or more marks them in a table instead of sorting their ids


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Codes and features of every item."""

    codes: Column | np.ndarray  # (N, L) integers; L = 0: no semantic IDs
    features: Mapping[str, Column | np.ndarray] = field(default_factory=dict)  # feature -> (N, ...)
    version: int = 0  # moves when items come and go
    batched: frozenset[str] | None = None  # features that batches carry; None: all

    @classmethod
    def plain(cls, num_items: int) -> ItemTable:
        """Items of which nothing is known but their ids."""
        return cls(np.zeros((num_items, 0), dtype=np.int64))

    @property
    def num_items(self) -> int:
        return len(self.codes)

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

    def distinct(self, *columns: np.ndarray) -> tuple[Items, list[torch.Tensor]]:
        """The distinct items of several columns of ids (n_i,), and for each column the positions (n_i,) in them."""
        joined = columns[0] if len(columns) == 1 else np.concatenate(columns)
        if self.num_items <= DENSE * len(joined):
            marks = np.zeros(self.num_items, dtype=bool)
            marks[joined] = True
            ids = marks.nonzero()[0]
            position = np.empty(self.num_items, dtype=np.int64)
            position[ids] = np.arange(len(ids))
            inverse = position.take(joined)
        else:
            ids, inverse = np.unique(joined, return_inverse=True)
        positions, parts, begin = torch.from_numpy(inverse), [], 0
        for column in columns:
            parts.append(positions[begin : begin + len(column)])
            begin += len(column)
        return self.items(ids), parts
