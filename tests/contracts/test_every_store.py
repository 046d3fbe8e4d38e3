"""What every HistoryStore does. A store joins STORES and passes; the one in memory shows that a role is no file format.

The adapter and the representatives are held over every store, too: both only know the role.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "store"))
from redis_servers import RedisServer, needs_redis

from hand_made import finder
from sidera.core import InputError
from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import COLUMNS, Events, concatenate
from sidera.store.history_store import CatalogIds, Change, Changes, HistoryStore
from sidera.store.lifelong import LifelongConfig, LifelongHistory
from sidera.store.redis_store import RedisConfig, RedisStore
from sidera.store.store_representatives import CatalogItems, StoreRepresentatives
from sidera.store.user_events import Head


class MemoryStore:
    """The role in lists: no limit, no disk."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}
        self.events: dict[str, list[Events]] = {}
        self.identities: dict[str, list[tuple[int, Any]]] = {}
        self.words: dict[str, str] = {}
        self.appended: list[Change] = []
        self.categories: dict[str, list[str | None]] = {}  # of each event
        self.lock = threading.RLock()

    @property
    def num_users(self) -> int:
        return len(self.events)

    def numbers_of(self, keys: list[str]) -> np.ndarray:
        with self.lock:
            return np.array([self.keys.setdefault(key, len(self.keys)) for key in keys], dtype=np.int32)

    def item_keys(self, first: int = 0, number: int | None = None) -> list[str]:
        return list(self.keys)[first : None if number is None else first + number]

    def append_all(
        self, told: list[tuple[str, Events, np.ndarray | None]], *, new_only: bool = False, categories: Any = None
    ) -> list[int]:
        with self.lock:
            before = {user: list(parts) for user, parts in self.events.items()}
            try:
                return [
                    self.append(user, events, new_only=new_only, names=names, categories=categories)
                    for user, events, names in told
                ]
            except InputError:
                self.events = before
                raise

    def append(
        self, user: str, events: Events, *, new_only: bool = False, names: np.ndarray | None = None,
        categories: Any = None,
    ) -> int:  # fmt: skip
        if not isinstance(user, str) or not user:
            raise InputError(f"user key {user!r} cannot be used")
        if (events.item_ids >= len(self.keys)).any():
            raise InputError("item number has no key")
        with self.lock:
            names = np.zeros(len(events), np.uint64) if names is None else names
            items = [str(number) if name == 0 else name for number, name in zip(events.item_ids, names, strict=True)]
            pairs = list(zip(events.times.tolist(), items, strict=True))
            if new_only:
                seen = self.identities.get(user, [])
                fresh = [n for n, pair in enumerate(pairs) if pair not in seen and pair not in pairs[:n]]
                events, pairs = events.take(np.array(fresh, dtype=np.int64)), [pairs[n] for n in fresh]
            if len(events):
                first = sum(map(len, self.events.get(user, [])))
                self.appended.append(Change(user, first, first + len(events)))
                self.events.setdefault(user, []).append(events)
                named = [(categories or {}).get(item) for item in events.item_ids.tolist()]
                self.categories.setdefault(user, []).extend(named)
                self.identities.setdefault(user, []).extend(pairs)
            return len(events)

    def newest_of_users(self) -> list[tuple[int, str]]:
        newest = [(int(max(part.times.max() for part in parts)), user) for user, parts in self.events.items()]
        return sorted(newest, reverse=True)

    def changes(self, after: int | None = None) -> Changes:
        with self.lock:
            mine = [] if after is None else [one for one in self.appended[after:] if one.user in self.events]
            return Changes(len(self.appended), mine)

    def history(self, user: str, as_of: int | None = None, n: int | None = None, since: int = 0) -> Events | None:
        if user not in self.events:
            return None
        events = self.arrivals(user)[1].in_time_order()
        events = events.take(events.times >= since)
        events = events if as_of is None else events.take(events.times < as_of)
        return events.take(slice(0 if n is None else max(0, len(events) - n), None))

    def in_category(self, user: str, category: str, n: int, as_of: int | None = None) -> Events | None:
        if user not in self.events:
            return None
        if not 1 <= n <= 1024:
            raise InputError(f"n = {n} events of a category", allowed="1 to 1024")
        events = self.arrivals(user)[1].take(np.array([one == category for one in self.categories[user]], bool))
        events = events.take(slice(max(0, len(events) - 1024), None)).in_time_order()
        events = events if as_of is None else events.take(events.times < as_of)
        return events.take(slice(max(0, len(events) - n), None))

    def index(self, user: str, categories: Any) -> None:
        if user in self.events:
            self.categories[user] = [categories.get(item) for item in self.arrivals(user)[1].item_ids.tolist()]

    def arrivals(self, user: str, first: int = 0) -> tuple[int, Events]:
        with self.lock:
            events = concatenate([Events.of([], []), *self.events.get(user, [])])
        start = min(first, len(events))
        return start, events.take(slice(start, None))

    def users(self, limit: int | None = None) -> list[str]:
        return sorted(self.events)[:limit]

    def settled(self, name: str, value: str | None = None) -> str | None:
        return self.words.get(name) if value is None else self.words.setdefault(name, value)

    def compact(self) -> list[str]:
        return []

    def erase(self, user: str) -> bool:
        with self.lock:
            self.identities.pop(user, None)
            self.categories.pop(user, None)
            return self.events.pop(user, None) is not None

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


