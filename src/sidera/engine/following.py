"""Counts that follow the store while it is served: an event that was accepted is in the next answer's counts.

The transition expert of a run counts the events of the training log. Here its counts take in the positive events of the
store that are newer than that log (``counted_until`` of the artifact): all of them when the run is opened, and before
each answer those that were appended since, by whichever process. So the counts are the same after a restart. An event
that comes late stands at its place by time where its user's newest 256 events reach back so far.

Trap: what an event was counted for is not taken back when a store lets it go or its user is erased; the next start
counts what is there. Counts hold pairs of items and no user.

Shape legend: U users · T their events.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from sidera.decode.compiled import Asked
from sidera.engine.expert import Expert
from sidera.engine.histories import Behaviour, event_bits
from sidera.engine.pipeline import Candidates, Query, SearchingStep
from sidera.models.retrievers.pair_counts import LONG_WINDOW, Room, Sequences
from sidera.ops.trie import CodeTrie

LOOKED_BACK = 256  # events of a user before the new ones that say what these followed
USERS_AT_ONCE = 5000  # of a store that is read when it is opened


@dataclass(frozen=True)
class _Came:
    """What one user's new events change: the events around them without and with them, oldest first."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]


class FollowedExpert:
    """A step of the pipeline: the expert of a run, with counts as new as the store. Any number of threads."""

    def __init__(self, expert: Expert, behaviour: Behaviour, until: int) -> None:
        """``until``: the second up to which the counts hold the log's events. Reads the store's newer ones."""
        self.behaviour, self.until, self.problem = behaviour, until, ""
        self._base, self._expert = expert, expert
        self._counts, self._room = expert.counts, Room()
        self._lock, self._place = threading.Lock(), 0
        self._read: dict[str, int] = {}  # user -> number of the first event that the reading of all did not see
        self.now()

    @classmethod
    def of(cls, expert: Expert, behaviour: Behaviour | None) -> SearchingStep:
        """The expert as it is where nothing is followed: no store, or a log without seconds."""
        until = (expert.info or {}).get("counted_until")
        return expert if behaviour is None or not isinstance(until, int) else cls(expert, behaviour, until)

    def over(self, behaviour: Behaviour) -> FollowedExpert:
        """The same over another catalogue of the codebook; items of before keep their counts."""
        with self._lock:
            other = object.__new__(FollowedExpert)
            other.__dict__ |= {**self.__dict__, "behaviour": behaviour, "_lock": threading.Lock()}
            other._room = Room()  # each writes behind its own pairs
            return other

    @property
    def version(self) -> str:
        """Of the counts as they were in the last answer."""
        return f"{self._expert.version}+{self._expert.followed_events}"

    def needs(self, k: int, beam: int) -> int:
        return self._expert.needs(k, beam)

    def asked(self, trie: CodeTrie, beam: int) -> Asked:
        return self._expert.asked(trie, beam)

    def searched(self, query: Query, number: int) -> Candidates:
        """By the counts of now; the same ones order what was found."""
        expert = query.notes[self] = self.now()
        return expert.searched(query, number)

    def __call__(self, query: Query, candidates: Candidates, number: int) -> Candidates:
        expert: Expert = query.notes.get(self) or self.now()
        return expert(query, candidates, number)

    @torch.inference_mode(False)
    @torch.no_grad()
    def now(self) -> Expert:
        """The expert with everything that the store has kept. Where the store does not answer, with what it had."""
        with self._lock:
            try:
                self._follow()
                self.problem = ""
            except OSError as error:  # the counts are old until it answers again
                self.problem = str(error)
            return self._expert

    def _follow(self) -> None:
        store, begin = self.behaviour.store, not self._place
        changes = store.changes(None if begin else self._place)
        if changes.last == self._place:
            return
        if begin or changes.appended is None:
            self._counts, self._room, self._read = self._base.counts, Room(), {}
            users = (user for newest, user in store.newest_of_users() if newest > self.until)
            number, came = 0, self._all_of(users)
        else:
            spans: dict[str, tuple[int, int]] = {}
            for user, first, end in changes.appended:
                first, end = min(first, spans.get(user, (first, 0))[0]), max(end, spans.get(user, (0, end))[1])
                spans[user] = first, end
            number, came = self._expert.followed_events, self._since(spans)
            self._read = {}
        while some := list(islice(came, USERS_AT_ONCE)):
            number += sum(len(one.after) - len(one.before) for one in some)
            self._counts = self._counts.changed(
                _sequences(one.before for one in some), _sequences(one.after for one in some),
                self.behaviour.catalog.num_items, self._room,
            )  # fmt: skip
        if self._counts.num_unused > len(self._counts.right_ids) // 2:
            self._counts = self._counts.compacted(self._base.config.neighbours)
        self._expert = replace(self._base, counts=self._counts, followed_events=number)
        self._place = changes.last

    def _all_of(self, users: Iterable[str]) -> Iterator[_Came]:
        for user in users:
            begin, events = self.behaviour.store.arrivals(user)
            self._read[user] = begin + len(events)
            yield from self._came(events.item_ids, events.times, events.labels, np.ones(len(events), bool))

    def _since(self, spans: dict[str, tuple[int, int]]) -> Iterator[_Came]:
        for user, (first, end) in spans.items():
            first = max(first, self._read.get(user, 0))
            begin, events = self.behaviour.store.arrivals(user, max(0, first - LOOKED_BACK))
            events = events.take(slice(max(0, end - begin)))  # what came behind them is another change's
            new_mask = np.arange(begin, begin + len(events)) >= first
            yield from self._came(events.item_ids, events.times, events.labels, new_mask)

    def _came(
        self,
        numbers: NDArray[np.int32],
        times: NDArray[np.int64],
        labels: NDArray[np.int32],
        new_mask: NDArray[np.bool_],
    ) -> Iterator[_Came]:
        """Of events (T,) in order of arrival; nothing where none is counted."""
        bits = event_bits(self.behaviour.catalog.schema, ())
        ids = self.behaviour.ids_of(numbers).astype(np.int64)
        counted = (ids >= 0) & (True if bits is None else (labels & bits) != 0)
        order = np.argsort(times[counted], kind="stable")
        ids, is_new = ids[counted][order], (new_mask & (times > self.until))[counted][order]
        places = np.flatnonzero(is_new)
        if len(places):
            near = slice(max(0, int(places[0]) - LONG_WINDOW), int(places[-1]) + 1 + LONG_WINDOW)
            yield _Came(ids[near][~is_new[near]], ids[near])


def _sequences(parts: Iterable[NDArray[np.int64]]) -> Sequences:
    every = list(parts)
    return np.concatenate(every), np.concatenate([[0], np.cumsum([len(one) for one in every])])
