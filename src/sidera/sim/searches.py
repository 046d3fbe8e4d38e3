"""Searches: what users type now and then before a request, because they want something of their own.

Part of the intents are whims: topics drawn without regard to lasting taste. The others follow it. Whatever is wanted
pulls short-term taste (``search_pull``), so a query tells what the next items should be about, and the log's clicks
follow it. Chance, intent and words come from (user, day, request) alone, hence are the same under any policy.

A query is kept as a code until it is written: sub-topic * number of forms + form. U users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sidera.sim.config import WorldConfig
from sidera.sim.items import Ids
from sidera.sim.portable import exp, log
from sidera.sim.randomness import Bits, Purpose, below, bits, bits_table, low_uniform, uniform
from sidera.sim.text import CLOSERS, OPENERS, topic_names
from sidera.sim.users import Rows, Users

NUM_FORMS = 3 + len(OPENERS) + len(CLOSERS)


def search(users: Users, rows: Rows, request_keys: Bits, config: WorldConfig) -> tuple[Rows, Ids]:
    """Who of ``rows`` searches before this request (their positions in ``rows``), and the codes of their queries.

    Their short-term taste moves at once. ``request_keys`` (n,) are the request's random keys.
    """
    wants = uniform(bits(request_keys, Purpose.SEARCH)) < np.float32(config.search_share)
    positions = np.flatnonzero(wants)
    if not len(positions):
        return positions, np.empty(0, dtype=np.int32)
    own, searching = request_keys[positions], rows[positions]
    words = bits(own, Purpose.SEARCH_WHIM)
    draws = -log(low_uniform(bits_table(own, Purpose.SEARCH_TOPIC, config.num_topics)))  # (n, K) exponential races
    liked = (draws * exp(-users.taste[searching])).argmin(axis=1)  # a draw from softmax(taste)
    whim = uniform(words) < np.float32(config.search_whim)
    topic = np.where(whim, draws.argmin(axis=1), liked)
    subtopic = topic * config.num_subtopics + below(bits(own, Purpose.SEARCH_SUBTOPIC), config.num_subtopics)
    codes = subtopic * NUM_FORMS + below(bits(own, Purpose.SEARCH_FORM), NUM_FORMS)
    users.drift[searching, topic] += np.float32(config.search_pull)
    return positions, codes.astype(np.int32)


def query_texts(codes: NDArray[np.integer], config: WorldConfig) -> list[str]:
    """The words of each code, from the vocabularies that titles and tags are made of."""
    topics, below_each = topic_names(config)
    distinct, positions = np.unique(codes, return_inverse=True)
    texts = []
    for code in distinct.tolist():
        subtopic, form = divmod(code, NUM_FORMS)
        topic, number = divmod(subtopic, config.num_subtopics)
        name, detail = topics[topic], below_each[topic][number]
        whole = (detail, name, f"{name} {detail}")
        openers = tuple(f"{word} {detail}" for word in OPENERS)
        texts.append((*whole, *openers, *(f"{detail} {word}" for word in CLOSERS))[form])
    return [texts[position] for position in positions.tolist()]


class SearchLog:
    """Searches of U users, oldest first; grows as they go on."""

    def __init__(self, num_users: int) -> None:
        self.counts = np.zeros(num_users, dtype=np.int64)  # (U,)
        self.times = np.zeros((num_users, 4), dtype=np.int64)  # (U, room), filled up to counts
        self.codes = np.zeros((num_users, 4), dtype=np.int32)

    def add(self, rows: Rows, times: NDArray[np.int64], codes: Ids) -> None:
        """One more search for each of ``rows``, which are distinct."""
        if not len(rows):
            return
        positions = self.counts[rows]
        if int(positions.max()) >= self.times.shape[1]:
            self.times = np.concatenate([self.times, np.zeros_like(self.times)], axis=1)
            self.codes = np.concatenate([self.codes, np.zeros_like(self.codes)], axis=1)
        self.times[rows, positions], self.codes[rows, positions] = times, codes
        self.counts[rows] += 1

    def of(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64], Ids]:
        """Jagged (offsets, times, codes) of these users."""
        lengths = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        owners = np.repeat(rows, lengths)
        return offsets, self.times[owners, positions], self.codes[owners, positions]

    def copy(self) -> SearchLog:
        twin = SearchLog(0)
        twin.counts, twin.times, twin.codes = self.counts.copy(), self.times.copy(), self.codes.copy()
        return twin


def searches_table(user_keys: Any, rows: Rows, times: NDArray[np.int64], codes: Ids, config: WorldConfig) -> pa.Table:
    """Columns user, time (unix seconds), query; one row per search, by user and time. ``rows`` index ``user_keys``."""
    distinct, positions = np.unique(codes, return_inverse=True)
    texts = pa.array(query_texts(distinct, config), type=pa.string())
    users = pa.array(user_keys, type=pa.string()).take(pa.array(rows))
    return pa.table({"user": users, "time": pa.array(times), "query": texts.take(pa.array(positions))})
