"""RedisStore: the history store on a Redis server, for several machines that answer the same users.

    with RedisStore("redis://localhost:6379/0") as store:
        store.append("user-7", Events.of(store.numbers_of(["cup-3"]), [1_700_000_000], labels=[1]))

A user is a hash: the head and the blocks of ``user_events.py`` are its fields, with the same checksums. An append reads
the heads, and writes only when none of them has changed meanwhile (WATCH and MULTI), else it begins again. So any
number of processes may append.

What an acknowledged append survives is the server's setting. It is checked when the store is opened: ``durability``
"disk" needs an append-only file that is synced at every write, "kernel" any append-only file, "memory" nothing.
A server that may evict keys when its memory is full is refused: it would forget users in silence.

Trap: a connection that breaks while an append waits for its answer leaves open whether it was kept. The call fails;
send the same events again with ``new_only``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sidera.config import check_value
from sidera.core import ArtifactError, InputError
from sidera.store import category_index
from sidera.store.category_index import numbers_in
from sidera.store.events import Events
from sidera.store.history_store import MOST_CHANGES, Categories, Change, Changes, Names
from sidera.store.item_keys import ItemKeys, key_bytes
from sidera.store.redis_server import GIVE, check_durability, connected, entry_of_number, number_of_entry
from sidera.store.user_events import BLOCK, HEAD, Head, Part, Records, new_of, newest_in, part_of

PATIENCE = 30.0  # seconds that a rewriting of its file may be under way
GIVEN_AT_ONCE = 5000  # item keys in one call
T = TypeVar("T")


@dataclass(frozen=True)
class RedisConfig:
    """What a store on a server keeps of a user, and what its appends survive."""

    max_events: int = 100_000
    max_age: int | None = None  # seconds
    durability: Literal["disk", "kernel", "memory"] = "disk"
    prefix: str = "sidera"  # of all its keys: two stores may share a server

    def __post_init__(self) -> None:
        check_value("[store]", "max_events", self.max_events, 1 <= self.max_events <= 2**30, "1 to 2**30")
        good = self.durability in ("disk", "kernel", "memory")
        check_value("[store]", "durability", self.durability, good, "disk, kernel, memory")


def _named(method: Callable[..., T]) -> Callable[..., T]:
    """A server that does not answer, or does not take a write, is an OSError."""

    @functools.wraps(method)
    def named(self: RedisStore, *arguments: Any, **options: Any) -> T:
        from redis.exceptions import RedisError

        try:
            return method(self, *arguments, **options)
        except RedisError as error:
            self.server.connection_pool.disconnect(inuse_connections=False)  # the next call connects again
            raise OSError(f"the Redis server of the store does not do its work: {error}") from error

    return named


class RedisStore:
    """A :class:`sidera.store.history_store.HistoryStore`. Any number of threads, processes and machines."""

    def __init__(self, url: str, config: RedisConfig | None = None, now: Callable[[], float] = time.time) -> None:
        """OSError when no server answers, InputError when it is not as durable as ``config`` says."""
        self.server, self.config, self.now = connected(url), config or RedisConfig(), now
        self._prefix = self.config.prefix.encode()
        self._check()
        self.keys = ItemKeys(self._given, self._give)

    @property
    @_named
    def num_users(self) -> int:
        return int(self.server.scard(self._key(b"users")))

    @_named
    def numbers_of(self, keys: Sequence[str]) -> NDArray[np.int32]:
        return self.keys.numbers_of(keys)

    @_named
    def item_keys(self, first: int = 0, number: int | None = None) -> list[str]:
        return self.keys.from_number(first, number)

    @_named
    def settled(self, name: str, value: str | None = None) -> str | None:
        if value is not None:
            self.server.hsetnx(self._key(b"settled"), name, value)
        held: Any = self.server.hget(self._key(b"settled"), name)
        return None if held is None else held.decode()

    def append(
        self, user: str, events: Events, *, new_only: bool = False, names: Names | None = None,
        categories: Categories | None = None,
    ) -> int:  # fmt: skip
        return self.append_all([(user, events, names)], new_only=new_only, categories=categories)[0]

    @_named
    def append_all(
        self, users: Sequence[tuple[str, Events, Names | None]], *, new_only: bool = False,
        categories: Categories | None = None,
    ) -> list[int]:  # fmt: skip
        parts = [(key_bytes(user, "user"), self._part(events, names)) for user, events, names in users]
        if not any(part.number for _, part in parts):
            return [0] * len(parts)
        return self._changed([key for key, _ in parts], lambda pipe: self._write(pipe, parts, new_only, categories))

    @_named
    def history(self, user: str, as_of: int | None = None, n: int | None = None, since: int = 0) -> Events | None:
        found = self._read(user, lambda head, records: head.between(records, since, as_of, n))
        return None if found is None else found.events

    @_named
    def in_category(self, user: str, category: str, n: int, as_of: int | None = None) -> Events | None:
        key, name = key_bytes(user, "user"), category.encode()

        def ask(head: Head, records: Records) -> Events:
            record: Any = self.server.hget(self._user(key), _field(name))
            numbers = np.zeros(0, category_index.NUMBER) if record is None else numbers_in(key, name, record)
            return category_index.newest(head, records, numbers[numbers < head.end], n, as_of)

        return self._read(user, ask)

    @_named
    def index(self, user: str, categories: Categories) -> None:
        key = key_bytes(user, "user")

        def work(pipe: Any) -> None:
            record = self._head(pipe, key)
            if record is None:
                pipe.multi()
                return
            first, found = Head.read(key, record).arrivals(self._records(key))
            old = [name.decode() for name in pipe.hkeys(self._user(key)) if name.startswith(_field(b"").encode())]
            new = category_index.new_numbers(part_of(found.events), first, categories)
            pipe.multi()
            if old:
                pipe.hdel(self._user(key), *old)
            if new:
                records = {_field(one): category_index.grown(key, one, None, numbers) for one, numbers in new.items()}
                pipe.hset(self._user(key), mapping=records)

        self._changed([key], work)

    @_named
    def arrivals(self, user: str, first: int = 0) -> tuple[int, Events]:
        found = self._read(user, lambda head, records: head.arrivals(records, first))
        return (0, Events.of([], [])) if found is None else (found[0], found[1].events)

    @_named
    def users(self, limit: int | None = None) -> list[str]:
        name = self._key(b"users")
        members: Any = self.server.smembers(name) if limit is None else self.server.srandmember(name, limit)
        return sorted(key.decode() for key in members)

    @_named
    def newest_of_users(self) -> list[tuple[int, str]]:
        users = [user.encode() for user in self.users()]
        newest = list[tuple[int, str]]()
        for start in range(0, len(users), GIVEN_AT_ONCE):
            mine = users[start : start + GIVEN_AT_ONCE]
            with self.server.pipeline(transaction=False) as pipe:
                for user in mine:
                    pipe.hget(self._user(user), str(HEAD))
                heads = pipe.execute()
            newest += [(newest_in(head), user.decode()) for user, head in zip(mine, heads, strict=True) if head]
        return sorted(newest, reverse=True)

    @_named
    def changes(self, after: int | None = None) -> Changes:
        """Entries of a stream; their ids, milliseconds and a count inside of one, are the numbers."""
        stream = self._key(b"changes")
        newest: Any = self.server.xrevrange(stream, count=1)
        last = number_of_entry(newest[0][0]) if newest else 0
        if after is None or after == last:
            return Changes(last, [])
        entries: Any = self.server.xrange(stream, min=entry_of_number(after))
        known = bool(entries) and number_of_entry(entries[0][0]) == after
        if not known and (after or len(entries) >= MOST_CHANGES):  # the last one that the caller knows was let go
            return Changes(last, None)
        appended = [
            Change(fields[b"user"].decode(), int(fields[b"first"]), int(fields[b"end"]))
            for _, fields in entries[int(known) :]
        ]
        return Changes(number_of_entry(entries[-1][0]) if entries else last, appended)

    @_named
    def compact(self) -> list[str]:
        if self.config.max_age is None:
            return []
        since = int(self.now()) - self.config.max_age
        users = [user.encode() for user in self.users()]
        return [user.decode() for user in users if self._changed([user], functools.partial(self._age, user, since))]

    @_named
    def erase(self, user: str) -> bool:
        """The server's append-only file holds the user until it is rewritten, which this asks for (BGREWRITEAOF)."""
        key = key_bytes(user, "user")
        with self.server.pipeline() as pipe:
            pipe.delete(self._user(key))
            pipe.srem(self._key(b"users"), key)
            entries: Any = self.server.xrange(self._key(b"changes"))
            if theirs := [number for number, fields in entries if fields[b"user"] == key]:
                pipe.xdel(self._key(b"changes"), *theirs)
            gone = bool(pipe.execute()[1])
        self._rewrite()
        return gone

    def close(self) -> None:
        self.server.close()

    def __enter__(self) -> RedisStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- one user --------------------------------------------------------------------------------------------------

    def _read(self, user: str, ask: Callable[[Head, Records], T]) -> T | None:
        key, before = key_bytes(user, "user"), None
        while True:
            record = self._head(self.server, key)
            if record is None:
                return None
            try:
                return ask(Head.read(key, record), self._records(key))
            except ArtifactError:  # blocks may have been let go between the two reads
                if record == before:
                    raise
                before = record

    def _head(self, server: Any, key: bytes) -> bytes | None:
        """ArtifactError for a user who must be there and is not."""
        record: bytes | None = server.hget(self._user(key), str(HEAD))
        if record is None and self.server.sismember(self._key(b"users"), key):  # type: ignore[arg-type]
            record = server.hget(self._user(key), str(HEAD))  # it may have come between the two questions
            if record is None and self.server.sismember(self._key(b"users"), key):  # type: ignore[arg-type]
                raise ArtifactError(f"user {key.decode()!r} is missing on the server", fix="restore it from a copy")
        return record

    def _records(self, key: bytes) -> Records:
        def records(a: int, b: int) -> Sequence[bytes | None]:
            found: Any = self.server.hmget(self._user(key), [str(place) for place in range(a, b)])
            return list(found)

        return records

    def _changed(self, users: Sequence[bytes], work: Callable[[Any], T]) -> T:
        """What ``work`` returned, once what it queued was done at a moment when none of these users had changed."""
        from redis.exceptions import WatchError

        while True:
            with self.server.pipeline() as pipe:
                try:
                    pipe.watch(*{self._user(user) for user in users})
                    result = work(pipe)
                    pipe.execute()
                except WatchError:
                    continue
                return result

    def _write(
        self, pipe: Any, parts: Sequence[tuple[bytes, Part]], new_only: bool, categories: Categories | None
    ) -> list[int]:
        heads: dict[bytes, Head] = {}
        pending: dict[bytes, dict[str, bytes]] = {}  # fields of each user, not written yet
        gone: dict[bytes, list[str]] = {}
        counts, changes = [], list[dict[Any, Any]]()
        for key, part in parts:
            if key not in heads:
                record = self._head(pipe, key)
                heads[key] = Head(key) if record is None else Head.read(key, record)
            head, fields = heads[key], pending.setdefault(key, {})
            if new_only and part.number:
                first, last = int(part.times.min()), int(part.times.max())
                held = None if first > head.newest else head.between(self._with(key, fields), first, last + 1)
                part = new_of(held, part)
            counts.append(part.number)
            if part.number:
                change = head.appended(part, self.config.max_events)
                changes.append({"user": key, "first": head.end, "end": head.end + part.number})
                fields |= {str(place): record for place, record in change.blocks} | {str(HEAD): change.head}
                fields |= self._indexed(pipe, key, part, head.end, categories or {}, fields)
                gone.setdefault(key, []).extend(str(place) for place in range(*change.dropped))
                heads[key] = Head.read(key, change.head)
        pipe.multi()
        for key, fields in pending.items():
            if fields:
                pipe.hset(self._user(key), mapping=fields)
                pipe.sadd(self._key(b"users"), key)
            if gone.get(key):
                pipe.hdel(self._user(key), *gone[key])
        for entry in changes:
            pipe.xadd(self._key(b"changes"), entry, maxlen=MOST_CHANGES, approximate=True)
        return counts

    def _indexed(
        self, server: Any, key: bytes, part: Part, first: int, categories: Categories, pending: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """Fields of a user's index with these events, of which the first is number ``first``."""
        found = category_index.new_numbers(part, first, categories)
        names = [_field(category) for category in found]
        held = server.hmget(self._user(key), names) if names else []
        return {
            name: category_index.grown(key, category, pending.get(name, record), numbers)
            for name, record, (category, numbers) in zip(names, held, found.items(), strict=True)
        }

    def _with(self, key: bytes, fields: dict[str, bytes]) -> Records:
        """The records of a user, those not written yet among them."""
        written = self._records(key)

        def records(a: int, b: int) -> Sequence[bytes | None]:
            return [fields.get(str(place), record) for place, record in zip(range(a, b), written(a, b), strict=True)]

        return records

    def _age(self, key: bytes, since: int, pipe: Any) -> bool:
        record = self._head(pipe, key)
        if record is None:
            return False
        head = Head.read(key, record)
        kept = head.without_old(self._records(key), since)
        pipe.multi()
        if kept.first == kept.end:
            pipe.delete(self._user(key))
            pipe.srem(self._key(b"users"), key)
        elif kept.first > head.first:
            pipe.hset(self._user(key), str(HEAD), kept.record())
            places = [str(place) for place in range(head.first // BLOCK, kept.first // BLOCK)]
            if places:
                pipe.hdel(self._user(key), *places)
        return kept.first == kept.end

    def _rewrite(self) -> None:
        """Begin to write the append-only file anew; one that is under way may have read the erased user already."""
        from redis.exceptions import ResponseError

        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.server.bgrewriteaof()
                return
            except ResponseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    # -- the server ------------------------------------------------------------------------------------------------

    @_named
    def _check(self) -> None:
        check_durability(self.server, self.config.durability)

    def _key(self, name: bytes) -> bytes:
        return self._prefix + b":" + name

    def _user(self, key: bytes) -> bytes:
        return self._key(b"user:" + key)

    def _part(self, events: Events, names: Names | None) -> Part:
        largest = int(events.item_ids.max(initial=-1))
        if largest >= self.keys.reach(largest):
            raise InputError(f"item number {largest} has no key", allowed="numbers that `numbers_of` gave")
        return part_of(events, names)

    def _given(self, first: int) -> list[bytes]:
        found: Any = self.server.lrange(self._key(b"items"), first, -1)
        return list(found)

    def _give(self, keys: Sequence[bytes], known: int) -> None:
        for start in range(0, len(keys), GIVEN_AT_ONCE):
            mine = keys[start : start + GIVEN_AT_ONCE]
            self.server.eval(GIVE, 2, self._key(b"items"), self._key(b"numbers"), *mine)


def _field(category: bytes) -> str:
    """Of a user's hash: where the index of a category is."""
    return "in:" + category.hex()
