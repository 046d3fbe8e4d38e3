"""Where histories come from: a history store spoken to in the keys and columns of a Catalog.

    with open_behaviour("store", recommender.catalog) as behaviour:  # what `sidera serve RUN --store store` does
        behaviour.append("user-7", ["cup-3"], [1_700_000_000], {"click": [1]})
        recommender.recommend([Request(user="user-7")])              # once recommender.behaviour is set

Any Catalog opens any store: items go by their keys. Events of items that it does not hold are kept, and are read once a
Catalog holds them. Which labels an event can carry says the Catalog's schema, which is kept beside the store and
compared: bits of another schema would be read as other labels. Representatives are made in the space of
:attr:`Catalog.item_vectors`, when a model asks for them.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sidera.batch import Events, Lifelong
from sidera.catalog.catalog import Catalog
from sidera.config import digest, written
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.representatives import lifelong_of, unpacked_columns
from sidera.engine.categories import INDEX, CategoryOf, settle_index
from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import Events as StoredEvents
from sidera.store.events import packed_events
from sidera.store.history_store import CatalogIds, HistoryStore
from sidera.store.lifelong import LifelongConfig
from sidera.store.log_representatives import read_whole
from sidera.store.recent import RecentEvents
from sidera.store.store_representatives import CatalogItems, StoreRepresentatives

SCHEMA = "feedback columns"  # name of what the store settles
MAX_AHEAD = 60  # seconds that a sender's clock may be ahead of ours
FILL = ("fill began", "fill ended")  # names of what the store settles
FILL_USERS = 500  # in one commit
VIEWS = "representatives-"  # folders beside the database, by the digest of how histories are represented


def lifelong_of_events(events: Events, catalog: Catalog, config: LifelongConfig) -> Lifelong:
    """Representatives of whole histories, whose ``items`` are dense ids. O(events) for long ones."""
    item_ids, vectors = events.items.numpy(), catalog.item_vectors
    times = np.zeros(len(item_ids), np.int64) if events.times is None else events.times.numpy()
    feedback = {name: values.numpy() for name, values in events.feedback.items()}
    feedback = feedback or catalog.schema.complete({}, len(item_ids))  # without any, events count as chosen
    rows = []
    for start, end in pairwise(events.offsets.tolist()):
        mine = slice(start, end)
        columns = {name: values[mine] for name, values in feedback.items()}
        rows.append(read_whole(catalog.schema, vectors, config, item_ids[mine], times[mine], columns))
    return lifelong_of(catalog.schema, rows)


@dataclass(frozen=True)
class KnownHistory:
    """What a store knows of one user, of items that the catalogue holds."""

    item_ids: NDArray[np.int64]  # (n,) oldest first
    times: NDArray[np.int64]  # (n,)
    feedback: Mapping[str, NDArray[np.float32]]  # column -> (n,)
    tokens: NDArray | None  # representatives, where they were asked for
    unknown: tuple[str, ...] = ()  # items that the catalogue does not hold, each once


@dataclass(frozen=True)
class Kept:
    """What became of events that were sent."""

    new: int
    known: int  # of an item and second that the store held already, or that came twice
    unknown: tuple[str, ...]  # items that the catalogue does not hold, each once: kept, and not read until it does


class Behaviour:
    """A history store spoken to in the keys and columns of a Catalog. Any number of threads."""

    def __init__(
        self, store: HistoryStore, catalog: Catalog, folder: Path | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """``folder``: where representatives are saved with a snapshot; None: they are made again after a start."""
        self.store, self.catalog, self.folder, self.now = store, catalog, folder, now
        self._ids = CatalogIds(store, catalog.find_ids)
        self._views: dict[LifelongConfig, StoreRepresentatives] = {}
        self._recent = RecentEvents(store)
        indexed = store.settled(INDEX)  # by whichever process: what is appended here must be found there
        self._category_of = None if indexed is None else CategoryOf(catalog, indexed)
        self._lock = threading.Lock()

    def append(
        self, user: str, item_keys: Sequence[str], times: Sequence[int], feedback: Mapping[str, Sequence[float]]
    ) -> int:
        """Keep events of a user, each with all columns that the models read (or none with any: they count as chosen);
        -> how many are new. Durable when this returns; an event of an item and second that is known is not kept twice.

        InputError (and nothing is kept) for an item that the catalogue does not hold, a time in the future, a column
        that is missing, unknown to the schema, of another length, or negative seconds.
        """
        return self.keep(user, item_keys, times, feedback, refuse_unknown=True).new

    def keep(
        self, user: str, item_keys: Sequence[str], times: Sequence[int], feedback: Mapping[str, Sequence[float]],
        *, refuse_unknown: bool = False,
    ) -> Kept:  # fmt: skip
        """Like :meth:`append`, but events of items that the catalogue does not hold are kept, too, and named."""
        schema = self.catalog.schema
        when = np.asarray(times)
        if when.shape != (len(item_keys),):
            raise InputError(f"{when.size} times for {len(item_keys)} events", allowed="one each")
        if when.size and when.dtype.kind not in "iu":
            raise InputError(f"times are {when.dtype}", allowed="whole numbers: unix seconds")
        ids = self.catalog.find_ids(item_keys)
        missing = ids < 0
        unknown = tuple(dict.fromkeys(key for key, lost in zip(item_keys, missing.tolist(), strict=True) if lost))
        if unknown and refuse_unknown:
            self.catalog.ids_of(unknown)
        latest = int(self.now()) + MAX_AHEAD
        late = np.flatnonzero(when > latest)
        if len(late):
            raise InputError(
                f"event {late[0]} is of second {when[late[0]]}, in the future",
                allowed=f"unix seconds up to {latest}",
                fix="give seconds (not milliseconds), and check the sender's clock",
            )
        others = [name for name in feedback if name not in schema.columns]
        if others:
            raise InputError(
                f"feedback {others[0]!r} is no column of this catalogue", allowed=", ".join(schema.columns) or "none"
            )
        events = packed_events(schema, np.arange(len(item_keys)), when, schema.complete(feedback, len(item_keys)))
        numbers = self.store.numbers_of(item_keys)[events.item_ids]  # last: what is refused gets none
        categories = self._categories(self.store.numbers_of(item_keys), ids)
        new = self.store.append(user, replace(events, item_ids=numbers), new_only=True, categories=categories)
        for view in list(self._views.values()):
            view.follow(user)
        return Kept(new, len(item_keys) - new, unknown)

    def index_by(self, field: str) -> None:
        """From now on, and for all users of before, events are found by the value of this feature of their items."""
        self._category_of = settle_index(self.store, self.catalog, field)

    def _categories(self, numbers: NDArray[np.int32], ids: NDArray[np.integer]) -> dict[int, str] | None:
        """Item number of the store -> category; None where the store has no index."""
        if self._category_of is None:
            return None
        texts = self._category_of(ids)
        return {number: text for number, text in zip(numbers.tolist(), texts, strict=True) if text is not None}

    def read(
        self, user: str, as_of: int | None = None, n: int | None = None, lifelong: LifelongConfig | None = None,
        category: str | None = None,
    ) -> KnownHistory | None:  # fmt: skip
        """The newest ``n`` events of a user before ``as_of`` (None for either: all) of items that the catalogue holds,
        and representatives of all of these where ``lifelong`` says which; None for a user of whom nothing is known.

        ``category``: those of it alone, at most 1,024; InputError where the store is not indexed (:meth:`index_by`).
        """
        if category is None:
            events = self.store.history(user, as_of, n)
        elif self._category_of is None:
            raise InputError("the store has no index by category", fix="serve with --category-index FIELD")
        else:
            events = self.store.in_category(user, category, 1024 if n is None else n, as_of)
        if events is None:
            return None
        ids = self._ids.of(events.item_ids)
        unread = events.item_ids[ids < 0]
        if len(unread):
            events, ids = events.take(ids >= 0), ids[ids >= 0]
        keys = [self.store.item_keys(number, 1)[0] for number in dict.fromkeys(unread.tolist())]
        return KnownHistory(
            item_ids=ids.astype(np.int64),
            times=events.times,
            feedback=unpacked_columns(self.catalog.schema, events.labels, events.watch_time, events.duration),
            tokens=None if lifelong is None else self.representatives(lifelong).of(user, as_of),
            unknown=tuple(keys),
        )

    def ids_of(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """(n,) the store's numbers of items -> the catalogue's ids, -1: it does not hold the item."""
        return self._ids.of(numbers)

    def counts(self, since: int, until: int, events: Sequence[str] = ()) -> tuple[NDArray[np.int64], int]:
        """(N,) events of each item of the catalogue from ``since`` to before ``until``, and the second from which on
        all of them are counted: a later one where there are too many.

        ``events``: names of label columns; an event counts that has one of them (none: what the schema calls positive).
        """
        bits, window = event_bits(self.catalog.schema, events), self._recent.within(since, until)
        numbers = window.numbers if bits is None else window.numbers[(window.labels & bits) != 0]
        ids = self._ids.of(numbers)
        return np.bincount(ids[ids >= 0], minlength=self.catalog.num_items), window.since

    def representatives(self, config: LifelongConfig) -> StoreRepresentatives:
        """Who answers with the representatives of users, as a model wants histories represented."""
        with self._lock:
            if config not in self._views:
                folder = None if self.folder is None else self.folder / f"{VIEWS}{digest(written(config))[:16]}"
                self._views[config] = StoreRepresentatives(self.store, _items(self.catalog), config, folder)
            return self._views[config]

    @property
    def unfilled(self) -> bool:
        """True when the store has no user, or a :meth:`fill` did not come to its end."""
        began, ended = (self.store.settled(name) is not None for name in FILL)
        return not self.store.num_users or began > ended

    def fill(self, dataset: Dataset) -> int:
        """Keep every event of a data set -> how many. What a fill that was cut short kept already is not kept twice.

        InputError when the store knows a user already, or a column that models read is missing.
        """
        if not self.unfilled:
            raise InputError(f"the store knows {self.store.num_users:,} users already", fix="fill an empty folder")
        schema = self.catalog.schema
        feedback = {name: values for name, values in dataset.feedback.items() if name in schema.columns}
        columns = schema.complete(feedback, dataset.num_events)
        again = self.store.settled(FILL[0]) is not None
        self.store.settled(FILL[0], "fill")
        numbers = self.store.numbers_of(dataset.item_keys.tolist())
        categories = self._categories(numbers, self.catalog.find_ids(dataset.item_keys.tolist()))
        numbers = numbers[dataset.item_ids]
        waiting: list[tuple[str, StoredEvents, None]] = []
        for user, key in enumerate(dataset.user_keys):
            span = slice(int(dataset.offsets[user]), int(dataset.offsets[user + 1]))
            mine = {name: values[span] for name, values in columns.items()}
            waiting.append((str(key), packed_events(schema, numbers[span], dataset.times[span], mine), None))
            if len(waiting) == FILL_USERS or user + 1 == len(dataset.user_keys):
                self.store.append_all(waiting, new_only=again, categories=categories)
                waiting = []
        self.store.settled(FILL[1], "fill")
        return dataset.num_events

    def over(self, catalog: Catalog) -> Behaviour:
        """The same store read with another catalogue; this one reads on with its own, for calls that have begun.

        Representatives are shared while the codebook is one. InputError when events have other columns there.
        """
        _check_columns(_columns(self.catalog), _columns(catalog), "the store")
        other = Behaviour(self.store, catalog, self.folder, self.now)
        other._recent = self._recent
        if catalog.codebook_id == self.catalog.codebook_id:
            with self._lock:
                for view in self._views.values():
                    view.set_items(_items(catalog))
                other._views, other._lock = self._views, self._lock
        return other

    def snapshot(self) -> None:
        """Write what makes the next start quick: the clusters of long histories."""
        for view in list(self._views.values()):
            view.save()

    def compact(self) -> None:
        """Let go of events that are too old, and give back room. Other threads may read and write meanwhile."""
        gone = self.store.compact()
        for view in list(self._views.values()):
            for user in gone:
                view.forget(user)
        self._recent.forget()

    def erase(self, user: str) -> bool:
        """Take a user out of the store and of everything made of it; False where nothing is known of the user."""
        erased = self.store.erase(user)
        self._recent.forget()
        with self._lock:
            for view in self._views.values():
                view.forget(user)
            if self.folder is not None:
                remove_views(self.folder, {view.folder for view in self._views.values()})
        return erased

    def close(self) -> None:
        for view in self._views.values():
            view.close()
        self.store.close()

    def __enter__(self) -> Behaviour:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_store(where: str | Path, *, must_exist: bool = False) -> HistoryStore:
    """The store in a folder, made where there is none, or on a Redis server (redis://HOST:PORT/NUMBER)."""
    if str(where).startswith(("redis://", "rediss://")):
        from sidera.store.redis_store import RedisStore

        return RedisStore(str(where))
    return EmbeddedStore(where, must_exist=must_exist)


def open_behaviour(where: str | Path, catalog: Catalog, config: StoreConfig | None = None) -> Behaviour:
    """The store of :func:`open_store` (``config``: of a folder), read with ``catalog``.

    InputError when it was made under another schema of feedback columns.
    """
    store = open_store(where) if config is None else EmbeddedStore(where, config)
    try:
        return behaviour_of(store, catalog, Path(where) if isinstance(store, EmbeddedStore) else None)
    except BaseException:
        store.close()
        raise


def behaviour_of(store: HistoryStore, catalog: Catalog, folder: Path | None = None) -> Behaviour:
    """A store read with ``catalog``; InputError when it was made under another schema of feedback columns."""
    ours = _columns(catalog)
    settled = store.settled(SCHEMA, json.dumps(ours))
    assert settled is not None, "a value was given"
    _check_columns(json.loads(settled), ours, "the store" if folder is None else f"store {str(folder)!r}")
    return Behaviour(store, catalog, folder)


def remove_views(folder: Path, but: Collection[Path | None] = ()) -> None:
    """Remove saved clusters beside a store: they are made again from the events."""
    for view in folder.glob(f"{VIEWS}*"):
        if view not in but:
            shutil.rmtree(view)


def event_bits(schema: FeatureSchema, events: Sequence[str]) -> int | None:
    """Bits of which an event has one that counts; None: all count. InputError for a name that is no label."""
    others = [name for name in events if name not in schema.labels]
    if others:
        raise InputError(f"no event is named {others[0]!r}", allowed=", ".join(schema.labels) or "none: leave it out")
    names = events or ((schema.positive,) if schema.positive else ())
    return sum(1 << schema.labels.index(name) for name in set(names)) if names else None


def _items(catalog: Catalog) -> CatalogItems:
    return CatalogItems.of(catalog.item_keys.tolist(), catalog.find_ids, catalog.item_vectors)


def _columns(catalog: Catalog) -> dict[str, list[str]]:
    return {"columns": list(catalog.schema.columns), "labels": list(catalog.schema.labels)}


def _check_columns(theirs: Mapping[str, list[str]], ours: Mapping[str, list[str]], store: str) -> None:
    if theirs != ours:
        raise InputError(
            f"{store} was made with columns {', '.join(theirs['columns']) or 'none'}",
            allowed=f"those of the catalogue: {', '.join(ours['columns']) or 'none'}",
            fix="give this model a store of its own",
        )
