"""Counts of item pairs, kept sparse and raw: what the transition expert (``engine/expert.py``) asks about a history.

Transitions and item-kNN keep one finished vote a pair. Here each pair keeps four counts, and a vote is made when it is
asked for, so that events of today change counts and popularity without a new fit.

* ``next``: how often right came directly behind left;
* ``forward``: right behind left within 10 events, .7 for each further event;
* ``near``: right within 20 events of left, before or behind it, .85 for each further event;
* ``together``: what item-kNN counts: 1 / distance behind left, half of it before it, within 10 events.

Counts are divided by how popular the right item is: log(1 + count / (10 share)) with share = its events / all events,
and together / sqrt((events left + 1) (events right + 1)), the cosine of item-kNN.

Shape legend: B histories · T their events · N items counted of · P pairs kept · E pairs of all events · U distinct
(history, item) pairs · V votes of a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from sidera.models.retrievers.pairs import counted_pairs

WINDOW, STEP_DECAY = 10, 0.7  # of ``forward``, and the window of ``together``
LONG_WINDOW, LONG_DECAY = 20, 0.85  # of ``near``
BACKWARD = 0.5  # of ``together``: weight of "came before"
SHARE_SCALE = 10.0
LEAST = 1e-5  # of a count: below it is rounding
LEAST_ROOM = 4096  # pairs
AT_ONCE = 20_000  # events whose pairs are counted together where counts change
Sequences = tuple[np.ndarray, np.ndarray]  # user u's events: item_ids[offsets[u]:offsets[u+1]], oldest first
KINDS = ("next", "forward", "near", "together")
# A vote: which count, and how an event's vote fades from the newest event (0) on. None: only the newest event votes.
VOTES: dict[str, tuple[str, float | None]] = {
    "forward_half": ("forward", 0.5),
    "forward_slow": ("forward", 0.85),
    "forward_last": ("forward", None),
    "next_half": ("next", 0.5),
    "near_slow": ("near", 0.85),
    "together": ("together", 0.5**0.5),
}

KIND_OF_VOTE = [KINDS.index(kind) for kind, _ in VOTES.values()]
VOTES_OF_KIND = np.eye(len(KINDS), dtype=np.float32)[KIND_OF_VOTE]  # (V, KINDS)


def kind_weights(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(S,) weight of a right item by its steps behind the left one, from 1, and (S',) by its steps before it."""
    forward = STEP_DECAY ** np.arange(WINDOW)
    long, near = LONG_DECAY ** np.arange(LONG_WINDOW), 1.0 / np.arange(1, WINDOW + 1)
    return {
        "next": (np.ones(1), np.zeros(0)),
        "forward": (forward, np.zeros(0)),
        "near": (long, long),
        "together": (near, BACKWARD * near),
    }[kind]