STORES: dict[str, Callable[[Path], HistoryStore]] = {
    "memory": lambda path: MemoryStore(),
    "embedded": lambda path: EmbeddedStore(path / "store", StoreConfig(durability="kernel")),
}
KEYS = [f"item-{number}" for number in range(40)]


@pytest.fixture(params=[*STORES, pytest.param("redis", marks=needs_redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HistoryStore]:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        opened: HistoryStore = RedisStore(server.url, RedisConfig(prefix=tmp_path.name))
    else:
        opened = STORES[request.param](tmp_path)
    yield opened
    opened.close()


def events(store: HistoryStore, items: list[int], times: list[int], seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    numbers = store.numbers_of([KEYS[item] for item in items])
    return Events.of(numbers, times, rng.integers(4, size=len(items)), rng.random(len(items)), rng.random(len(items)))


def keys_of(store: HistoryStore, found: Events | None) -> list[str]:
    assert found is not None
    keys = store.item_keys()
    return [keys[number] for number in found.item_ids]


def equal(a: Events, b: Events) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


def test_a_key_has_one_number_for_ever(store: HistoryStore) -> None:
    first = store.numbers_of(["b", "a", "b", "clé 鍵"])
    assert first.tolist() == [first[0], first[1], first[0], first[3]]
    assert sorted(set(first.tolist())) == [0, 1, 2]
    assert store.numbers_of(["new", "a"]).tolist() == [3, first[1]]
    assert [store.item_keys()[number] for number in (*first, 3)] == ["b", "a", "b", "clé 鍵", "new"]
    assert store.item_keys(3) == ["new"]
    assert store.numbers_of([]).tolist() == []


def test_what_was_appended_is_read_in_time_order(store: HistoryStore) -> None:
    first, late = events(store, [3, 1, 3], [10, 20, 20], seed=1), events(store, [2, 5], [15, 30], seed=2)
    assert (store.append("ann", first), store.append("ann", late)) == (3, 2)
    found = store.history("ann")
    assert found is not None
    assert equal(found, concatenate([first, late]).take(np.array([0, 3, 1, 2, 4])))
    assert keys_of(store, found) == [KEYS[item] for item in (3, 2, 1, 3, 5)]
    assert store.append("bob", events(store, [], [])) == 0
    assert (store.users(), store.num_users) == (["ann"], 1)


def test_a_moment_sees_only_what_was_before_it_and_n_the_newest_of_that(store: HistoryStore) -> None:
    store.append("ann", events(store, [0, 1, 2, 3], [10, 20, 20, 40]))
    store.append("ann", events(store, [4], [15]))
    for as_of, n, expected in (
        (None, None, [0, 4, 1, 2, 3]), (20, None, [0, 4]), (21, 2, [1, 2]), (None, 3, [1, 2, 3]), (10, None, []),
        (40, 99, [0, 4, 1, 2]), (None, 0, []),
    ):  # fmt: skip
        assert keys_of(store, store.history("ann", as_of, n)) == [KEYS[item] for item in expected]


def test_nobody_is_none_and_not_an_empty_history(store: HistoryStore) -> None:
    store.append("ann", events(store, [1], [10]))
    assert store.history("nobody") is None
    assert store.history("ann", as_of=5) is not None
    number, found = store.arrivals("nobody", 4)
    assert (number, len(found)) == (0, 0)


def test_arrivals_are_numbered_from_the_first_ever(store: HistoryStore) -> None:
    whole = concatenate([events(store, [1, 2], [50, 60]), events(store, [3, 4, 5], [10, 70, 70])])
    store.append("ann", whole.take(slice(0, 2)))
    store.append("ann", whole.take(slice(2, 5)))
    for first in range(8):
        number, found = store.arrivals("ann", first)
        assert number == min(first, 5)
        assert equal(found, whole.take(slice(number, None)))


def test_sent_again_an_event_is_kept_once(store: HistoryStore) -> None:
    assert store.append("ann", events(store, [1, 2, 1], [10, 10, 10]), new_only=True) == 2
    assert store.append("ann", events(store, [2, 3, 1], [10, 11, 12]), new_only=True) == 2
    assert keys_of(store, store.history("ann")) == [KEYS[item] for item in (1, 2, 3, 1)]
    assert store.append("ann", events(store, [1], [10])) == 1  # who asks for it gets it twice


def test_events_that_senders_named_are_known_by_their_name(store: HistoryStore) -> None:
    """Two of one item and second are two; one of another item is the same when it has the same name and second."""
    told = events(store, [1, 1, 2], [10, 10, 10])
    names = np.array([5, 6, 5], np.uint64)
    assert store.append("ann", told, new_only=True, names=names) == 2
    assert store.append("ann", told, new_only=True, names=names) == 0
    assert store.append("ann", told, new_only=True) == 2  # these have no names: other events
    assert store.append("ann", events(store, [1], [11]), new_only=True, names=names[:1]) == 1
    assert keys_of(store, store.history("ann")) == [KEYS[item] for item in (1, 1, 1, 2, 1)]


def test_several_users_are_told_at_once_or_not_at_all(store: HistoryStore) -> None:
    told = [("ann", events(store, [1, 2], [10, 20]), None), ("bob", events(store, [3], [5]), None)]
    assert store.append_all(told) == [2, 1]
    assert store.append_all([*told, ("cy", events(store, [3], [5]), None)], new_only=True) == [0, 0, 1]
    with pytest.raises(InputError, match="has no key"):
        store.append_all([("ann", events(store, [1], [30]), None), ("dan", Events.of([999], [1]), None)])
    assert (store.users(), len(store.history("ann"))) == (["ann", "bob", "cy"], 2)  # type: ignore[arg-type]
    assert store.append_all([]) == []


def test_what_is_settled_stays(store: HistoryStore) -> None:
    assert store.settled("columns") is None
    assert store.settled("columns", "click") == "click"
    assert store.settled("columns", "like") == "click"
    assert store.settled("columns") == "click"


@pytest.mark.parametrize("late", [0, 3, 400])
def test_any_length_and_any_moment_is_read_as_in_memory(store: HistoryStore, late: int) -> None:
    """Over many blocks, with events that come out of order: every answer is the one of the store in lists."""
    rng = np.random.default_rng(late)
    memory = MemoryStore()
    memory.numbers_of(KEYS)
    store.numbers_of(KEYS)
    clock = 1000
    for size in (1, 79, 80, 81, 200, 7, 161):
        times = clock + np.sort(rng.integers(0, 2 * size, size))
        told = Events.of(rng.integers(0, 40, size), np.maximum(times - rng.integers(0, late + 1), 0))
        clock += 2 * size
        for one in (store, memory):
            one.append("ann", told)
    moments = [None, 0, 1000, 1001, *rng.integers(900, clock + 100, 12).tolist()]
    for as_of in moments:
        for n in (None, 0, 1, 5, 79, 80, 81, 256, 1000):
            assert equal(store.history("ann", as_of, n), memory.history("ann", as_of, n))  # type: ignore[arg-type]
    for first in (0, 1, 79, 80, 160, 333, 608, 609, 700):
        number, found = store.arrivals("ann", first)
        expected = memory.arrivals("ann", first)
        assert number == expected[0]
        assert equal(found, expected[1])


def test_what_is_refused_changes_nothing(store: HistoryStore) -> None:
    store.append("ann", events(store, [1], [10]))
    with pytest.raises(InputError, match="has no key"):
        store.append("ann", Events.of([0, 999], [11, 12]))
    for user in ("", 7):
        with pytest.raises(InputError, match="user key"):
            store.append(user, events(store, [1], [10]))  # type: ignore[arg-type]
    assert len(store.history("ann")) == 1  # type: ignore[arg-type]
    assert store.users() == ["ann"]


def test_an_erased_user_is_gone_and_can_come_again(store: HistoryStore) -> None:
    for user in ("ann", "bob"):
        store.append(user, events(store, [1, 2], [10, 20]))
    assert store.compact() == []
    assert (store.erase("ann"), store.erase("ann"), store.erase("nobody")) == (True, False, False)
    assert (store.history("ann"), store.users()) == (None, ["bob"])
    store.append("ann", events(store, [3], [5]))
    assert keys_of(store, store.history("ann")) == [KEYS[3]]
    assert store.arrivals("ann")[0] == 0


def test_threads_lose_nothing(store: HistoryStore) -> None:
    def work(name: int) -> None:
        for second in range(30):
            store.append("shared", events(store, [name, second % 40], [second, second]))
            store.append(f"own{name}", events(store, [second % 40], [second]))
            assert len(store.history(f"own{name}")) == second + 1  # type: ignore[arg-type]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.history("shared")) == 240  # type: ignore[arg-type]
    assert store.users() == ["own0", "own1", "own2", "own3", "shared"]
    some = store.users(limit=2)
    assert len(some) == 2
    assert set(some) < set(store.users())
    assert store.users(limit=9) == store.users()


def test_any_catalogue_reads_any_store(store: HistoryStore) -> None:
    """Numbered otherwise, with fewer items, with more: the same keys, and what it does not hold is -1 until it does."""
    items = [7, 3, 39, 7, 12]
    store.append("ann", events(store, items, list(range(5))))
    found = store.history("ann")
    assert found is not None
    for order in (KEYS, KEYS[::-1], [KEYS[12], "other", KEYS[7]]):
        ids = CatalogIds(store, finder({key: number for number, key in enumerate(order)}))
        expected = [order.index(KEYS[item]) if KEYS[item] in order else -1 for item in items]
        assert ids.of(found.item_ids).tolist() == expected
        assert ids.of(found.item_ids[:0]).tolist() == []
    store.append("ann", Events.of(store.numbers_of(["other"]), [9]))  # a key that came after the map was made
    assert ids.of(store.history("ann").item_ids).tolist() == [*expected, 1]  # type: ignore[union-attr]


def test_representatives_are_those_of_the_events(store: HistoryStore) -> None:
    """Equal to a history of the catalogue's ids, told at once, also after another catalogue took over."""
    config = LifelongConfig(max_events=200, max_representatives=30, leaf_size=20, chunk=5)
    rng = np.random.default_rng(0)
    items, other = rng.integers(0, 40, 120).tolist(), rng.permutation(40).tolist()
    told = events(store, items, list(range(120)))
    tables = [CatalogItems.of([KEYS[item] for item in order], finder({KEYS[item]: n for n, item in enumerate(order)}),
                              rng.normal(size=(len(order), width)))
              for order, width in ((range(40), 4), (other, 6), (other[:25], 6))]  # fmt: skip
    view = StoreRepresentatives(store, tables[0], config)
    for start in range(0, 120, 11):
        store.append("ann", told.take(slice(start, start + 11)))
        view.follow("ann")
    for table in tables:
        view.set_items(table)
        ids = CatalogIds(store, table.find_ids).of(told.item_ids)
        readable = Events(**{**vars(told), "item_ids": ids}).take(ids >= 0)
        for as_of in (None, 100, 30):
            history = LifelongHistory(table.vectors, config)
            history.append(readable if as_of is None else readable.take(readable.times < as_of))
            assert view.of("ann", as_of).tobytes() == history.representatives().tobytes()
    assert len(view.of("nobody")) == 0
    store.erase("ann")
    view.forget("ann")
    assert len(view.of("ann")) == 0
    view.close()


def test_changes_name_every_append_once(store: HistoryStore) -> None:
    assert store.changes() == (0, [])
    store.append("ann", events(store, [1, 2], [10, 20]))
    store.append_all([("bob", events(store, [3], [15]), None), ("ann", events(store, [4], [30]), None)])
    last, appended = store.changes(0)
    assert appended == [("ann", 0, 2), ("bob", 0, 1), ("ann", 2, 3)]
    assert store.changes() == store.changes(last) == (last, [])
    store.append("ann", events(store, [4], [30]), new_only=True)  # it is known: no change
    assert store.changes(last) == (last, [])
    store.append("bob", events(store, [5], [40]))
    newest, appended = store.changes(last)
    assert (newest > last, appended) == (True, [("bob", 1, 2)])
    assert store.newest_of_users() == [(40, "bob"), (30, "ann")]
    store.erase("ann")
    assert all(one.user != "ann" for one in store.changes(0).appended or ())
    store.append("cid", events(store, [1], [50]))
    assert [one.user for one in store.changes(newest).appended or ()] == ["cid"]


def test_a_history_begins_where_it_is_asked_to(store: HistoryStore) -> None:
    store.append("ann", events(store, list(range(8)) * 30, list(range(240))))
    found = store.history("ann", as_of=230, since=100)
    assert found is not None
    assert found.times.tolist() == list(range(100, 230))
    found = store.history("ann", n=5, since=238)
    assert found is not None
    assert found.times.tolist() == [238, 239]


def test_the_newest_events_of_a_category(store: HistoryStore) -> None:
    """Late events, repeated ones, several appends, and the blocks of a long history: as a scan of all would say."""
    rng, every = np.random.default_rng(0), list[tuple[int, int]]()
    numbers = store.numbers_of(KEYS)
    categories = {int(number): f"kind {place % 3}" for place, number in enumerate(numbers) if place % 4}
    assert store.in_category("ann", "kind 1", 5) is None
    for step in range(30):
        items, times = rng.integers(40, size=12).tolist(), (step * 40 + rng.integers(100, size=12)).tolist()
        store.append("ann", events(store, items, times), categories=categories)
        every += [(times[place], items[place]) for place in np.argsort(times, kind="stable")]
    store.append("bob", events(store, [1], [5]), categories=categories)
    for category in ("kind 0", "kind 1", "kind 2", "none"):
        mine = [one for one in every if categories.get(int(numbers[one[1]])) == category]
        for n, as_of in ((1, None), (5, None), (5, 600), (7, 90), (1000, None), (3, 0)):
            before = sorted([one for one in mine if as_of is None or one[0] < as_of], key=lambda one: one[0])[-n:]
            found = store.in_category("ann", category, n, as_of)
            assert found is not None
            assert found.times.tolist() == [time for time, _ in before]
            assert keys_of(store, found) == [KEYS[item] for _, item in before]
    with pytest.raises(InputError, match="n = 0 events of a category; allowed: 1 to 1024"):
        store.in_category("ann", "kind 1", 0)
    store.index("ann", {int(numbers[3]): "three"})
    found = store.in_category("ann", "three", 1000)
    assert found is not None
    assert len(found) == sum(item == 3 for _, item in every)
    assert len(store.in_category("ann", "kind 1", 5) or ()) == 0
    store.erase("ann")
    assert store.in_category("ann", "three", 5) is None
    store.append("ann", events(store, [3], [5]), categories={int(numbers[3]): "three"})
    assert len(store.in_category("ann", "three", 5) or ()) == 1


def test_a_category_is_read_without_the_rest_of_the_history(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 events of others lie before and behind; blocks without one of the category are not read."""
    rare, other = store.numbers_of(KEYS[:2]).tolist()
    categories = {rare: "rare"}
    for first in (0, 6000):
        store.append("ann", Events.of([rare] * 3, [first] * 3), categories=categories)
        store.append("ann", Events.of([other] * 5000, [first + 1] * 5000), categories=categories)
    read, parts = list[int](), Head.parts

    def counted(self: Head, records: Any, a: int, b: int) -> Any:
        read.extend(range(a, b))
        return parts(self, records, a, b)

    monkeypatch.setattr(Head, "parts", counted)
    found = store.in_category("ann", "rare", 6)
    assert found is not None
    assert found.times.tolist() == [0] * 3 + [6000] * 3
    assert len(read) <= 3
