"""Which items may be answered, asked of prefixes: a prefix whose items are all barred must not take a beam's place.

Two kinds of bar, both per history of a batch:

* ``exclude``: a short list of items, such as those that were seen. Items below a node are neighbours in
  ``trie.leaf_items``, so a node is closed when as many excluded places lie in its run as the run is long: two binary
  searches in a list of E places, whatever the catalogue's size.
* ``allowed``: a mask of the catalogue, what a filter leaves. :class:`PrefixMask` says for every node of every level
  whether anything is left below it. It is made once per filter and trie, and costs a byte a node; histories of one
  batch may have different masks (:class:`Allowed`).

Without either nothing is computed.

Shape legend: B histories · P candidates of a history · E most excluded items of a history · F masks · N items ·
n places: alive items in the order of ``trie.leaf_items`` · n_l nodes of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.core import InputError
from sidera.ops.trie import Array, CodeTrie

NEG_INF = float("-inf")
Jagged = tuple[Tensor, Tensor]  # values (E,), offsets (B+1,)
SPARSE = 16  # a mask that leaves a 16th of a level's nodes or fewer is carried upwards node by node


@dataclass(frozen=True, eq=False)
class PrefixMask:
    """One mask of items, and what it leaves of every prefix of one trie."""

    trie: CodeTrie
    places: Array  # (n,) bool
    levels: tuple[Array, ...]  # L of (n_l,) bool: whether an item below the node is left
    num_items: int  # that are left
    _moved: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_places(cls, trie: CodeTrie, places: Array) -> PrefixMask:
        """``places`` (n,) bool: the items that are left, in the order of ``trie.leaf_items``."""
        if places.shape != trie.leaf_items.shape or places.dtype != bool:
            raise InputError(f"a mask of {places.dtype} {places.shape}", allowed=f"bool {trie.leaf_items.shape}")
        left = np.flatnonzero(places)  # ascending
        if trie.shared_leaves.size:
            nodes, mask = left, np.zeros(trie.num_leaves, dtype=bool)
            mask[np.searchsorted(trie.item_starts[-1], nodes, side="right") - 1] = True
        else:
            mask = places
        levels = [mask]
        for ptr in reversed(trie.ptr):
            if len(left) * SPARSE <= levels[0].size:
                mask = np.zeros(ptr.size - 1, dtype=bool)
                mask[np.searchsorted(ptr, np.flatnonzero(levels[0]), side="right") - 1] = True
            else:
                mask = np.logical_or.reduceat(levels[0], ptr[:-1])
            levels.insert(0, mask)
        return cls(trie, places, tuple(levels), len(left))

    @classmethod
    def of_items(cls, trie: CodeTrie, items: Array) -> PrefixMask:
        """``items`` (N,) bool: the items that are left."""
        if items.shape != (trie.num_items,) or items.dtype != bool:
            raise InputError(f"a mask of {items.dtype} {items.shape}", allowed=f"bool ({trie.num_items},)")
        return cls.of_places(trie, items[trie.leaf_items])

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        """``levels``, then ``places``, on the device; moved once and kept."""
        if device not in self._moved:
            self._moved[device] = tuple(torch.from_numpy(mask).to(device) for mask in (*self.levels, self.places))
        return self._moved[device]


@dataclass(frozen=True, eq=False)
class Allowed:
    """A mask for every history of a batch; None: all items. InputError where a mask is of another trie."""

    masks: Sequence[PrefixMask | None]  # B

    @classmethod
    def of_items(cls, trie: CodeTrie, items: Array | Tensor) -> Allowed:
        """``items`` (B, N) bool."""
        return cls([PrefixMask.of_items(trie, row) for row in np.asarray(items)])

    def holds(self, item_ids: Tensor) -> Tensor:
        """(B, C) items -> (B, C) bool; False for -1."""
        rows = []
        for mask, ids in zip(self.masks, item_ids.cpu().numpy(), strict=True):
            there = ids >= 0
            if mask is not None:
                there &= np.append(mask.places, False)[mask.trie.place_of_item[ids]]
            rows.append(there)
        return torch.from_numpy(np.stack(rows)).to(item_ids.device)

    def check(self, trie: CodeTrie, num_histories: int) -> None:
        if len(self.masks) != num_histories:
            raise InputError(f"allowed has {len(self.masks)} masks", allowed=f"{num_histories}, one a history")
        if any(mask is not None and mask.trie is not trie for mask in self.masks):
            raise InputError("allowed is of another trie", fix="make the mask of the trie that is searched")

    def stacked(self, trie: CodeTrie, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Per level, and last for places, (F, n_l) bool, and the row (B, 1) of each history; None: all have row 0."""
        distinct = {id(mask): mask for mask in self.masks}
        rows = {name: row for row, name in enumerate(distinct)}
        tables = [None if mask is None else mask.tensors(device) for mask in distinct.values()]
        if len(tables) == 1 and tables[0] is not None:
            return tuple(table[None] for table in tables[0]), None
        sizes = (*trie.num_nodes, trie.leaf_items.size)
        all_items = [torch.ones(1, dtype=torch.bool, device=device).expand(size) for size in sizes]
        stacked = tuple(torch.stack(level) for level in zip(*(table or all_items for table in tables), strict=True))
        which = torch.tensor([rows[id(mask)] for mask in self.masks], device=device)
        return stacked, which[:, None]


