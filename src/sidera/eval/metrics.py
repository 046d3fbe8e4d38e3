"""Item-level ranking metrics, vectorised over rows. Definitions: docs/understand/protocol.md.

A *row* is one history with one target; the served list of a row is `item_ids (R, k)`, best first, -1 where fewer than
k items exist. One relevant item per row makes recall@k the hit rate and NDCG@k = 1 / log2(1 + rank), the ideal list
having its one hit at rank 1.

Trap: several items may share a semantic ID. A hit of the *tuple* is not a hit of the *item*: with three items behind
one ID, counting tuples calls every one of them found at once. Here a hit is the served item itself (the catalogue's
order inside the ID decides), and the *expected* twin of each metric averages uniformly over that order, so a lucky or
unlucky tie-break shows.

R rows · k list length · N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HEAD_SHARE = 0.2  # head: the most popular fifth of the items seen in training (ties go in together)
TAIL_SHARE = 0.5  # tail: the least popular half of them, but for ties with the items above
LENGTH_BUCKETS = ((1, 4), (5, 9), (10, 19), (20, 49), (50, None))  # events in the whole history, inclusive


@dataclass(frozen=True)
class TargetRanks:
    """Where the targets stand in the served lists. Places count from 1; 0 means not in the list."""

    rank: np.ndarray  # (R,) int32 position of the target
    tie_start: np.ndarray  # (R,) int32 position of the first item that shares the target's semantic ID
    tie_size: np.ndarray  # (R,) int32 servable items that share it, the target among them; 0: target cannot be served
    length: int  # k of the lists

    @property
    def expected_rank(self) -> np.ndarray:
        """(R,) mean position of the target over the orders inside its semantic ID; 0: the ID is not in the list."""
        in_list = self.tie_start > 0
        return np.where(in_list, self.tie_start + (self.tie_size - 1) / 2, 0.0)

    def cut(self, length: int) -> TargetRanks:
        """The same ranks in lists cut at a shorter ``length``."""
        return TargetRanks(
            rank=np.where(self.rank <= length, self.rank, 0).astype(np.int32),
            tie_start=np.where(self.tie_start <= length, self.tie_start, 0).astype(np.int32),
            tie_size=self.tie_size,
            length=length,
        )

    @staticmethod
    def empty(num_rows: int, length: int) -> TargetRanks:
        """To be filled batch by batch with :meth:`put`."""
        rank, tie_start, tie_size = np.zeros((3, num_rows), dtype=np.int32)
        return TargetRanks(rank, tie_start, tie_size, length)

    def put(self, rows: np.ndarray, part: TargetRanks) -> None:
        self.rank[rows], self.tie_start[rows], self.tie_size[rows] = part.rank, part.tie_start, part.tie_size


def target_ranks(
    item_ids: np.ndarray,
    target_ids: np.ndarray,
    leaf_ids: np.ndarray | None = None,
    target_leaves: np.ndarray | None = None,
    tie_sizes: np.ndarray | None = None,
) -> TargetRanks:
    """Ranks of ``target_ids (R,)`` in lists ``item_ids (R, k)``.

    ``leaf_ids (R, k)`` names the semantic ID of each served item, ``target_leaves (R,)`` that of the target and
    ``tie_sizes (R,)`` how many items of it could have been served. Items of one ID stand next to each other. Without
    them every item is its own tie.
    """
    rank = _first_position(item_ids == target_ids[:, None])
    if leaf_ids is None:
        return TargetRanks(rank, rank.copy(), np.ones_like(rank), item_ids.shape[1])
    if target_leaves is None or tie_sizes is None:
        raise ValueError("leaf_ids need target_leaves and tie_sizes beside them")
    known = (tie_sizes > 0)[:, None] & (item_ids >= 0)
    tie_start = _first_position((leaf_ids == target_leaves[:, None]) & known)
    return TargetRanks(rank, tie_start, tie_sizes.astype(np.int32), item_ids.shape[1])


def row_metrics(ranks: TargetRanks, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Each metric as (R,) float64: recall@k, ndcg@k, their expected twins, and mrr@length.

    MRR counts a target beyond the end of the list as 0, so it is named by the list's length.
    """
    if ks and ks[-1] > ranks.length:
        raise ValueError(f"@{ks[-1]} asked of lists of {ranks.length}")
    rank = ranks.rank.astype(np.int64)
    # (length+1,) gain of position p, and the sum of gains of positions 1..p
    gain = np.concatenate([[0.0], 1.0 / np.log2(np.arange(1, ranks.length + 1) + 1.0)])
    gain_sum = np.cumsum(gain)
    before = ranks.tie_start.astype(np.int64) - 1  # positions above the tie; -1 where the ID was not found
    in_list = before >= 0
    size = np.maximum(ranks.tie_size.astype(np.int64), 1)
    metrics: dict[str, np.ndarray] = {}
    for k in ks:
        hit = (rank > 0) & (rank <= k)
        metrics[f"recall@{k}"] = hit.astype(np.float64)
        metrics[f"ndcg@{k}"] = np.where(hit, gain[np.minimum(rank, k)], 0.0)
        last = np.clip(before + size, 0, k)  # position of the tie's last item inside the cut
        first = np.clip(before, 0, last)
        metrics[f"expected_recall@{k}"] = np.where(in_list, (last - first) / size, 0.0)
        metrics[f"expected_ndcg@{k}"] = np.where(in_list, (gain_sum[last] - gain_sum[first]) / size, 0.0)
    metrics[f"mrr@{ranks.length}"] = np.divide(1.0, rank, out=np.zeros(rank.shape), where=rank > 0)
    return metrics


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that an event with the label scores above one without it, ties counting half; NaN when one kind is absent.

    scores (n,), labels (n,) of true and false.
    """
    labels = labels.astype(bool)
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    _, position, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[position]  # from 1, the mean rank among equals
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def exposure_counts(item_ids: np.ndarray, num_items: int) -> np.ndarray:
    """(N,) how often each item stands in the lists (R, k)."""
    return np.bincount(item_ids[item_ids >= 0].ravel(), minlength=num_items)


def coverage(exposure: np.ndarray) -> float:
    """Share of the items that were served at all. Grows with the number of rows: compare on the same rows only."""
    return float((exposure > 0).mean()) if exposure.size else 0.0


def gini(exposure: np.ndarray) -> float:
    """Gini coefficient of exposure over items: 0 all alike, near 1 one item takes all; 0 when nothing was served."""
    total = exposure.sum()
    if total == 0:
        return 0.0
    n = exposure.size
    ordered = np.sort(exposure).astype(np.float64)
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)


@dataclass(frozen=True)
class PopularitySlices:
    """Head, mid and tail of the items by training events, cut at event counts so that equals fall together."""

    head_min: int  # head: at least so many training events
    tail_max: int  # tail: 1 to so many training events; mid lies between; cold: none

    @staticmethod
    def of(popularity: np.ndarray) -> PopularitySlices:
        """Boundaries for ``popularity (N,)`` training events per item; cold items take no part in them."""
        warm = np.sort(popularity[popularity > 0])
        if warm.size == 0:
            return PopularitySlices(head_min=1, tail_max=0)
        head_min = int(warm[min(warm.size - 1, int(warm.size * (1 - HEAD_SHARE)))])
        tail_max = min(int(warm[max(0, int(warm.size * TAIL_SHARE) - 1)]), head_min - 1)
        return PopularitySlices(head_min, tail_max)

    def assign(self, popularity: np.ndarray) -> dict[str, np.ndarray]:
        """Masks (R,) of targets (or items) with such popularity."""
        cold = popularity == 0
        head = (popularity >= self.head_min) & ~cold
        tail = (popularity <= self.tail_max) & ~cold
        return {"head": head, "mid": ~(head | tail | cold), "tail": tail, "cold": cold}


def length_slices(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (R,) by the number of events in the whole history; a history may be empty."""
    slices = {"0": lengths == 0}
    for low, high in LENGTH_BUCKETS:
        name = f"{low}+" if high is None else f"{low}-{high}"
        slices[name] = (lengths >= low) & (lengths <= (high if high is not None else np.iinfo(np.int64).max))
    return slices


def _first_position(mask: np.ndarray) -> np.ndarray:
    """(R, k) -> (R,) position of the first True, from 1; 0 where there is none."""
    if mask.shape[1] == 0:
        return np.zeros(mask.shape[0], dtype=np.int32)
    return np.where(mask.any(axis=1), mask.argmax(axis=1) + 1, 0).astype(np.int32)
