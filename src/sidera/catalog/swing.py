"""Swing: which items are liked together by people who otherwise have little in common.

    sim(i, j) = sum over users u != v who have both i and j of  w_u w_v / (alpha + |I_u & I_v|),  w_u = 1 / sqrt(|I_u|)

(the form in which OneRec's technical report, arXiv 2506.13695, makes its item-to-item pairs.) Two people who agree on i
and j and on little else say more than two who agree on everything. A pair of items needs two users to count at all.

How it is computed: user pair by user pair, not item by item. The items that u and v share are |I_u & I_v| and the pairs
(i, j) that gain from them at once. Blocks of users are streamed: the triples (u, v, item) of a block are sorted as one
64-bit word each, runs of equal (u, v) are the intersections. Memory holds one block and the sums so far, 12 bytes for
each pair of items that met.

Degree caps keep the quadratic parts bounded: the log is thinned first, to the newest ``max_items`` items of a user,
then to ``max_users`` users of an item, drawn by a seed; on the thinned log the formula is exact, its |I_u| included.

Traps: only training events may enter (``events_for_swing`` cuts at ``split.train_ends`` and refuses a split that
leaks); repeats of an item by one user count once.

Shape legend: N items · U users · E events · k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.split import Split, check_leaks

Ids = NDArray[np.int64]
BLOCK_TRIPLES = 8_000_000  # (u, v, item) held at once, 8 bytes each and a few copies
PIECE = 4_000_000  # pairs of items laid out at once


@dataclass(frozen=True)
class Neighbours:
    """The most similar items of each item, best first."""

    item_ids: NDArray[np.int32]  # (N, k), -1 where an item has fewer
    scores: NDArray[np.float32]  # (N, k), 0 there

    def similarity(self, left: Ids, right: Ids) -> NDArray[np.float32]:
        """(n,) the score of each pair, looked up among the neighbours of ``left``; 0 when it is not one of them."""
        result = np.zeros(len(left), np.float32)
        for place in range(self.item_ids.shape[1]):
            hit = self.item_ids[left, place] == right
            result[hit] = self.scores[left[hit], place]
        return result


def events_for_swing(dataset: Dataset, split: Split, positive: str | None = None) -> tuple[Ids, Ids]:
    """(users, items) of the training events, oldest first inside a user; ``positive`` names a feedback column that must
    be above 0. LeakError when the split leaks, InputError when the column is missing.
    """
    check_leaks(dataset, split)
    keep = np.arange(dataset.num_events) < split.train_ends[dataset.event_users]
    if positive is not None:
        if positive not in dataset.feedback:
            raise InputError(
                f"the log has no feedback column {positive!r}",
                allowed=", ".join(dataset.feedback) or "none: it has no feedback",
                fix="name one of them, or leave it out: then every event counts",
            )
        keep &= np.nan_to_num(dataset.feedback[positive].astype(np.float64)) > 0
    return dataset.event_users[keep], dataset.item_ids[keep]


def swing(
    users: Ids,
    items: Ids,
    num_items: int,
    *,
    count: int = 50,
    alpha: float = 1.0,
    max_items: int = 100,
    max_users: int = 200,
    seed: int = 0,
) -> Neighbours:
    """The ``count`` best neighbours of every item; events (E,) by user, oldest first inside a user."""
    for name, value in (("count", count), ("max_items", max_items), ("max_users", max_users)):
        if value < 1:
            raise InputError(f"swing {name} = {value}", allowed="1 or more")
    if not alpha > 0:
        raise InputError(f"swing alpha = {alpha}", allowed="a number above 0")
    users, items = thin(users, items, max_items=max_items, max_users=max_users, seed=seed)
    sums = _Sums(num_items)
    for rows, columns, weights in _item_pairs(users, items, alpha):
        sums.add(rows, columns, weights)
    return _best(*sums.result(), num_items, count)


def thin(users: Ids, items: Ids, *, max_items: int, max_users: int, seed: int = 0) -> tuple[Ids, Ids]:
    """Each (user, item) once; then a user's newest ``max_items`` items; then ``max_users`` users of an item by lot.

    Comes back sorted by user, then item.
    """
    users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
    if len(users) != len(items) or (np.diff(users) < 0).any():
        raise InputError(f"{len(users)} users and {len(items)} items of events", allowed="as many, users ascending")
    if not len(users):
        return users, items
    _, newest = np.unique(
        (users * (items.max() + 1) + items)[::-1], return_index=True
    )  # a repeat counts when it was last
    kept = np.sort(len(users) - 1 - newest)
    users, items = users[kept], items[kept]
    ends = np.searchsorted(users, users, side="right")
    kept = np.flatnonzero(ends - np.arange(len(users)) <= max_items)
    users, items = users[kept], items[kept]
    lot = np.random.default_rng(seed).permutation(len(users))
    order = lot[np.argsort(items[lot], kind="stable")]  # by item, inside an item by lot
    sorted_items = items[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_items, sorted_items)
    kept = order[place < max_users]
    kept = kept[np.lexsort((items[kept], users[kept]))]
    return users[kept], items[kept]


def _item_pairs(users: Ids, items: Ids, alpha: float) -> Iterator[tuple[Ids, Ids, NDArray[np.float64]]]:
    """Pairs of items (i < j) with what one user pair gives them; both orders of the user pair are in it."""
    if not len(users):
        return
    names, users = np.unique(users, return_inverse=True)
    num_users = len(names)
    width = int(items.max()) + 1
    user_weight = np.bincount(users).astype(np.float64) ** -0.5  # (U,)
    by_item = np.lexsort((users, items))  # users of an item stand together, ascending
    item_users, sorted_items = users[by_item], items[by_item]
    place = np.empty(len(users), np.int64)
    place[by_item] = np.arange(len(users))  # of each event in the by-item order
    later = np.searchsorted(sorted_items, items, side="right") - place - 1  # (E,) users of the item after this one
    offsets = np.searchsorted(users, np.arange(num_users + 1))
    triples = np.concatenate([[0], np.cumsum(later)])[offsets]  # (U+1,) triples of the users before
    start = 0
    while start < num_users:
        room = np.searchsorted(triples, triples[start] + BLOCK_TRIPLES, side="right") - 1
        span = (1 << 62) // (num_users * width)  # users whose words fit 62 bits
        stop = max(start + 1, min(int(room), start + span))
        events = slice(offsets[start], offsets[stop])
        count = later[events]
        total = int(count.sum())
        if total:
            first = np.repeat(place[events] + 1 - (np.cumsum(count) - count), count)
            words = np.repeat((users[events] - start) * (num_users * width) + items[events], count)
            words += item_users[first + np.arange(total)] * width
            words.sort()
            yield from _intersections(words, width, num_users, user_weight, start, alpha)
        start = stop


def _intersections(
    words: Ids, width: int, num_users: int, user_weight: NDArray[np.float64], start: int, alpha: float
) -> Iterator[tuple[Ids, Ids, NDArray[np.float64]]]:
    """Sorted (u, v, item) words of one block -> pairs of items. A run of equal (u, v) is the items that both have."""
    pairs = words // width
    begins = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    sizes = np.diff(np.concatenate([begins, [len(words)]]))
    keep = sizes >= 2
    begins, sizes = begins[keep], sizes[keep]
    pair = pairs[begins]
    gain = 2.0 * user_weight[pair // num_users + start] * user_weight[pair % num_users] / (alpha + sizes)
    for size in np.unique(sizes).tolist():  # runs of one size are a rectangle
        left, right = np.triu_indices(size, 1)
        chosen = np.flatnonzero(sizes == size)
        step = max(1, PIECE // len(left))
        for low in range(0, len(chosen), step):
            part = chosen[low : low + step]
            shared = words[begins[part, None] + np.arange(size)] % width  # (runs, size), ascending
            yield shared[:, left].ravel(), shared[:, right].ravel(), np.repeat(gain[part], len(left))


class _Sums:
    """Sums by (i, j) as sorted words; parts of like length are merged, so each pair moves log(parts) times."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items
        self.waiting: list[tuple[Ids, NDArray[np.float32]]] = []
        self.fresh: list[tuple[Ids, NDArray[np.float64]]] = []
        self.num_fresh = 0

    def add(self, rows: Ids, columns: Ids, weights: NDArray[np.float64]) -> None:
        self.fresh.append((rows * self.num_items + columns, weights))
        self.num_fresh += len(rows)
        if self.num_fresh >= PIECE:
            self._settle()

    def _settle(self) -> None:
        words = np.concatenate([np.empty(0, np.int64), *(part for part, _ in self.fresh)])
        weights = np.concatenate([np.empty(0), *(part for _, part in self.fresh)])
        self.fresh, self.num_fresh = [], 0
        self.waiting.append(_summed(words, weights))
        while len(self.waiting) > 1 and len(self.waiting[-2][0]) < 2 * len(self.waiting[-1][0]):
            (words_a, weights_a), (words_b, weights_b) = self.waiting.pop(), self.waiting.pop()
            self.waiting.append(_summed(np.concatenate([words_b, words_a]), np.concatenate([weights_b, weights_a])))

    def result(self) -> tuple[Ids, Ids, NDArray[np.float32]]:
        """Pairs (i < j) with their sums."""
        self._settle()
        words = np.concatenate([part for part, _ in self.waiting])
        sums = np.concatenate([part for _, part in self.waiting])
        self.waiting.clear()
        words, sums = _summed(words, sums)
        return words // self.num_items, words % self.num_items, sums


