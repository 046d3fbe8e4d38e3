"""A tree of clusters over one user's events that grows, splits and merges one event at a time.

An inner node holds *cells*: centres that were k-means centres when the node was made, and never move. An event descends
from the root to the cell with the nearest centre, again and again, down to a *leaf*: O(depth) small products, whatever
the length of the history. What a leaf says of its members (count, mean, nearest member) is recomputed from the members
of the leaves that changed, at most about M events each; so it is exact at any time, and equal after a reload.

* A leaf that outgrows M is split into floor(cuberoot(n)) leaves, and these again while they are too large.
* Beyond the limit, the two sibling leaves whose merger adds least to the squared error (Ward) become one: both their
  cells lead to it. Pairs that stay within M go first. A node whose cells all lead to one leaf becomes that leaf.
* A leaf that eviction has emptied is taken out with its cells.

Trap: only the *partition* is approximate. The cells stay where they were put, so a long-lived tree is worse than one
built today; ``lifelong`` says when building anew is due.

Shape legend: R leaf places · D width · K cells of a node · n events.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sidera.store.events import ClusteredRing, Slots
from sidera.store.splitting import Floats, Vectors, half_norms, nearest_centres, num_splits, weighted_kmeans
from sidera.store.statistics import statistics

ROOT = -1  # the parent of the topmost reference
MAX_LEAF = 2**24  # above any leaf's number; places are reserved up to it
NO_PAIR = (2, float("inf"), -1, -1)  # sorts behind every pair
STATISTICS = ("count", "centre", "nearest", "mean_time", "mean_watch", "mean_duration")  # of every leaf
Pair = tuple[int, float, int, int]  # 1 if larger than M, Ward cost, the two leaves


@dataclass
class Node:
    """An inner node. A child reference is a node's number, or ``~leaf`` (negative) for a leaf."""

    parent: int
    centres: Floats  # (K, D)
    children: list[int]  # (K,), several cells may lead to one leaf

    def __post_init__(self) -> None:
        self.half_norms = half_norms(self.centres)

    def leaves(self) -> list[int]:
        return sorted({~child for child in self.children if child < 0})


