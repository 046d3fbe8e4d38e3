"""EmbeddedStore: the history store of one machine, every user's events in memory, durable when an append returns.

    with EmbeddedStore("store") as store:
        store.append("user-7", Events.of(store.numbers_of(["cup-3"]), [1_700_000_000], labels=[1]))
        events = store.history("user-7", as_of=1_700_000_100)

Users are spread over shards by a checksum of their key. ``append`` writes a record to the shard's log, then changes
memory; ``snapshot`` writes the shards as artifacts and begins new logs; opening reads the snapshot and replays the logs
behind it. One process at a time (a lock file), any number of threads (a lock per shard).

Trap: a snapshot and the logs must agree on where one ends and the other begins. A snapshot names the first log that is
not in it, the new log exists before the snapshot does, and old logs go last; a crash in between replays more, not less.

Trap: erasing a user means rewriting the shard. A record in the log alone would leave the events in older files.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sidera import artifacts
from sidera.bounds import read_json, shown
from sidera.config import check_value, digest
from sidera.core import ArtifactError, InputError
from sidera.disk import try_lock
from sidera.loading import Opened, open_artifact
from sidera.store.events import COLUMNS, DTYPES, EventRing, Events
from sidera.store.item_keys import ItemKeys, key_bytes
from sidera.store.lifelong import saved_events
from sidera.store.record_log import RecordLog, cut, read_records

FORMAT = 3
KIND = "behaviour-shard"
APPEND, ERASE = 1, 2  # kinds of records


@dataclass(frozen=True)
class StoreConfig:
    """What a store keeps and where; fixed when it is made, but for ``sync``."""

    num_shards: int = 8
    max_events: int = 100_000  # of one user; beyond, those that arrived first are let go
    sync: bool = True  # an append returns when it is on the disk

    def __post_init__(self) -> None:
        for name, high in (("num_shards", 4096), ("max_events", 2**30)):
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= high
            check_value("[store]", name, value, good, f"whole numbers from 1 to {high}")


class EmbeddedStore:
    """A :class:`sidera.store.history_store.HistoryStore`. Open it with a folder; close it, or use ``with``."""

    def __init__(self, path: str | Path, config: StoreConfig | None = None) -> None:
        self.path, self.config = Path(path), config or StoreConfig()
        self.torn_bytes = 0  # of records that a crash left half written, never acknowledged, cut off at opening
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock_file = (self.path / "LOCK").open("a", encoding="utf-8")
        if not try_lock(self._lock_file):
            self._lock_file.close()
            raise InputError(f"store {str(path)!r} is open already", fix="close it where it is open")
        self._shards: list[_Shard] = []
        self._keys: ItemKeys | None = None
        try:
            self._check_same_store()
            self._keys = ItemKeys(self.path / "item-keys")
            self.torn_bytes = self._keys.torn_bytes
            self._shards.extend(_Shard(self, number) for number in range(self.config.num_shards))
        except BaseException:
            self.close()
            raise

    @property
    def num_users(self) -> int:
        return sum(len(shard.users) for shard in self._shards)

    @property
    def keys(self) -> ItemKeys:
        if self._keys is None:
            raise InputError(f"store {str(self.path)!r} is closed", fix="open it again")
        return self._keys

    def numbers_of(self, keys: Sequence[str]) -> NDArray[np.int32]:
        return self.keys.numbers_of(keys)

    def item_keys(self, first: int = 0) -> list[str]:
        return self.keys.from_number(first)

    def append(self, user: str, events: Events, *, new_only: bool = False) -> int:
        shard, key = self._shard(user)
        unknown = events.item_ids[events.item_ids >= len(self.keys)]
        if len(unknown):
            raise InputError(f"item number {unknown[0]} has no key", allowed="numbers that `numbers_of` gave")
        with shard.lock:
            ring = shard.users.get(user)
            if new_only and len(events):
                events = _new_of(ring, events)
            if len(events):
                columns = b"".join(getattr(events, name).astype(DTYPES[name]).tobytes() for name in COLUMNS)
                shard.log.append(APPEND, struct.pack("<HI", len(key), len(events)) + key + columns)
                shard.keep(user, events)
            return len(events)

    def history(self, user: str, as_of: int | None = None, n: int | None = None) -> Events | None:
        shard, _ = self._shard(user)
        with shard.lock:
            ring = shard.users.get(user)
            if ring is None:
                return None
            slots = ring.slots()
            times = ring.columns["times"][slots]
            if not (times[1:] >= times[:-1]).all():  # some came late
                order = np.argsort(times, kind="stable")
                slots, times = slots[order], times[order]
            end = len(slots) if as_of is None else int(np.searchsorted(times, as_of))
            return ring.events(slots[0 if n is None else max(0, end - n) : end])

    def arrivals(self, user: str, first: int = 0) -> tuple[int, Events]:
        shard, _ = self._shard(user)
        with shard.lock:
            ring = shard.users.get(user) or EventRing(1)
            start = min(max(first, ring.first), ring.end)
            return start, ring.events(ring.slots(start))

    def users(self) -> list[str]:
        return sorted(user for shard in self._shards for user in list(shard.users))

    def snapshot(self) -> None:
        """Write every shard and begin new logs: opening is quick afterwards.

        Takes the shards one after the other; a shard's users wait while it is written.
        """
        for shard in self._open_shards():
            with shard.lock:
                shard.snapshot()

    def erase(self, user: str) -> bool:
        shard, key = self._shard(user)
        with shard.lock:
            if user not in shard.users:
                return False
            shard.log.append(ERASE, key)
            del shard.users[user]
            shard.snapshot()
            return True

    def close(self) -> None:
        for shard in self._shards:
            with shard.lock:
                shard.log.close()
        self._shards = []
        if self._keys is not None:
            self._keys.close()
            self._keys = None
        self._lock_file.close()  # gives the lock back

    def __enter__(self) -> EmbeddedStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_shards(self) -> list[_Shard]:
        if not self._shards:
            raise InputError(f"store {str(self.path)!r} is closed", fix="open it again")
        return self._shards

    def _shard(self, user: str) -> tuple[_Shard, bytes]:
        shards, key = self._open_shards(), key_bytes(user, "user")
        return shards[zlib.crc32(key) % len(shards)], key

    def _check_same_store(self) -> None:
        """Another number of shards would look for a user in another file; other limits would let go of other events."""
        wanted = {"format": FORMAT, "num_shards": self.config.num_shards, "max_events": self.config.max_events}
        file = self.path / "store.json"
        if not file.exists():
            artifacts.write_text(file, json.dumps(wanted, indent=2) + "\n")
            return
        try:
            written = read_json(file)
        except (OSError, ValueError):
            written = None
        if not isinstance(written, dict):
            raise ArtifactError(f"{file} is damaged", fix="restore it from a backup")
        for name, value in wanted.items():
            if written.get(name) != value:
                raise InputError(
                    f"store {str(self.path)!r} was made with {name} = {shown(written.get(name))}, not {value!r}",
                    allowed="the settings that it was made with",
                    fix="open it with these, or give another folder",
                )


class _Shard:
    """Some of the users: their events, the log behind the last snapshot, and the lock for both."""

    def __init__(self, store: EmbeddedStore, number: int) -> None:
        self.store, self.lock = store, threading.RLock()
        self.users: dict[str, EventRing] = {}
        self.folder = store.path / f"shard-{number:04d}"
        self.folder.mkdir(exist_ok=True)
        first = self._read_snapshot()
        logs = {int(file.name[4:]): file for file in self.folder.glob("log-*")}
        for generation, file in sorted(logs.items()):
            if generation < first:
                file.unlink()  # in the snapshot; a crash came before it was taken away
                continue
            records, torn = read_records(file)
            if torn and generation != max(logs):
                raise ArtifactError(f"{file} ends in half a record and is not the newest log", fix="restore a backup")
            for kind, payload in records:
                self._replay(file, kind, payload)
            cut(file, torn)
            store.torn_bytes += torn
        self.generation = max([first, *logs])
        self.log = RecordLog(self._log_path(self.generation), store.config.sync)

    def keep(self, user: str, events: Events) -> None:
        """Into memory; the oldest leave beyond the limit."""
        ring = self.users.setdefault(user, EventRing(self.store.config.max_events))
        surplus = max(0, len(events) - ring.max_events)  # of this call alone
        leaving = max(0, len(ring) + len(events) - ring.max_events)
        ring.reserve(min(ring.max_events, len(ring) + len(events)))
        if surplus:
            ring.first = ring.end = ring.end + surplus
        else:
            ring.forget(leaving)
        ring.extend(events.take(slice(surplus, None)))

    def snapshot(self) -> None:
        following = RecordLog(self._log_path(self.generation + 1), self.store.config.sync)
        self.log.close()
        self.log, self.generation = following, self.generation + 1
        texts, rings = [user.encode() for user in self.users], list(self.users.values())
        arrays = {
            "users": np.frombuffer(b"".join(texts), dtype=np.uint8),
            "user_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
            "firsts": np.array([ring.first for ring in rings], dtype=np.int64),
            "counts": np.array([len(ring) for ring in rings], dtype=np.int64),
        }
        events = [ring.events(ring.slots()) for ring in rings]
        for name in COLUMNS:
            arrays[name] = np.concatenate([np.empty(0, DTYPES[name]), *(getattr(part, name) for part in events)])
        info = {"first_log": self.generation, "num_users": len(rings), "num_events": sum(map(len, events))}
        with artifacts.writing(self.folder / "snapshot", artifacts.Manifest(KIND, digest(info), info=info)) as folder:
            tensors = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
            artifacts.save_tensors(folder, tensors, prefix="users")
        for file in self.folder.glob("log-*"):
            if int(file.name[4:]) < self.generation:
                file.unlink()

    def _read_snapshot(self) -> int:
        """Take over the snapshot, if there is one; the number of the first log that is not in it."""
        path = self.folder / "snapshot"
        if not path.exists() and not (self.folder / ".snapshot.old").exists():
            return 0
        opened = open_artifact(path, KIND)
        arrays = {name: tensor.numpy() for name, tensor in opened.tensors("users").items()}
        with opened.believed():
            text, starts = arrays["users"].tobytes(), [0, *arrays["user_ends"].tolist()]
            events, firsts = saved_events(arrays), arrays["firsts"].tolist()
            ends = np.cumsum(arrays["counts"]).tolist()
            self._check_snapshot(opened, arrays, events)
            for place, first in enumerate(firsts):
                ring = EventRing(self.store.config.max_events, first)
                ring.extend(events.take(slice(ends[place - 1] if place else 0, ends[place])))
                self.users[text[starts[place] : starts[place + 1]].decode()] = ring
        if len(self.users) != len(firsts) or "" in self.users:
            raise opened.damaged("users are not texts, each once")
        return opened.info("first_log", int)

    def _check_snapshot(self, opened: Opened, arrays: dict[str, NDArray], events: Events) -> None:
        ends, counts, firsts = (arrays[name] for name in ("user_ends", "counts", "firsts"))
        most = self.store.config.max_events  # only a full history has let events go
        if not len(ends) == len(counts) == len(firsts) == opened.info("num_users", int):
            raise opened.damaged("its columns of users have other lengths than it says")
        if len(counts) and not (
            (np.diff(ends, prepend=0) > 0).all() and ends[-1] == len(arrays["users"]) and (firsts >= 0).all()
            and (counts > 0).all() and counts.sum() == len(events)
            and (np.where(firsts > 0, counts, most) == most).all() and (counts <= most).all()
        ):  # fmt: skip
            raise opened.damaged("its users' places are out of range")
        self._check_numbers(opened.path, events)

    def _check_numbers(self, file: Path, events: Events) -> None:
        if len(events) and not 0 <= int(events.item_ids.min()) <= int(events.item_ids.max()) < len(self.store.keys):
            raise ArtifactError(f"{file} holds an event whose item has no key", fix="restore the store from a backup")

    def _replay(self, file: Path, kind: int, payload: bytes) -> None:
        if kind == ERASE:
            self.users.pop(payload.decode(), None)
            return
        length, number = struct.unpack_from("<HI", payload)
        place = 6 + length
        columns = {}
        for name in COLUMNS:
            columns[name] = np.frombuffer(payload, DTYPES[name], number, place)
            place += columns[name].nbytes
        events = Events(**columns)
        self._check_numbers(file, events)
        self.keep(payload[6 : 6 + length].decode(), events)

    def _log_path(self, generation: int) -> Path:
        return self.folder / f"log-{generation:08d}"


def _new_of(ring: EventRing | None, events: Events) -> Events:
    """The events of whose item and second the ring holds none, each once."""
    held: set[tuple[int, int]] = set()
    if ring is not None:
        times = ring.columns["times"]
        near = np.flatnonzero((times >= events.times.min()) & (times <= events.times.max()))
        near = near[ring.age(near) < len(ring)]
        held.update(zip(times[near].tolist(), ring.item_ids[near].tolist(), strict=True))
    places = []
    for place, pair in enumerate(zip(events.times.tolist(), events.item_ids.tolist(), strict=True)):
        if pair not in held:
            held.add(pair)
            places.append(place)
    return events.take(np.array(places, dtype=np.int64))