def _summed(words: Ids, weights: NDArray[np.floating]) -> tuple[Ids, NDArray[np.float32]]:
    if not len(words):
        return words, weights.astype(np.float32)
    order = np.argsort(words, kind="stable")
    words = words[order]
    begins = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]]))
    return words[begins], np.add.reduceat(weights[order].astype(np.float64), begins).astype(np.float32)


def _best(left: Ids, right: Ids, scores: NDArray[np.float32], num_items: int, count: int) -> Neighbours:
    """Both directions of every pair, cut to the best ``count`` per item; equal scores by item number."""
    item_ids = np.full((num_items, count), -1, np.int32)
    kept = np.zeros((num_items, count), np.float32)
    degree = np.bincount(left, minlength=num_items) + np.bincount(right, minlength=num_items)
    total, start = np.concatenate([[0], np.cumsum(degree)]), 0
    by_right = np.argsort(right, kind="stable")
    sorted_right = right[by_right]
    while start < num_items:  # a stretch of items at a time: memory
        stop = max(start + 1, int(np.searchsorted(total, total[start] + PIECE, side="right")) - 1)
        low, high = np.searchsorted(left, [start, stop])
        mirrored = by_right[slice(*np.searchsorted(sorted_right, [start, stop]))]
        rows = np.concatenate([left[low:high], right[mirrored]])
        others = np.concatenate([right[low:high], left[mirrored]])
        values = np.concatenate([scores[low:high], scores[mirrored]])
        order = np.lexsort((others, -values, rows))
        rows, others, values = rows[order], others[order], values[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        best = place < count
        item_ids[rows[best], place[best]] = others[best]
        kept[rows[best], place[best]] = values[best]
        start = stop
    return Neighbours(item_ids, kept)
