"""Where a trie's nodes stand in a model's own tree of the catalogue.

A model that scores the children of a node, and not all codes of a level, numbers its nodes as the trie does until items
are removed: the trie then lacks some. With the link a search stays in places of children; without it every score would
go from a child's place to its code, and from the code to the trie's child.

Shape legend: n_l nodes of level l of the trie · m_l of the model's tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidera.ops.trie import Array, CodeTrie


@dataclass(frozen=True, eq=False)
class LevelLink:
    """Of one level, on one device."""

    own: Tensor  # (n_l,) int64: the model's number of each node
    numbers: Tensor  # (m_l,) int64: the trie's number of each of the model's nodes; missing: of the one before, or -1
    missing: Tensor  # (m_l,) bool


@dataclass(frozen=True, eq=False)
class TreeLink:
    """All levels of a trie; a level whose numbers are the model's own has None."""

    levels: tuple[LevelLink | None, ...]  # L

    def own(self, level: int, nodes: Tensor) -> Tensor:
        """The model's numbers of nodes of the trie."""
        found = self.levels[level]
        return nodes if found is None else found.own[nodes]

    @classmethod
    def of(cls, trie: CodeTrie, starts: Sequence[Tensor], leaf_of_item: Tensor) -> TreeLink | None:
        """starts: of each level the first child of the nodes above, and the number of children last (m_{l-1}+1,);
        leaf_of_item (N,). None where the trie has an item that the model has not, items that share a leaf, or other
        items below one node than the model."""
        device, leaves = leaf_of_item.device, leaf_of_item.cpu().numpy()
        if trie.shared_leaves.size or trie.num_items > leaves.size:
            return None
        own = leaves[trie.leaf_items]
        found: list[LevelLink | None] = []
        for level in reversed(range(trie.num_levels)):
            if bool((own[1:] <= own[:-1]).any()):
                return None
            firsts = starts[level].cpu().numpy()
            found.append(_link(own, int(firsts[-1]), device))
            if level:  # what ascends between a first and a last child of one node is a child of it
                ptr = trie.ptr[level - 1]
                of_first, of_last = (np.searchsorted(firsts, own[at], side="right") for at in (ptr[:-1], ptr[1:] - 1))
                if not np.array_equal(of_first, of_last):
                    return None
                own = of_first - 1
        return cls(tuple(reversed(found)))


def _link(own: Array, size: int, device: torch.device) -> LevelLink | None:
    if own.size == size:  # ascending, so 0, 1, 2, ...
        return None
    there = np.zeros(size, dtype=bool)
    there[own] = True
    moved = (torch.from_numpy(array).to(device) for array in (own, np.cumsum(there) - 1, ~there))
    return LevelLink(*moved)
