"""The trie of legal semantic IDs, as a handful of flat arrays with implicit children.

Sort the items by their codes and every prefix becomes a contiguous run. Level l of the trie is then one array of codes
(``tokens[l]``, in sorted order) and one array of offsets (``ptr[l]``): the children of node i are the nodes
``ptr[l][i] .. ptr[l][i+1]`` of level l+1, so a child needs no pointer of its own. Nodes of the last level are the
*leaves*, one per distinct semantic ID, numbered in the lexicographic order of their codes; the items that share a leaf
stand in ``leaf_items`` in serving order.

Per node: 2 bytes of code (4 above 32,768 codes) and, above the last level, 4 bytes of offset; per item 4 bytes. Leaves
that hold one item, nearly all of them, need no offset: only the shared ones are listed (``shared_leaves``). A nested
dictionary of the same content takes about thirty times the memory.

Trap: building must not sort indirectly. Codes and the item's place are packed into one 63-bit integer where they fit,
because numpy sorts plain integers several times faster than it argsorts them.

Shape legend: N items · L levels · n_l nodes of level l · Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sidera.core import InputError

Array = np.ndarray
MAX_CODES = 32_767  # of a level that is stored as int16


@dataclass(frozen=True, eq=False)
class TrieTensors:
    """The trie's arrays as tensors on one device; on the CPU they share the arrays' memory."""

    tokens: tuple[Tensor, ...]  # L of (n_l,) int16 or int32
    ptr: tuple[Tensor, ...]  # L-1 of (n_l+1,) int32
    leaf_items: Tensor  # (number of items,) int32
    shared_leaves: Tensor  # (S,) int32, ascending
    shared_extra: Tensor  # (S+1,) int32

    def leaf_starts(self, leaves: Tensor) -> Tensor:
        """Where the items of each leaf begin in ``leaf_items``; ``leaf_starts(leaf + 1)`` is where they end."""
        if self.shared_leaves.numel() == 0:
            return leaves
        return leaves + self.shared_extra[torch.searchsorted(self.shared_leaves, leaves.int())]

    def leaf_codes(self, leaves: Tensor) -> Tensor:
        """(...) leaf numbers -> (..., L) codes, int64."""
        codes, nodes = [self.tokens[-1][leaves]], leaves
        for level in reversed(range(len(self.ptr))):
            nodes = torch.searchsorted(self.ptr[level], nodes.int(), right=True) - 1
            codes.append(self.tokens[level][nodes])
        return torch.stack([code.long() for code in reversed(codes)], dim=-1)


@dataclass(frozen=True, eq=False)
class ItemRanges:
    """Which items stand below each node, as tensors on one device."""

    starts: tuple[Tensor, ...]  # L of (n_l+1,) int32: see ``CodeTrie.item_starts``
    fewest: tuple[int, ...]  # L: items below the node of a level that has fewest


@dataclass(frozen=True, eq=False)
class CodeTrie:
    """Every legal prefix of a catalogue. Build with :meth:`build`; immutable afterwards."""

    level_sizes: tuple[int, ...]  # K of each level
    tokens: tuple[Array, ...]  # L of (n_l,): the code of each node
    ptr: tuple[Array, ...]  # L-1 of (n_l+1,) int32: node -> its children in the next level
    leaf_items: Array  # (number of items,) int32: item ids, leaf after leaf, in serving order
    shared_leaves: Array  # (S,) int32: leaves with more than one item, ascending
    shared_extra: Array  # (S+1,) int32: items beyond the first, summed over the shared leaves before this one
    num_items: int  # N of the catalogue, removed items included
    part_of: tuple[CodeTrie, Array] | None = None  # the trie that this is a part of, and the places of its items there
    part_nodes: tuple[Array, ...] = ()  # L of (n_l,) int64: of a part, each node's number in the whole
    _tensors: dict[torch.device, TrieTensors] = field(default_factory=dict, repr=False, compare=False)
    _ranges: dict[torch.device, ItemRanges] = field(default_factory=dict, repr=False, compare=False)
    _places: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _most: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls, codes: Array, level_sizes: Sequence[int], order: Array | None = None, alive: Array | None = None
    ) -> CodeTrie:
        """The trie of ``codes`` (N, L), where ``codes[i, l]`` is below ``level_sizes[l]``.

        ``order`` (N,) lists every item id once, in serving order (most popular first, say): it decides among items that
        share a semantic ID; without it the lower id is served first. ``alive`` (N,) bool leaves the False items out.
        """
        codes, sizes = _checked_codes(codes, level_sizes)
        items = _sorted_items(codes, sizes, order, alive)  # (n,) item ids in trie order
        if items.size == 0:
            raise InputError("no item is left to build a trie from", fix="keep at least one item alive")
        ordered = codes[items]  # (n, L)
        begins = []  # per level: True where a new node starts in the sorted items
        begin = np.zeros(items.size, dtype=bool)
        begin[0] = True
        for level in range(len(sizes)):
            column = ordered[:, level]
            begin[1:] |= column[1:] != column[:-1]
            begins.append(begin.copy())
        starts = [np.flatnonzero(begin) for begin in begins]  # L of (n_l,)
        tokens = tuple(
            ordered[start, level].astype(np.int16 if size <= 2**15 else np.int32)
            for level, (start, size) in enumerate(zip(starts, sizes, strict=True))
        )
        ptr = []
        for level in range(len(sizes) - 1):
            first_children = np.flatnonzero(begins[level][starts[level + 1]])
            ptr.append(np.append(first_children, starts[level + 1].size).astype(np.int32))
        counts = np.diff(starts[-1], append=items.size)  # items of each leaf
        shared = np.flatnonzero(counts > 1)
        extra = np.concatenate([[0], np.cumsum(counts[shared] - 1)])
        return cls(
            level_sizes=sizes,
            tokens=tokens,
            ptr=tuple(ptr),
            leaf_items=items.astype(np.int32),
            shared_leaves=shared.astype(np.int32),
            shared_extra=extra.astype(np.int32),
            num_items=codes.shape[0],
        )

    @property
    def num_levels(self) -> int:
        return len(self.level_sizes)

    @property
    def num_nodes(self) -> tuple[int, ...]:
        return tuple(token.size for token in self.tokens)

    @property
    def num_leaves(self) -> int:
        return self.tokens[-1].size

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, the items in serving order included."""
        arrays = (*self.tokens, *self.ptr, self.leaf_items, self.shared_leaves, self.shared_extra)
        return sum(array.nbytes for array in arrays)

    @property
    def leaf_ptr(self) -> Array:
        """(num_leaves+1,): leaf -> its items in ``leaf_items``. Made anew at each call: for looking, not serving."""
        return self.leaf_starts(np.arange(self.num_leaves + 1))

    def leaf_starts(self, leaves: Array) -> Array:
        """Where the items of each leaf begin in ``leaf_items``; ``leaf_starts(leaf + 1)`` is where they end."""
        if not self.shared_leaves.size:
            return leaves
        return leaves + self.shared_extra[np.searchsorted(self.shared_leaves, leaves)]

    def leaf_of_item(self) -> Array:
        """(N,) int32: the leaf of every item, -1 for an item that was not alive. Made anew at each call."""
        leaves = np.full(self.num_items, -1, dtype=np.int32)
        counts = np.diff(self.leaf_ptr)
        leaves[self.leaf_items] = np.repeat(np.arange(self.num_leaves, dtype=np.int32), counts)
        return leaves

    @cached_property
    def item_starts(self) -> tuple[Array, ...]:
        """L of (n_l+1,) int32: the items below node i are ``leaf_items[starts[i]:starts[i+1]]``."""
        starts = [self.leaf_ptr.astype(np.int32)]
        for ptr in reversed(self.ptr):
            starts.append(starts[-1][ptr])
        return tuple(reversed(starts))

    @cached_property
    def place_of_item(self) -> Array:
        """(N,) int32: where each item stands in ``leaf_items``; behind its end for an item that was not alive."""
        places = np.full(self.num_items, self.leaf_items.size, dtype=np.int32)
        places[self.leaf_items] = np.arange(self.leaf_items.size, dtype=np.int32)
        return places

    @cached_property
    def parents(self) -> tuple[Array, ...]:
        """L-1 of (n_{l+1},) int32: the node of level l that each node of the level below hangs under."""
        return tuple(np.repeat(np.arange(ptr.size - 1, dtype=np.int32), np.diff(ptr)) for ptr in self.ptr)

    @cached_property
    def leaf_of_place(self) -> Array:
        """(items,) int32: the leaf of each item of ``leaf_items``."""
        return np.repeat(np.arange(self.num_leaves, dtype=np.int32), np.diff(self.item_starts[-1]))

    def most_children(self, width: int) -> tuple[int, ...]:
        """The most candidates that a search of ``width`` beams can have: at each level, and, last, items."""
        if width not in self._most:
            sizes, beams = [self.num_nodes[0]], min(width, self.num_nodes[0])
            for ptr in self.ptr:
                sizes.append(_sum_of_largest(np.diff(ptr), beams))
                beams = min(width, sizes[-1])
            starts = self.item_starts[max(0, self.num_levels - 2)]  # of the nodes that the last codes are written after
            parents = min(width, sizes[-2]) if self.num_levels > 1 else len(starts) - 1
            self._most[width] = (*sizes, _sum_of_largest(np.diff(starts), parents))
        return self._most[width]

    def leaf_codes(self, leaves: Array) -> Array:
        """(...) leaf numbers -> (..., L) codes, int64."""
        nodes = np.asarray(leaves)
        codes = [self.tokens[-1][nodes]]
        for level in reversed(range(self.num_levels - 1)):
            nodes = np.searchsorted(self.ptr[level], nodes, side="right") - 1
            codes.append(self.tokens[level][nodes])
        return np.stack(codes[::-1], axis=-1).astype(np.int64)

    def find(self, codes: Array) -> Array:
        """(..., L) codes -> (...) leaf numbers, -1 where no item has these codes. Any integers may be asked for."""
        return self.paths(codes)[..., -1]

    def paths(self, codes: Array) -> Array:
        """(..., L) codes -> (..., L) the node of every prefix, -1 from where no item has it."""
        codes = np.asarray(codes)
        if codes.shape[-1:] != (self.num_levels,):
            raise InputError(f"semantic IDs of shape {codes.shape}", allowed=f"(..., {self.num_levels})")
        flat = codes.reshape(-1, self.num_levels)  # (Q, L)
        nodes, found = np.zeros(len(flat), dtype=np.int64), np.ones(len(flat), dtype=bool)
        paths = []
        for level, tokens in enumerate(self.tokens):
            if level == 0:
                low, end = np.zeros_like(nodes), np.full_like(nodes, tokens.size)
            else:
                ptr = self.ptr[level - 1]
                low, end = ptr[nodes].astype(np.int64), ptr[nodes + 1].astype(np.int64)
            low = search_children(tokens, low, end, flat[:, level])
            nodes = np.minimum(low, tokens.size - 1)
            found &= (low < end) & (tokens[nodes] == flat[:, level])
            nodes[~found] = 0
            paths.append(np.where(found, nodes, -1))
        return np.stack(paths, axis=-1).reshape(codes.shape)

    def leaves_below(self, nodes: Array, level: int) -> Array:
        """(...) nodes of ``level`` -> (...) how many leaves each leads to; a leaf to one."""
        low, end = np.asarray(nodes), np.asarray(nodes) + 1
        for ptr in self.ptr[level:]:
            low, end = ptr[low], ptr[end]
        return end - low

    def legal(self, codes: Array) -> Array:
        """(..., L) codes -> (...) True where at least one item has them."""
        return self.find(codes) >= 0

    def lookup(self, codes: Sequence[int]) -> Array:
        """The items of one semantic ID in serving order; empty when there are none."""
        leaf = self.find(np.asarray(codes)[None])[0]
        if leaf < 0:
            return self.leaf_items[:0]
        start, end = self.leaf_starts(np.array([leaf, leaf + 1]))
        return self.leaf_items[start:end]

    def tensors(self, device: torch.device | str = "cpu") -> TrieTensors:
        """The arrays on ``device``, moved once and kept."""
        device = torch.device(device)
        if device not in self._tensors:

            def moved(array: Array) -> Tensor:
                return torch.from_numpy(array).to(device)

            self._tensors[device] = TrieTensors(
                tokens=tuple(map(moved, self.tokens)),
                ptr=tuple(map(moved, self.ptr)),
                leaf_items=moved(self.leaf_items),
                shared_leaves=moved(self.shared_leaves),
                shared_extra=moved(self.shared_extra),
            )
        return self._tensors[device]

    def ranges(self, device: torch.device | str = "cpu") -> ItemRanges:
        """Which items stand below each node; made at the first call and kept."""
        device = torch.device(device)
        if device not in self._ranges:
            starts = tuple(torch.from_numpy(array).to(device) for array in self.item_starts)
            fewest = tuple(int(np.diff(array).min()) for array in self.item_starts)
            self._ranges[device] = ItemRanges(starts, fewest)
        return self._ranges[device]

    def places_of(self, items: Tensor) -> Tensor:
        """Items (...) -> where each stands in ``leaf_items``, int64; behind its end where it does not."""
        if self.part_of is not None:
            whole, own = self.part_of[0].places_of(items), torch.from_numpy(self.part_of[1]).to(items.device)
            places = torch.searchsorted(own, whole)
            there = own[places.clamp(max=len(own) - 1)] == whole
            return places.masked_fill_(~there, len(own))
        if items.device not in self._places:
            self._places[items.device] = torch.from_numpy(self.place_of_item).to(items.device)
        return self._places[items.device][items].long()


