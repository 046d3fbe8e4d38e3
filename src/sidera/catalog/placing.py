"""The first free code in the order of distance, for items that come late or that a full prefix turned away.

Which codes are taken stands in a trie of all of them (removed items keep theirs) and, until they are merged into it, in
a dictionary of the codes given since. A prefix is full when its children are as many as its level has codes and each is
full; the trie's offsets say how many children a node has.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.rq_kmeans import RQCodebooks
from sidera.core import InputError
from sidera.ops.trie import CodeTrie
from sidera.ops.trie_edit import with_items

MERGE = 1 << 14  # given codes that are merged into the trie


class CodeSpace:
    """Which codes are taken. ``num_items`` counts the items that the trie and the given codes stand for."""

    def __init__(self, taken: CodeTrie) -> None:
        self.taken, self.num_items = taken, taken.num_items
        self._given: list[tuple[int, ...]] = []  # since ``taken`` was made
        self._below: dict[tuple[int, ...], set[int]] = {}  # prefix -> next codes of what was given

    def place(self, vector: Tensor, quantizer: RQCodebooks) -> tuple[int, ...]:
        """Take the nearest free code for a vector (D,): nearest at each level, later levels give way first.

        The trie has one level more than the quantizer when a running digit ends the semantic ID.
        """
        sizes = self.taken.level_sizes
        full = self.taken.num_leaves + len(self._given) >= math.prod(sizes)
        codes = None if full else self._search((), 0, self.taken.num_nodes[0], vector, quantizer)
        if codes is None:
            raise InputError(
                f"no free code: all {math.prod(sizes)} codes are taken (removed items keep theirs)",
                fix="build a new catalogue with more codes in [catalog.quantizer]",
            )
        for level, code in enumerate(codes):
            self._below.setdefault(codes[:level], set()).add(code)
        self._given.append(codes)
        self.num_items += 1
        if len(self._given) > MERGE:
            self._merge()
        return codes

    def _search(
        self, prefix: tuple[int, ...], start: int, end: int, vector: Tensor, quantizer: RQCodebooks
    ) -> tuple[int, ...] | None:
        """A free code below ``prefix``, whose children in the trie are the nodes ``start..end``."""
        level, sizes = len(prefix), self.taken.level_sizes
        given, tokens = self._below.get(prefix, set()), self.taken.tokens[level]
        if level == len(sizes) - 1:
            free_mask = np.ones(sizes[level], dtype=bool)
            free_mask[tokens[start:end]] = False
            free_mask[list(given)] = False
            free = np.flatnonzero(free_mask)
            if not len(free):
                return None
            if level == len(quantizer.level_sizes):  # the running digit: the lowest free one
                return (*prefix, int(free[0]))
            costs = _costs(quantizer, prefix, vector)
            return (*prefix, int(free[costs[free].argmin()]))
        for code in np.argsort(_costs(quantizer, prefix, vector), kind="stable").tolist():
            below = self._children(level, start, end, code)
            if level == len(sizes) - 2:
                count = below[1] - below[0] + len(self._below.get((*prefix, code), ()))
                if count >= sizes[-1]:
                    continue
            found = self._search((*prefix, code), *below, vector, quantizer)
            if found is not None:
                return found
        return None

    def _children(self, level: int, start: int, end: int, code: int) -> tuple[int, int]:
        """The children, in the level below, of the node with ``code`` among the nodes ``start..end``; empty if none."""
        tokens, ptr = self.taken.tokens[level], self.taken.ptr[level]
        node = start + int(np.searchsorted(tokens[start:end], code))
        return (int(ptr[node]), int(ptr[node + 1])) if node < end and tokens[node] == code else (0, 0)

    def _merge(self) -> None:
        codes = np.array(self._given)
        items = np.arange(self.num_items - len(codes), self.num_items)
        self.taken = with_items(self.taken, items, codes, self.num_items)
        self._given, self._below = [], {}


def _costs(quantizer: RQCodebooks, prefix: tuple[int, ...], vector: Tensor) -> np.ndarray:
    """(K,) costs of the next code."""
    return quantizer.next_costs(torch.tensor(prefix, dtype=torch.int64), vector[None])[0].numpy()