class Eligible:
    """What one search may answer: closes prefixes, and items, that are barred in their history."""

    def __init__(
        self, trie: CodeTrie, num_histories: int, device: torch.device, exclude: Jagged | None = None,
        allowed: Allowed | None = None,
    ) -> None:  # fmt: skip
        self.trie, self.num_histories, self.device = trie, num_histories, device
        self.excluded: Tensor | None = None  # (B, E) places, ascending, each once; ``num_places`` behind the last
        self.masks: tuple[Tensor, ...] = ()
        self.which: Tensor | None = None
        self.num_places = trie.leaf_items.size
        self._counts: Tensor | None = None
        if allowed is not None and any(mask is not None for mask in allowed.masks):
            allowed.check(trie, num_histories)
            self.masks, self.which = allowed.stacked(trie, device)
        if exclude is not None and exclude[0].numel():
            self.excluded = self._places(exclude)

    def tensors(self) -> tuple[Tensor, ...]:
        """What differs between searches."""
        excluded, which = (() if tensor is None else (tensor,) for tensor in (self.excluded, self.which))
        return (*self.masks, *which, *excluded)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Eligible:
        """The same bars in other memory: as ``tensors`` gave them."""
        other, rest = Eligible(self.trie, self.num_histories, self.device), list(tensors)
        other.masks = tuple(rest[: len(self.masks)])
        del rest[: len(self.masks)]
        if self.which is not None:
            other.which = rest.pop(0)
        if self.excluded is not None:
            other.excluded = rest.pop(0)
        return other

    def close(self, scores: Tensor, nodes: Tensor, level: int) -> None:
        """Score -inf, in place, for the nodes (B, P) of ``level`` with no eligible item below."""
        if self.masks:
            scores.masked_fill_(~self._left(level, nodes), NEG_INF)
        if self.excluded is not None:
            ranges = self.trie.ranges(self.device)
            # a list shorter than any run of this level closes none; the last level asks for items, not for leaves
            if level < self.trie.num_levels - 1 and (self.masks or self.excluded.shape[1] >= ranges.fewest[level]):
                scores.masked_fill_(self.num_left(nodes, level) <= 0, NEG_INF)

    def close_items(self, scores: Tensor, places: Tensor) -> None:
        """Score -inf, in place, for barred items; places (B, P)."""
        if self.masks:
            scores.masked_fill_(~self._left(-1, places), NEG_INF)
        if self.excluded is not None:
            places = places.contiguous()
            at = torch.searchsorted(self.excluded, places).clamp_(max=self.excluded.shape[1] - 1)
            scores.masked_fill_(self.excluded.gather(1, at) == places, NEG_INF)

    def num_left(self, nodes: Tensor, level: int) -> Tensor:
        """How many eligible items lie below nodes (B, P)."""
        starts = self.trie.ranges(self.device).starts[level]
        begins, ends = starts[nodes].long(), starts[nodes + 1].long()
        left = ends - begins
        if self.masks:
            left = self._num_allowed(ends) - self._num_allowed(begins)
        if self.excluded is not None:
            left = left - torch.searchsorted(self.excluded, ends) + torch.searchsorted(self.excluded, begins)
        return left

    def num_legal(self) -> Tensor:
        """(B,) eligible items."""
        ends = torch.full((self.num_histories, 1), self.num_places, device=self.device)
        left = self._num_allowed(ends) if self.masks else ends
        if self.excluded is not None:
            left = left - (self.excluded < self.num_places).sum(1, keepdim=True)
        return left[:, 0]

    def _left(self, level: int, nodes: Tensor) -> Tensor:
        """(B, P) bool: what the masks say of these nodes, or places for level -1."""
        table = self.masks[level]
        return table[0][nodes] if self.which is None else table[self.which, nodes]

    def _num_allowed(self, ends: Tensor) -> Tensor:
        """How many allowed items stand in front of places (B, P)."""
        if self._counts is None:
            self._counts = F.pad(self.masks[-1].cumsum(1), (1, 0))  # (F, n+1)
        return self._counts[0][ends] if self.which is None else self._counts[self.which, ends]

    def _places(self, exclude: Jagged) -> Tensor:
        """The excluded items that are alive, and allowed, as ``excluded``."""
        ids, offsets = (part.to(self.device) for part in exclude)
        lengths = offsets.diff()
        longest, total = int(lengths.max()), ids.numel()
        rows = torch.repeat_interleave(lengths, output_size=total)
        columns = torch.arange(total, device=self.device) - offsets[:-1][rows]
        table = torch.full((self.num_histories, longest), self.num_places, device=self.device)
        table[rows, columns] = self.trie.ranges(self.device).place_of_item[ids].long()
        if self.masks:  # what is barred already is not counted twice
            barred = ~self._left(-1, table.clamp(max=self.num_places - 1))
            table = table.masked_fill_(barred, self.num_places)
        table = table.sort(dim=1).values
        again = table[:, 1:] == table[:, :-1]
        table[:, 1:] = table[:, 1:].masked_fill(again, self.num_places)
        return table.sort(dim=1).values
