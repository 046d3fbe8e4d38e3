"""The catalogue's tree as sidera's generator numbers it: the nodes of every level in code order.

So the children of a node are neighbours, and one product scores them.

Shape legend: N items · L levels · K codes of a level · n_l nodes of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class TreeLevel:
    """One level."""

    keys: Array  # (n_l,) int64, ascending: parent * K + code
    starts: Array  # (n_{l-1} + 1,) the first child of each node of the level above; of the root at the first level
    codes: Array  # (n_l,)
    code_is_place: bool  # whether the children of every node have the codes 0, 1, 2, ...

    @property
    def num_nodes(self) -> int:
        return len(self.keys)

    @property
    def most_children(self) -> int:
        return int(np.diff(self.starts).max())


def tree_levels(codes_NL: Array, level_sizes: Sequence[int]) -> tuple[list[TreeLevel], Array]:
    """The levels, and the leaf (N,) of every item."""
    parents = np.zeros(len(codes_NL), dtype=np.int64)  # everything hangs under the root
    num_parents, levels = 1, list[TreeLevel]()
    for level, size in enumerate(level_sizes):
        keys, parents = np.unique(parents * size + codes_NL[:, level], return_inverse=True)
        starts = np.searchsorted(keys, np.arange(num_parents + 1) * size)
        codes, places = keys % size, np.arange(len(keys)) - starts[keys // size]
        levels.append(TreeLevel(keys, starts, codes, bool((codes == places).all())))
        num_parents = len(keys)
    return levels, parents


def old_numbers(old_keys: Sequence[Array], keys: Sequence[Array], level_sizes: Sequence[int]) -> list[Array]:
    """Of each level, the number (n_l,) that its nodes had in another tree; -1 for one that is new."""
    of_old, found = np.zeros(1, dtype=np.int64), list[Array]()
    for before, now, size in zip(old_keys, keys, level_sizes, strict=True):
        old_parents = of_old[now // size]
        wanted = old_parents * size + now % size
        at = np.searchsorted(before, wanted).clip(max=len(before) - 1)
        of_old = np.where((old_parents >= 0) & (before[at] == wanted), at, -1)
        found.append(of_old)
    return found
