"""Which items may be answered, asked of prefixes: a prefix whose items are all barred must not take a beam's place.

Two kinds of bar, both per history of a batch:

* ``exclude``: a short list of items, such as those that were seen. Items below a node are neighbours in
  ``trie.leaf_items``, so a node is closed when as many excluded places lie in its run as the run is long: two binary
  searches in a list of E places, whatever the catalogue's size.
* ``allowed``: a mask of the catalogue, what a filter leaves. :class:`PrefixMask` says for every node of every level
  how many items are left below it. It is made once per filter and trie, and costs 4 bytes a node and a byte an item;
  histories of one batch may have different masks (:class:`Allowed`). A mask that leaves little and is everybody's is
  no mask at all: what it leaves is a small trie, made in the time that its items take, with fewer children to list.

Without either nothing is computed.

Shape legend: B histories · P candidates of a history · E most excluded items of a history · F masks · N items ·
n places: alive items in the order of ``trie.leaf_items`` · n_l nodes of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sidera.core import InputError
from sidera.ops.trie import Array, CodeTrie
from sidera.ops.trie_edit import only_places

NEG_INF = float("-inf")
Jagged = tuple[Tensor, Tensor]  # values (E,), offsets (B+1,)
SPARSE = 8  # a mask that leaves an 8th of the items or fewer is searched as a trie of its own


@dataclass(frozen=True, eq=False)
class PrefixMask:
    """One mask of items, and what it leaves of every prefix of one trie."""

    trie: CodeTrie
    left: Array  # (m,) int64: the items that are left, by place in ``trie.leaf_items``, ascending
    _moved: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @property
    def num_items(self) -> int:
        return len(self.left)

    @property
    def is_sparse(self) -> bool:
        """Whether the items that are left are better searched in a trie of their own, where there are any."""
        return 0 < len(self.left) * SPARSE <= self.trie.leaf_items.size

    @cached_property
    def part(self) -> tuple[CodeTrie, Array]:
        """The trie of what is left, and which leaf of ``trie`` each of its leaves is."""
        return only_places(self.trie, self.left)

    @cached_property
    def places(self) -> Array:
        """(n,) bool"""
        mask = np.zeros(self.trie.leaf_items.size, dtype=bool)
        mask[self.left] = True
        return mask

    @cached_property
    def counts(self) -> tuple[Array, ...]:
        """L of (n_l,): how many items below the node are left."""
        nodes, counts = self.left, [self.places]
        if self.trie.shared_leaves.size:
            nodes = self.trie.leaf_of_place[nodes]
            counts = [np.bincount(nodes, minlength=self.trie.num_leaves).astype(np.int32)]
        for parents, number in zip(reversed(self.trie.parents), reversed(self.trie.num_nodes[:-1]), strict=True):
            nodes = parents[nodes]
            counts.insert(0, np.bincount(nodes, minlength=number).astype(np.int32))
        return tuple(counts)

    @classmethod
    def of_items(cls, trie: CodeTrie, items: Array) -> PrefixMask:
        """``items`` (N,) bool: the items that are left."""
        if items.shape != (trie.num_items,) or items.dtype != bool:
            raise InputError(f"a mask of {items.dtype} {items.shape}", allowed=f"bool ({trie.num_items},)")
        return cls(trie, np.flatnonzero(items[trie.leaf_items]))

    def tensors(self, device: torch.device) -> tuple[Tensor, ...]:
        """``counts``, then ``places``, on the device; moved once and kept."""
        if device not in self._moved:
            self._moved[device] = tuple(torch.from_numpy(table).to(device) for table in (*self.counts, self.places))
        return self._moved[device]


def all_items(trie: CodeTrie) -> PrefixMask:
    """The mask that leaves everything."""
    return PrefixMask(trie, np.arange(trie.leaf_items.size))


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

    @property
    def one_sparse(self) -> PrefixMask | None:
        """The mask of every history, where they have one and it leaves little."""
        first = self.masks[0] if self.masks else None
        return first if first is not None and first.is_sparse and all(mask is first for mask in self.masks) else None

    def check(self, trie: CodeTrie, num_histories: int) -> None:
        if len(self.masks) != num_histories:
            raise InputError(f"allowed has {len(self.masks)} masks", allowed=f"{num_histories}, one a history")
        if any(mask is not None and mask.trie is not trie for mask in self.masks):
            raise InputError("allowed is of another trie", fix="make the mask of the trie that is searched")

    def stacked(self, trie: CodeTrie, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Per level counts (F, n_l), last the places (F, n), and the row (B, 1) of each history; None: all have row
        0."""
        distinct = {id(mask): mask for mask in self.masks}
        rows = {name: row for row, name in enumerate(distinct)}
        tables = [None if mask is None else mask.tensors(device) for mask in distinct.values()]
        if len(tables) == 1 and tables[0] is not None:
            return tuple(table[None] for table in tables[0]), None
        every = all_items(trie).tensors(device) if None in self.masks else ()
        stacked = tuple(torch.stack(level) for level in zip(*(table or every for table in tables), strict=True))
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
        """Score -inf, in place, for the nodes (B, P) of ``level`` with no eligible item below.

        Not on the last level: there items are asked for, not their leaves.
        """
        if level == self.trie.num_levels - 1:
            return
        # a list shorter than any run of this level closes none
        closes = self.excluded is not None and self.excluded.shape[1] >= self.trie.ranges(self.device).fewest[level]
        if self.masks or closes:
            scores.masked_fill_(self.num_left(nodes, level) <= 0, NEG_INF)

    def close_items(self, scores: Tensor, places: Tensor) -> None:
        """Score -inf, in place, for barred items; places (B, P)."""
        if self.masks:
            scores.masked_fill_(~self._of_masks(-1, places), NEG_INF)
        if self.excluded is not None:
            places = places.contiguous()
            at = torch.searchsorted(self.excluded, places).clamp_(max=self.excluded.shape[1] - 1)
            scores.masked_fill_(self.excluded.gather(1, at) == places, NEG_INF)

    def close_all(self, scores: Tensor) -> None:
        """The same of the scores (B, n) of all items, in the order of ``trie.leaf_items``."""
        if self.masks:
            allowed = self.masks[-1] if self.which is None else self.masks[-1][self.which[:, 0]]
            scores.masked_fill_(~allowed, NEG_INF)
        if self.excluded is not None:
            rows, columns = (self.excluded < self.num_places).nonzero(as_tuple=True)
            scores[rows, self.excluded[rows, columns]] = NEG_INF

    def num_left(self, nodes: Tensor, level: int) -> Tensor:
        """How many eligible items lie below nodes (B, P)."""
        starts, left = self.trie.ranges(self.device).starts[level], None
        if self.masks:
            left = self._of_masks(level, nodes).long()
        if left is not None and self.excluded is None:
            return left
        begins, ends = starts[nodes].long(), starts[nodes + 1].long()
        left = ends - begins if left is None else left
        if self.excluded is not None:
            left = left - torch.searchsorted(self.excluded, ends) + torch.searchsorted(self.excluded, begins)
        return left

    def num_legal(self) -> Tensor:
        """(B,) eligible items."""
        left = torch.full((self.num_histories,), self.num_places, device=self.device)
        if self.masks:
            counts = self.masks[-1].sum(1)
            left = counts.expand(self.num_histories) if self.which is None else counts[self.which[:, 0]]
        return left if self.excluded is None else left - (self.excluded < self.num_places).sum(1)

    def _of_masks(self, level: int, nodes: Tensor) -> Tensor:
        """(B, P) what the masks leave below these nodes; for level -1: of these places."""
        table = self.masks[level]
        return table[0][nodes] if self.which is None else table[self.which, nodes]

    def _places(self, exclude: Jagged) -> Tensor:
        """The excluded items that are alive, and allowed, as ``excluded``."""
        ids, offsets = (part.to(self.device) for part in exclude)
        lengths = offsets.diff()
        longest, total = int(lengths.max()), ids.numel()
        rows = torch.repeat_interleave(lengths, output_size=total)
        columns = torch.arange(total, device=self.device) - offsets[:-1][rows]
        table = torch.full((self.num_histories, longest), self.num_places, device=self.device)
        table[rows, columns] = self.trie.places_of(ids)
        if self.masks:  # what is barred already is not counted twice
            barred = ~self._of_masks(-1, table.clamp(max=self.num_places - 1))
            table = table.masked_fill_(barred, self.num_places)
        table = table.sort(dim=1).values
        again = table[:, 1:] == table[:, :-1]
        table[:, 1:] = table[:, 1:].masked_fill(again, self.num_places)
        return table.sort(dim=1).values