class Room:
    """Space behind the pairs of counts: what is written there copies no pair, and who reads older counts is not
    disturbed. One writer, whose next counts are made of the last ones."""

    def __init__(self) -> None:
        self._right_ids, self._counts = torch.zeros(0, dtype=torch.int32), torch.zeros(0, len(KINDS))

    def behind(self, before: PairCounts, right_ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Both columns with more pairs at their end."""
        used = len(before.right_ids)
        end = used + len(right_ids)
        if before.right_ids.data_ptr() != self._right_ids.data_ptr() or end > len(self._right_ids):
            size = end + max(end // 4, LEAST_ROOM)
            old, self._right_ids, self._counts = before, right_ids.new_empty(size), counts.new_empty(size, len(KINDS))
            self._right_ids[:used], self._counts[:used] = old.right_ids, old.counts
        self._right_ids[used:end], self._counts[used:end] = right_ids, counts
        return self._right_ids[:end], self._counts[:end]


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Pairs of every left item in rows ``begins[i]`` to ``ends[i]``. Items that came later have no pairs yet.

    On the CPU, wherever the model lies: a history asks for some hundred of millions of pairs."""

    begins: Tensor  # (N,) int64
    ends: Tensor  # (N,) int64
    right_ids: Tensor  # (P,) int32, ascending inside a row
    counts: Tensor  # (P, KINDS) float32
    popularity: Tensor  # (N,) float32: events of each item

    @classmethod
    def of(cls, item_ids: np.ndarray, offsets: np.ndarray, num_items: int, neighbours: int) -> PairCounts:
        """Count sequences: user u's events are ``item_ids[offsets[u]:offsets[u+1]]``, oldest first.

        ``neighbours``: pairs kept of a left item, those with the highest ``near`` count for their popularity.
        """
        popularity = np.bincount(item_ids, minlength=num_items)
        keys, near = _kept(_pairs("near", item_ids, offsets, num_items), popularity, num_items, neighbours)
        counts = np.zeros((len(keys), len(KINDS)), np.float32)
        counts[:, KINDS.index("near")] = near
        for place, kind in enumerate(KINDS):
            if kind == "near" or not len(keys):
                continue
            for left, right, total in _pairs(kind, item_ids, offsets, num_items):
                wanted = left * num_items + right
                at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
                is_kept = keys[at] == wanted
                counts[at[is_kept], place] = total[is_kept]
        left, right = np.divmod(keys, num_items)
        bounds = np.searchsorted(left, np.arange(num_items + 1))
        return cls(
            torch.from_numpy(bounds[:-1].copy()), torch.from_numpy(bounds[1:].copy()),
            torch.from_numpy(right.astype(np.int32)), torch.from_numpy(counts),
            torch.from_numpy(popularity.astype(np.float32)),
        )  # fmt: skip

    def followed(self, item_ids: np.ndarray, offsets: np.ndarray, num_new: np.ndarray, num_items: int) -> PairCounts:
        """The counts after events that came since, as a count of everything would have them.

        Each user's last ``num_new`` (U,) events of ``item_ids[offsets[u]:offsets[u+1]]`` are new. What is given before
        them, at most LONG_WINDOW events, was counted already and says what they followed. ``num_items``: of now.
        """
        lengths = np.diff(offsets)
        age = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(item_ids))  # 0: the newest of its user
        old_mask = age >= np.repeat(num_new, lengths)
        known = item_ids[old_mask], np.concatenate([[0], np.cumsum(lengths - num_new)])
        return self.changed(known, (item_ids, offsets), num_items)

    def changed(self, before: Sequences, after: Sequences, num_items: int, room: Room | None = None) -> PairCounts:
        """The counts where the sequences ``after`` stand in place of ``before``: events came, also between others.

        Both hold what is within LONG_WINDOW events of a change. Rows of items with other pairs are written behind the
        others, and no pair is left out until the next :meth:`of` or :meth:`compacted`. With ``room`` the columns are
        not copied. The cost follows the rows that change, and one copy of a column of N.
        """
        more = num_items - self.num_items
        begins, ends = (torch.nn.functional.pad(column, (0, more)).clone() for column in (self.begins, self.ends))
        popularity = torch.nn.functional.pad(self.popularity, (0, more)).clone()
        for (item_ids, _), sign in ((before, -1.0), (after, 1.0)):
            ids = torch.from_numpy(item_ids)
            popularity.index_add_(0, ids, torch.full((len(ids),), sign))
        mine = replace(self, begins=begins, ends=ends)
        keys, values = _differences(before, after, num_items)
        rows = torch.unique_consecutive(keys // num_items)
        held, counted = mine._pairs_of(rows, num_items)
        pairs, inverse = torch.unique(torch.cat((held, keys)), return_inverse=True)
        counts = torch.zeros(len(pairs), len(KINDS)).index_add_(0, inverse, torch.cat((counted, values)))
        real = (counts > LEAST).any(1)  # pairs of events that were known already, and of none before, leave rounding
        pairs, counts = pairs[real], counts[real].clamp(min=0)
        bounds = torch.searchsorted(pairs, torch.stack((rows, rows + 1)) * num_items) + len(self.right_ids)
        begins[rows], ends[rows] = bounds[0], bounds[1]
        columns = (room or Room()).behind(mine, (pairs % num_items).int(), counts)
        return PairCounts(begins, ends, *columns, popularity)

    @property
    def num_unused(self) -> int:
        """Pairs that were written again behind the others."""
        return len(self.right_ids) - int((self.ends - self.begins).sum())

    def compacted(self, neighbours: int) -> PairCounts:
        """Without unused pairs; of a left item with more than twice ``neighbours`` pairs these are left, as in
        :meth:`of`."""
        lengths = self.ends - self.begins
        places = torch.arange(int(lengths.sum())) + torch.repeat_interleave(
            self.begins - lengths.cumsum(0) + lengths, lengths
        )
        long = torch.nonzero(lengths > 2 * neighbours)[:, 0]
        if len(long):
            best = self._best_of(long, neighbours)  # (n, neighbours)
            kept = torch.ones(len(self.right_ids), dtype=torch.bool)
            for row in long.tolist():
                kept[self.begins[row] : self.ends[row]] = False
            kept[best.flatten()] = True
            places, lengths = places[kept[places]], lengths.clone().index_fill_(0, long, neighbours)
        ends = lengths.cumsum(0)
        columns = self.right_ids[places], self.counts[places]
        return PairCounts(ends - lengths, ends, *columns, self.popularity)

    def _best_of(self, rows: Tensor, number: int) -> Tensor:
        """(n, number) places of the pairs of these left items (n,) that :meth:`of` would keep."""
        best = []
        for begin, end in zip(self.begins[rows].tolist(), self.ends[rows].tolist(), strict=True):
            near = self.counts[begin:end, KINDS.index("near")]
            value = near / self.popularity[self.right_ids[begin:end].long()].clamp(min=1).sqrt()
            best.append(begin + value.topk(number).indices)
        return torch.stack(best)

    def _pairs_of(self, rows: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
        """Keys (p,), ``left * num_items + right``, and counts (p, KINDS) of these left items (n,)."""
        lengths = self.ends[rows] - self.begins[rows]
        owners = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        places = torch.arange(len(owners)) + (self.begins[rows] - lengths.cumsum(0) + lengths)[owners]
        return rows[owners] * num_items + self.right_ids[places], self.counts[places]

    @property
    def num_items(self) -> int:
        return len(self.begins)

    def columns(self) -> dict[str, Tensor]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def votes(
        self, item_ids: np.ndarray, row_ids: np.ndarray, ages: np.ndarray, span: int, history: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What events (T,) of histories vote for -> keys (U,) ascending, ``row * span + item``, and votes (U, V).

        ``ages``: 0 for the newest event of a history. Events of age ``history`` and older have no vote; every event
        names its own item.
        """
        owners, right, values = self._pairs_that_vote(item_ids, ages, history)
        own = torch.from_numpy(values[:, KIND_OF_VOTE] * fades_of(history)[ages[owners]])  # (E, V)
        named = np.concatenate([row_ids[owners] * span + right, row_ids * span + item_ids])
        keys, inverse = np.unique(named, return_inverse=True)
        votes = torch.zeros(len(keys), len(VOTES)).index_add_(0, torch.from_numpy(inverse[: len(own)]), own)
        return keys, votes.numpy()

    def vote_sums(
        self, item_ids: np.ndarray, ages: np.ndarray, weights: np.ndarray, history: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same with the votes of events (T,) weighed by ``weights`` (T, V) and summed, each pair alone -> the event
        of each pair (E,), its right item (E,), and the sum (E,)."""
        owners, right, values = self._pairs_that_vote(item_ids, ages, history)
        faded = weights * fades_of(history)[ages.clip(max=history - 1)]  # (T, V)
        by_kind = faded @ VOTES_OF_KIND  # (T, KINDS)
        return owners, right, np.einsum("ek,ek->e", values, by_kind[owners])

    def _pairs_that_vote(
        self, item_ids: np.ndarray, ages: np.ndarray, history: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of events (T,) that are younger than ``history``: the event of each pair (E,), its right item (E,), and what
        an event that is as good as new votes with each of its counts (E, KINDS)."""
        begins, ends, right_ids, counts, popularity = (column.numpy() for column in self.columns().values())
        votes_mask = (item_ids < self.num_items) & (ages < history)
        known = np.where(votes_mask, item_ids, 0)
        first = begins[known]
        lengths = (ends[known] - first) * votes_mask
        owners = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(owners)) + (first - lengths.cumsum() + lengths)[owners]
        right, found = right_ids[places].astype(np.int64), counts[places]
        share = popularity[right].clip(min=1) * np.float32(SHARE_SCALE / self._num_events)
        values = np.log1p(found / share[:, None])
        values[:, -1] = found[:, -1] / np.sqrt((popularity[known][owners] + 1) * (popularity[right] + 1))
        return owners, right, values

    @cached_property
    def _num_events(self) -> float:
        return max(1.0, float(self.popularity.sum()))


def _differences(before: Sequences, after: Sequences, num_items: int) -> tuple[Tensor, Tensor]:
    """Keys (p,) ascending, ``left * num_items + right``, and what the counts (p, KINDS) of each pair grow by."""
    forward, backward = (np.zeros((LONG_WINDOW, len(KINDS))) for _ in range(2))
    for place, kind in enumerate(KINDS):
        for table, weights in zip((forward, backward), kind_weights(kind), strict=True):
            table[: len(weights), place] = weights
    item_ids, num_old = np.concatenate([before[0], after[0]]).astype(np.int64), len(before[0])
    owners = np.repeat(
        np.arange(len(before[1]) + len(after[1]) - 2), np.concatenate([np.diff(before[1]), np.diff(after[1])])
    )
    pairs, sums = np.zeros(0, np.int64), np.zeros((0, len(KINDS)))
    for start in range(0, len(item_ids), AT_ONCE):
        own = np.arange(start, min(start + AT_ONCE, len(item_ids)))
        others = own[:, None] + np.arange(1, LONG_WINDOW + 1)  # (e, LONG_WINDOW)
        near = others < len(item_ids)
        near &= owners[np.where(near, others, 0)] == owners[own][:, None]
        places, steps = np.nonzero(near)
        left, right = item_ids[own[places]], item_ids[others[near]]
        sign = np.where(own[places] < num_old, -1.0, 1.0)[:, None]
        values = np.concatenate([sign * forward[steps], sign * backward[steps]])
        values[np.tile(left == right, 2), KINDS.index("together")] = 0.0  # an item is not together with itself
        keys = np.concatenate([pairs, left * num_items + right, right * num_items + left])
        pairs, inverse = np.unique(keys, return_inverse=True)
        values = np.concatenate([sums, values])
        sums = np.stack([np.bincount(inverse, column, len(pairs)) for column in values.T], axis=1)
    changed = np.abs(sums).max(axis=1, initial=0) > LEAST
    return torch.from_numpy(pairs[changed]), torch.from_numpy(sums[changed]).float()


def _pairs(
    kind: str, item_ids: np.ndarray, offsets: np.ndarray, num_items: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    forward, backward = kind_weights(kind)
    return counted_pairs(item_ids, offsets, num_items, forward, backward, itself=kind != "together")


def _kept(
    pairs: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], popularity: np.ndarray, num_items: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (P,) ascending, ``left * N + right``, of the best ``width`` pairs of each left item, and their counts."""
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for left, right, total in pairs:
        order = np.lexsort((right, -total / np.sqrt(popularity[right]), left))
        order = np.sort(order[np.arange(len(order)) - np.searchsorted(left, left) < width])
        keys.append(left[order] * np.int64(num_items) + right[order])
        counts.append(total[order].astype(np.float32))
    return np.concatenate(keys), np.concatenate(counts)


@cache
def fades_of(history: int) -> np.ndarray:
    """(history, V) float32: what an event of each age votes with, the newest first."""
    ages = np.arange(history)
    columns = [ages == 0 if fading is None else fading**ages for _, fading in VOTES.values()]
    return np.stack(columns, axis=1).astype(np.float32)
