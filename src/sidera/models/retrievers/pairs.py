"""Pairs of items that stood near each other in the training sequences: how they are counted, kept and asked.

Item-kNN and transitions differ in which pairs they count and in what a count is worth. The counting, the table of the
best pairs of each item and the votes of a history stand here.

Shape legend: B histories · T events of all · N items · P pairs · K pairs kept of an item.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog

PAIRS = 4_000_000  # counted at once, about; memory is 50 bytes a pair


def counted_pairs(
    item_ids: np.ndarray, offsets: np.ndarray, num_items: int, forward: np.ndarray, backward: np.ndarray,
    *, itself: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # fmt: skip
    """Left items, right items and their weights together (P,), sorted by left and right, a range of left items a time.

    Sequences: user u's events are ``item_ids[offsets[u]:offsets[u+1]]``. ``forward`` (S,): weight of a right item that
    came so many steps after the left one, from 1; ``backward`` (S,): before it. ``itself``: an item that comes again
    is a pair, too.

    A pair's step is kept in the low digits of its key: sorting keys alone is several times faster than sorting
    places, and equal pairs are summed in one order.
    """
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    weights, steps = np.concatenate([forward, backward]), len(forward) + len(backward)
    share = np.cumsum(np.bincount(item_ids, minlength=num_items)) * steps // PAIRS  # the range that an item falls into
    starts = np.concatenate([[0], np.flatnonzero(np.diff(share)) + 1, [num_items]])
    for first, end in pairwise(starts.tolist()):
        keys = [np.zeros(0, dtype=np.int64)]
        for step in range(1, max(len(forward), len(backward)) + 1):
            before, after = item_ids[:-step], item_ids[step:]
            counts = users[step:] == users[:-step]
            counts = counts if itself else counts & (before != after)
            for code, one, other in ((step - 1, before, after), (len(forward) + step - 1, after, before)):
                if step > (len(forward) if one is before else len(backward)):
                    continue
                here = counts & (one >= first) & (one < end)
                keys.append(((one[here] - first) * np.int64(num_items) + other[here]) * steps + code)
        sorted_keys = np.sort(np.concatenate(keys))
        pairs, codes = np.divmod(sorted_keys, steps)
        begins = np.flatnonzero(np.diff(pairs, prepend=-1))
        total = np.add.reduceat(weights[codes], begins) if len(begins) else np.zeros(0)
        left, right = np.divmod(pairs[begins], num_items)
        yield left + first, right, total


class PairVotes(nn.Module):
    """The best pairs of every item, and the votes of a history's items for what they are paired with."""

    role = "scorer"
    reads_codes = False
    reads_late_items = False  # nothing was counted of them
    neighbour_ids: Tensor  # (N, K) int32
    votes: Tensor  # (N, K) float32, 0 where there are fewer pairs

    def __init__(self, catalog: Catalog, reads: Reads, neighbours: int) -> None:
        super().__init__()
        self.reads = reads
        num_items = len(catalog.item_keys)
        self.register_buffer("neighbour_ids", torch.zeros(num_items, neighbours, dtype=torch.int32))
        self.register_buffer("votes", torch.zeros(num_items, neighbours))

    @property
    @abstractmethod
    def fading(self) -> float:
        """Weight of an event's vote against that of the event after it."""

    def keep(self, pairs: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Fill the table with the highest values of each left item: left and right items and values (P,)."""
        width = self.votes.shape[1]
        # filled in numpy: putting millions of single values into a tensor takes several times as long
        ids, votes = np.zeros(self.votes.numel(), np.int32), np.zeros(self.votes.numel(), np.float32)
        for left, right, value in pairs:
            order = np.lexsort((-value, left))  # best first inside each left item; ties stay in order of right
            left, right, value = left[order], right[order], value[order]
            begins = np.flatnonzero(np.diff(left, prepend=-1))
            rank = np.arange(len(left)) - begins.repeat(np.diff(begins, append=len(left)))
            kept = rank < width
            places = left[kept].astype(np.int64) * width + rank[kept]
            ids[places], votes[places] = right[kept], value[kept]
        self.neighbour_ids.copy_(torch.from_numpy(ids).view(-1, width))
        self.votes.copy_(torch.from_numpy(votes).view(-1, width))

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N); 0 for items that no history item is paired with."""
        events = batch.events
        return self.voted(events.row_ids, batch.item_ids, self.fading**events.from_end, batch.num_histories)

    def voted(self, row_ids: Tensor, item_ids: Tensor, weight: Tensor, num_rows: int) -> Tensor:
        """(rows, N): what items (T,) of these rows (T,) vote for, with weights (T,)."""
        num_items = len(self.votes)
        flat_ids = row_ids[:, None] * num_items + self.neighbour_ids[item_ids]  # (T, K)
        scores = torch.zeros(num_rows * num_items, device=item_ids.device)
        scores.index_add_(0, flat_ids.flatten(), (weight[:, None] * self.votes[item_ids]).flatten())
        return scores.view(num_rows, num_items)
