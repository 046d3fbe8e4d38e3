"""A trie less some items, and a trie with new ones, in time linear in its arrays and without sorting them again.

A leaf is a place in sorted arrays, so a change of a few leaves shifts what stands behind them: one pass over each
array, no look at the items' codes. The result is, array for array, what :meth:`CodeTrie.build` makes of the same items.

Shape legend: m items that come or go · n_l nodes of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sidera.ops.trie import Array, CodeTrie, search_children

FEW_PARENTS = 4  # times as many nodes below


def only_places(trie: CodeTrie, places: Array) -> tuple[CodeTrie, Array]:
    """The trie of the items at ``places`` (m,) of ``leaf_items``, ascending, and which leaf of ``trie`` each of its
    leaves is. The time grows with m, not with the trie."""
    nodes, extra = places, None
    if trie.shared_leaves.size:
        nodes, counts = _runs(trie.leaf_of_place[places])
        extra = counts - 1
    numbers, tokens = [nodes], [trie.tokens[-1].take(nodes, mode="clip")]  # no checks: twice as fast
    ptr: list[Array] = []
    for level in reversed(range(trie.num_levels - 1)):
        nodes, starts = _parents(trie, level, nodes)
        ptr.insert(0, starts.astype(np.int32))
        tokens.insert(0, trie.tokens[level].take(nodes, mode="clip"))
        numbers.insert(0, nodes)
    shared = np.flatnonzero(extra) if extra is not None else np.empty(0, np.int64)
    sums = np.concatenate([[0], np.cumsum(extra[shared])]) if extra is not None else np.zeros(1, np.int64)
    part = CodeTrie(
        level_sizes=trie.level_sizes,
        tokens=tuple(tokens),
        ptr=tuple(ptr),
        leaf_items=trie.leaf_items.take(places, mode="clip"),
        shared_leaves=shared.astype(np.int32),
        shared_extra=sums.astype(np.int32),
        num_items=trie.num_items,
        part_of=(trie, places),
        part_nodes=tuple(nodes.astype(np.int64, copy=False) for nodes in numbers),
    )
    return part, numbers[-1]


def _parents(trie: CodeTrie, level: int, nodes: Array) -> tuple[Array, Array]:
    """Nodes (m,) of the level below ``level``, ascending -> the different nodes above them (p,), and where the nodes
    below each begin (p+1,)."""
    firsts = trie.ptr[level]
    if FEW_PARENTS * len(firsts) <= len(nodes):  # a search for each parent's first child reads less
        at = np.searchsorted(nodes, firsts.astype(nodes.dtype))
        above = np.flatnonzero(at[1:] > at[:-1])
        return above, np.append(at[above], len(nodes))
    above, counts = _runs(trie.parents[level].take(nodes, mode="clip"))
    return above, np.concatenate([[0], np.cumsum(counts)])


def _runs(nodes: Array) -> tuple[Array, Array]:
    """(m,) ascending -> the distinct ones and how often each stands there."""
    starts = np.append(0, np.flatnonzero(nodes[1:] != nodes[:-1]) + 1)
    return nodes[starts], np.diff(np.append(starts, len(nodes)))


def without_items(trie: CodeTrie, items: Array, codes: Array) -> CodeTrie | None:
    """``trie`` less ``items`` (m,), which it holds under ``codes`` (m, L); None when no item is left."""
    if not len(items):
        return trie
    leaves = trie.find(codes)
    starts = trie.leaf_starts(leaves)
    places, ends = starts.copy(), trie.leaf_starts(leaves + 1)
    for row in np.flatnonzero(ends - starts > 1):
        places[row] += np.flatnonzero(trie.leaf_items[starts[row] : ends[row]] == items[row])[0]
    leaf_items = np.delete(trie.leaf_items, places)
    if not leaf_items.size:
        return None
    hit, lost = np.unique(leaves, return_counts=True)
    gone = dead = hit[trie.leaf_starts(hit + 1) - trie.leaf_starts(hit) == lost]
    extras = _extras(trie)
    extras[hit] -= lost
    tokens, ptr = [np.delete(trie.tokens[-1], dead)], []
    for level in reversed(range(trie.num_levels - 1)):
        old = trie.ptr[level]
        lower = np.zeros(len(old), dtype=np.int32)  # dead children in front of each offset
        np.add.at(lower, np.searchsorted(old, dead, side="right"), 1)
        new = old - np.cumsum(lower, dtype=np.int32)
        above = np.unique(np.searchsorted(old, dead, side="right") - 1)
        dead = above[new[above] == new[above + 1]]
        tokens.append(np.delete(trie.tokens[level], dead))
        ptr.append(np.delete(new, dead))
    tables = (tokens[::-1], ptr[::-1], leaf_items)
    return _made(trie.level_sizes, *tables, np.delete(extras, gone), trie.num_items)


def with_items(trie: CodeTrie, items: Array, codes: Array, num_items: int) -> CodeTrie:
    """``trie`` and new ``items`` (m,) with ``codes`` (m, L); each is served last of those that share its codes.

    ``num_items`` is the N of the new trie.
    """
    if not len(items):
        return replace(trie, num_items=num_items, _tensors={}, _ranges={}, _places={}, _most={}, part_of=None)
    order = np.lexsort((np.asarray(items), *np.asarray(codes).T[::-1]))
    items, codes = np.asarray(items)[order], np.asarray(codes)[order].astype(np.int64)
    places, known, first = _descend(trie, codes)
    inserted = [place[begin & ~there] for place, begin, there in zip(places, first, known, strict=True)]
    tokens, ptr = [], []
    for level, old in enumerate(trie.tokens):
        mine = codes[first[level] & ~known[level], level].astype(old.dtype)
        tokens.append(np.insert(old, inserted[level], mine))
        if level == trie.num_levels - 1:
            break
        counts, child = np.diff(trie.ptr[level]), first[level + 1] & ~known[level + 1]
        np.add.at(counts, places[level][child & known[level]], 1)
        group = np.cumsum(first[level] & ~known[level]) - 1  # of a row below a new node: which new node
        below = np.bincount(group[child & ~known[level]], minlength=len(inserted[level]))
        ends = np.cumsum(np.insert(counts, inserted[level], below), dtype=np.int32)
        ptr.append(np.concatenate([np.zeros(1, np.int32), ends]))
    leaf, there, new = places[-1], known[-1], inserted[-1]
    leaf_items = np.insert(trie.leaf_items, trie.leaf_starts(leaf + there), items.astype(np.int32))
    own = np.cumsum(first[-1] & ~there) - 1  # which new leaf a row belongs to
    extras = _extras(trie)
    np.add.at(extras, leaf[there], 1)
    extras = np.insert(extras, new, np.bincount(own[~there], minlength=len(new)) - 1)
    return _made(trie.level_sizes, tokens, ptr, leaf_items, extras, num_items)


def _descend(trie: CodeTrie, codes: Array) -> tuple[list[Array], list[Array], list[Array]]:
    """Per level of sorted codes (m, L): the node, or where it would stand; whether it is there; whether the row is
    the first of its prefix. (m,) each."""
    places, known, first = [], [], []
    place, there = np.zeros(len(codes), np.int64), np.ones(len(codes), dtype=bool)
    begin = np.zeros(len(codes), dtype=bool)
    begin[0] = True
    for level, tokens in enumerate(trie.tokens):
        if level == 0:
            low, end = np.zeros_like(place), np.full_like(place, tokens.size)
        else:
            ptr = trie.ptr[level - 1]
            low = ptr[place].astype(np.int64)
            end = np.where(there, ptr[np.minimum(place + 1, len(ptr) - 1)], low)
        place = search_children(tokens, low, end, codes[:, level])
        there = there & (place < end) & (tokens[np.minimum(place, tokens.size - 1)] == codes[:, level])
        begin = begin.copy()
        begin[1:] |= codes[1:, level] != codes[:-1, level]
        places.append(place)
        known.append(there)
        first.append(begin)
    return places, known, first


def _extras(trie: CodeTrie) -> Array:
    """(num_leaves,) items beyond the first of each leaf."""
    extras = np.zeros(trie.num_leaves, dtype=np.int32)
    extras[trie.shared_leaves] = np.diff(trie.shared_extra)
    return extras


def _made(
    level_sizes: tuple[int, ...],
    tokens: Sequence[Array],
    ptr: Sequence[Array],
    leaf_items: Array,
    extras: Array,
    num_items: int,
) -> CodeTrie:
    shared = np.flatnonzero(extras)
    return CodeTrie(
        level_sizes=level_sizes,
        tokens=tuple(tokens),
        ptr=tuple(ptr),
        leaf_items=leaf_items,
        shared_leaves=shared.astype(np.int32),
        shared_extra=np.concatenate([[0], np.cumsum(extras[shared])]).astype(np.int32),
        num_items=num_items,
    )