class ClusterTree:
    """Clusters over the events of ``ring``; ``vectors`` (N, D) are the items'."""

    def __init__(self, ring: ClusteredRing, vectors: Vectors, max_leaves: int, iterations: int, seed: int) -> None:
        self.ring, self.vectors = ring, vectors
        self.max_leaves, self.iterations, self.seed = max_leaves, iterations, seed
        self.nodes: dict[int, Node] = {}
        self.root = ~0
        self.next_node = 0
        self.num_draws = 0  # splits so far: each has random numbers of its own, also after a reload
        self.members: dict[int, array[int]] = {0: array("i")}  # leaf -> slots in order of arrival
        self.leaf_parent: dict[int, int] = {0: ROOT}
        self.size_limits: dict[int, int] = {}  # leaf -> size up to which it is not split though larger than M
        self.dirty: set[int] = set()  # leaves whose statistics are not those of their members
        self._free: list[int] = []
        self._pairs: dict[int, Pair | None] = {}  # node -> best pair of its leaves; None: to be found again
        self._pairs_for = 0  # the M that they were found for
        self._reserve(16)

    @property
    def num_leaves(self) -> int:
        return len(self.members)

    @property
    def nbytes(self) -> int:
        arrays = [getattr(self, name) for name in STATISTICS]
        inner = sum(n.centres.nbytes + n.half_norms.nbytes + 8 * len(n.children) for n in self.nodes.values())
        return sum(one.nbytes for one in arrays) + inner + 4 * len(self.ring)

    def depth(self) -> int:
        """Nodes on the longest way from the root to a leaf."""
        deepest = 0
        for parent in set(self.leaf_parent.values()):
            steps = 0
            while parent != ROOT:
                parent, steps = self.nodes[parent].parent, steps + 1
            deepest = max(deepest, steps)
        return deepest

    # -- events come and go -------------------------------------------------------------------------------------

    def insert(self, slots: Slots, max_leaf: int, may_split: bool) -> None:
        """Put events into their leaves; split the leaves that outgrow ``max_leaf`` and keep to the limit."""
        leaves = self.route(self.vectors[self.ring.item_ids[slots]])
        self.ring.leaf[slots] = leaves
        order = np.argsort(leaves, kind="stable")  # arrival order inside a leaf stays
        touched, starts = np.unique(leaves[order], return_index=True)
        for leaf, part in zip(touched.tolist(), np.split(slots[order], starts[1:]), strict=True):
            self.members[leaf].extend(part.tolist())
            self._touch(leaf)
        if not may_split:
            return
        pending = touched.tolist()
        while pending:
            leaf = pending.pop()
            if len(self.members[leaf]) > max(max_leaf, self.size_limits.get(leaf, 0)):
                pending.extend(self._split(leaf))
        self.trim(max_leaf)
        self.settle(max_leaf)  # a little after each event, rather than much at the next merge

    def remove(self, slots: Slots) -> None:
        """Take the oldest events out: they come first in their leaves."""
        leaves, counts = np.unique(self.ring.leaf[slots], return_counts=True)
        for leaf, number in zip(leaves.tolist(), counts.tolist(), strict=True):
            del self.members[leaf][:number]
            self._touch(leaf)
            if not self.members[leaf]:
                self.size_limits.pop(leaf, None)
                if self.leaf_parent[leaf] != ROOT:
                    self._drop(leaf)

    def route(self, points: Floats) -> NDArray[np.int32]:
        """The leaf that each vector belongs to. (n, D) -> (n,)"""
        if len(points) == 1:  # the everyday case: no grouping
            reference = self.root
            while reference >= 0:
                node = self.nodes[reference]
                reference = node.children[int((node.half_norms - node.centres @ points[0]).argmin())]
            return np.array([~reference], dtype=np.int32)
        references = np.full(len(points), self.root, dtype=np.int64)
        waiting = np.arange(len(points)) if self.root >= 0 else np.zeros(0, dtype=np.int64)
        while len(waiting):
            order = np.argsort(references[waiting], kind="stable")
            waiting = waiting[order]
            numbers, starts = np.unique(references[waiting], return_index=True)
            for number, rows in zip(numbers.tolist(), np.split(waiting, starts[1:]), strict=True):
                node = self.nodes[number]
                cells = nearest_centres(points[rows], node.centres)
                references[rows] = np.array(node.children)[cells]
            waiting = waiting[references[waiting] >= 0]
        return (~references).astype(np.int32)

    def trim(self, max_leaf: int) -> None:
        """Merge sibling leaves until there are no more than the limit."""
        while self.num_leaves > self.max_leaves:
            self.settle(max_leaf)
            number = min(self._pairs, key=self._pair_order)
            _, _, kept, gone = self._pairs[number] or NO_PAIR
            self._merge(number, kept, gone, max_leaf)

    def settle(self, max_leaf: int) -> None:
        """Find again what merging asks for: statistics, and the best pair of every node."""
        self.refresh()
        if max_leaf != self._pairs_for:  # which pairs are too large has changed for all
            self._pairs, self._pairs_for = dict.fromkeys(self.nodes), max_leaf
        for number, pair in self._pairs.items():
            if pair is None:
                self._pairs[number] = self._best_pair(self.nodes[number], max_leaf)

    def refresh(self) -> None:
        """Make the statistics of changed leaves those of their members."""
        if self.dirty:
            leaves = np.array(sorted(self.dirty), dtype=np.int64)
            found = statistics(self.ring, self.vectors, [self.members[leaf] for leaf in leaves.tolist()])
            self.count[leaves], self.centre[leaves], self.nearest[leaves] = found[:3]
            self.mean_time[leaves], self.mean_watch[leaves], self.mean_duration[leaves] = found[3:]
            self.dirty.clear()

    # -- saved and read -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray]:
        """Everything but the leaf of each event, which lies in the ring."""
        numbers = sorted(self.nodes)
        nodes = [self.nodes[number] for number in numbers]
        size_limits = sorted(self.size_limits.items())
        return {
            "tree": np.array([self.root, self.next_node, self.num_draws], dtype=np.int64),
            "nodes": np.array([numbers, [node.parent for node in nodes]], dtype=np.int64).T,
            "cell_offsets": np.cumsum([0, *(len(node.children) for node in nodes)]),
            "children": np.array([child for node in nodes for child in node.children], dtype=np.int64),
            "centres": np.concatenate([self.vectors[:0], *(node.centres for node in nodes)]),
            "size_limits": np.array(size_limits, dtype=np.int64).reshape(-1, 2),
        }

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Take over a saved tree; the ring holds the events and their leaves already."""
        self.root, self.next_node, self.num_draws = (int(value) for value in state["tree"])
        bounds = pairwise(state["cell_offsets"].tolist())
        for (number, parent), (start, end) in zip(state["nodes"].tolist(), bounds, strict=True):
            self.nodes[number] = Node(parent, state["centres"][start:end], state["children"][start:end].tolist())
        self.size_limits = dict(state["size_limits"].tolist())
        self.leaf_parent = {leaf: number for number, node in self.nodes.items() for leaf in node.leaves()}
        if self.root < 0:
            self.leaf_parent[~self.root] = ROOT
        self.members = {leaf: array("i") for leaf in sorted(self.leaf_parent)}
        slots = self.ring.slots()
        slots = slots[np.argsort(self.ring.leaf[slots], kind="stable")]
        ends = np.searchsorted(self.ring.leaf[slots], list(self.members), side="right")
        for members, part in zip(self.members.values(), np.split(slots, ends[:-1]), strict=True):
            members.extend(part.tolist())
        if not 0 <= min(self.members) <= max(self.members) < MAX_LEAF:  # tables as long as the largest number follow
            raise ValueError(f"a cluster's number is not below {MAX_LEAF:,}")
        self._reserve(max(16, max(self.members) + 1))
        self.dirty = set(self.members)
        self._pairs = dict.fromkeys(self.nodes)

    def copy(self, ring: ClusteredRing) -> ClusterTree:
        """A tree over ``ring``, a copy of this one's; it grows as this one would."""
        other = ClusterTree(ring, self.vectors, self.max_leaves, self.iterations, self.seed)
        other.nodes = {number: copy(node) for number, node in self.nodes.items()}
        for node in other.nodes.values():
            node.children = list(node.children)  # centres are never written to
        other.root, other.next_node, other.num_draws = self.root, self.next_node, self.num_draws
        other.members = {leaf: slots[:] for leaf, slots in self.members.items()}
        other.leaf_parent, other.size_limits = dict(self.leaf_parent), dict(self.size_limits)
        other.dirty = set(self.dirty)
        other._free, other._pairs, other._pairs_for = list(self._free), dict(self._pairs), self._pairs_for
        for name in STATISTICS:
            setattr(other, name, getattr(self, name).copy())
        return other

    # -- how the tree changes -----------------------------------------------------------------------------------

    def _split(self, leaf: int) -> list[int]:
        """Make a node of a leaf and return its leaves; none when all members have one vector."""
        slots = np.array(self.members[leaf], dtype=np.int64)
        items, inverse, weights = np.unique(self.ring.item_ids[slots], return_inverse=True, return_counts=True)
        wanted = min(num_splits(len(slots)), len(items))
        rng = np.random.default_rng((self.seed, self.num_draws))
        self.num_draws += 1
        points = self.vectors[items]
        centres, assignment = weighted_kmeans(points, weights, wanted, self.iterations, rng)
        if len(centres) == 1:
            self.size_limits[leaf] = 2 * len(slots)
            return []
        number, self.next_node = self.next_node, self.next_node + 1
        parent = self.leaf_parent[leaf]
        self._forget(leaf)
        new = [self._new_leaf(number) for _ in range(len(centres))]
        self.nodes[number] = Node(parent, centres, [~one for one in new])
        self._pairs[number] = None
        self._replace(parent, ~leaf, number)
        homes = assignment[inverse]
        self.ring.leaf[slots] = np.array(new)[homes]
        order = np.argsort(homes, kind="stable")
        cuts = np.cumsum(np.bincount(homes, minlength=len(new)))[:-1]
        for one, part in zip(new, np.split(slots[order], cuts), strict=True):
            self.members[one].extend(part.tolist())
        return new

    def _merge(self, number: int, kept: int, gone: int, max_leaf: int) -> None:
        """Two leaves of one node become one; the node becomes the leaf when nothing else is below it."""
        node = self.nodes[number]
        slots = np.array(self.members[kept] + self.members[gone], dtype=np.int64)
        slots = slots[np.argsort(self.ring.age(slots))]
        self.members[kept] = array("i", slots.tolist())
        self.ring.leaf[slots] = kept
        if len(slots) > max_leaf:
            self.size_limits[kept] = 2 * len(slots)  # or the next event would split what the limit has merged
        node.children = [~kept if child == ~gone else child for child in node.children]
        self._forget(gone)
        self._touch(kept)
        self._collapse(number)

    def _drop(self, leaf: int) -> None:
        """Take an empty leaf and its cells out of its node."""
        number = self.leaf_parent[leaf]
        node = self.nodes[number]
        rows = [row for row, child in enumerate(node.children) if child != ~leaf]
        node.centres, node.children = node.centres[rows], [node.children[row] for row in rows]
        node.half_norms = node.half_norms[rows]
        self._forget(leaf)
        self._pairs[number] = None
        self._collapse(number)

    def _collapse(self, number: int) -> None:
        """A node with one child left is replaced by the child."""
        node = self.nodes[number]
        child = node.children[0]
        if any(other != child for other in node.children):
            return
        if child < 0:
            self.leaf_parent[~child] = node.parent
        else:
            self.nodes[child].parent = node.parent
        self._replace(node.parent, number, child)
        del self.nodes[number], self._pairs[number]

    def _replace(self, parent: int, old: int, new: int) -> None:
        if parent == ROOT:
            self.root = new
            return
        node = self.nodes[parent]
        node.children = [new if child == old else child for child in node.children]
        self._pairs[parent] = None

    def _pair_order(self, number: int) -> tuple[Pair, int]:
        return self._pairs[number] or NO_PAIR, number

    def _best_pair(self, node: Node, max_leaf: int) -> Pair:
        """The pair of leaves under a node that costs least to merge."""
        leaves = np.array(node.leaves(), dtype=np.int64)
        if len(leaves) < 2:
            return NO_PAIR
        centre, count = self.centre[leaves], self.count[leaves].astype(np.float64)
        distance = np.square(centre[:, None] - centre[None]).sum(axis=2)
        total = count[:, None] + count[None]
        cost = distance * (count[:, None] * count[None] / total)
        first, second = np.triu_indices(len(leaves), k=1)
        large = (total[first, second] > max_leaf).astype(np.int64)
        best = np.lexsort((cost[first, second], large))[0]
        a, b = int(first[best]), int(second[best])
        return int(large[best]), float(cost[a, b]), int(leaves[a]), int(leaves[b])

    def _touch(self, leaf: int) -> None:
        self.dirty.add(leaf)
        parent = self.leaf_parent[leaf]
        if parent != ROOT:
            self._pairs[parent] = None

    def _new_leaf(self, parent: int) -> int:
        if not self._free:
            self._reserve(2 * len(self.count))
        leaf = heapq.heappop(self._free)
        self.members[leaf] = array("i")
        self.leaf_parent[leaf] = parent
        self.dirty.add(leaf)
        return leaf

    def _forget(self, leaf: int) -> None:
        del self.members[leaf], self.leaf_parent[leaf]
        self.size_limits.pop(leaf, None)
        self.dirty.discard(leaf)
        self.count[leaf] = 0
        heapq.heappush(self._free, leaf)

    def _reserve(self, places: int) -> None:
        """Room for so many leaves."""
        width = self.vectors.shape[1]
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "count": ((places,), np.int64),
            "centre": ((places, width), np.float32),
            "nearest": ((places,), np.int64),
            "mean_time": ((places,), np.float64),
            "mean_watch": ((places,), np.float32),
            "mean_duration": ((places,), np.float32),
        }
        for name, (shape, kind) in shapes.items():
            grown: NDArray = np.zeros(shape, dtype=kind)
            old = getattr(self, name, grown[:0])
            grown[: len(old)] = old
            setattr(self, name, grown)
        self._free = [leaf for leaf in range(places) if leaf not in self.members]
        heapq.heapify(self._free)

    count: NDArray[np.int64]  # (R,)
    centre: Floats  # (R, D) mean vector of the members
    nearest: NDArray[np.int64]  # (R,) slot of the member nearest to it
    mean_time: NDArray[np.float64]  # (R,) seconds
    mean_watch: NDArray[np.float32]  # (R,) seconds
    mean_duration: NDArray[np.float32]  # (R,) seconds