def _sum_of_largest(counts: Array, number: int) -> int:
    if number < counts.size:
        counts = np.partition(counts, counts.size - number)[-number:]
    return int(counts.sum())


def search_children(tokens: Array, low: Array, end: Array, codes: Array) -> Array:
    """(Q,) the first place in ``tokens[low[q]:end[q]]``, which ascend, whose code is not below ``codes[q]``."""
    high = end.copy()
    for _ in range(int((high - low).max(initial=0)).bit_length()):  # binary search inside each node's children
        middle = (low + high) >> 1
        below = (tokens[np.minimum(middle, tokens.size - 1)] < codes) & (low < high)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def _checked_codes(codes: Array, level_sizes: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    codes, sizes = np.asarray(codes), tuple(int(size) for size in level_sizes)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise InputError(f"codes are {codes.dtype} of shape {codes.shape}", allowed="integers of shape (items, levels)")
    if codes.shape[1] != len(sizes) or not sizes:
        raise InputError(f"codes have {codes.shape[1]} levels and level_sizes has {len(sizes)}", allowed="equal, ≥ 1")
    for level, size in enumerate(sizes):
        column = codes[:, level]
        if column.size and (column.min() < 0 or column.max() >= size):
            item = int(np.flatnonzero((column < 0) | (column >= size))[0])
            raise InputError(
                f"item {item} has code {int(column[item])} at level {level}",
                allowed=f"0 to {size - 1}",
                fix="quantize again",
            )
    return codes, sizes


def _sorted_items(codes: Array, sizes: tuple[int, ...], order: Array | None, alive: Array | None) -> Array:
    """Ids of the alive items, sorted by codes, then by serving order."""
    num_items = codes.shape[0]
    for name, array in (("order", order), ("alive", alive)):
        if array is not None and np.shape(array) != (num_items,):
            raise InputError(f"{name} has shape {np.shape(array)}", allowed=f"({num_items},), one entry per item")
    items = None if order is None else np.asarray(order)  # (N,) ids in serving order
    if items is not None and not (
        items.min(initial=0) >= 0 and np.array_equal(np.bincount(items, minlength=num_items), np.ones(num_items))
    ):
        raise InputError("order does not list every item id once", allowed=f"a permutation of 0 to {num_items - 1}")
    if alive is not None:
        alive = np.asarray(alive, dtype=bool)
        items = np.flatnonzero(alive) if items is None else items[alive[items]]
    chosen = codes if items is None else codes[items]
    bits = [max(size - 1, 0).bit_length() for size in sizes]
    place_bits = max(len(chosen) - 1, 0).bit_length()
    if sum(bits) + place_bits <= 63:
        key = np.zeros(len(chosen), dtype=np.int64)
        for level, width in enumerate(bits):
            key <<= width
            key |= chosen[:, level]
        key <<= place_bits
        key |= np.arange(len(chosen))
        key.sort()
        key &= (1 << place_bits) - 1
        places = key
    else:  # too wide for one integer: slower, same answer
        places = np.lexsort(chosen.T[::-1])
    return places if items is None else items[places]
