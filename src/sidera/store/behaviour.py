"""BehaviourStore: every user's behaviour, ready for the pathways of the OneRec report (2.2), on one machine.

    with BehaviourStore("store", ItemTable.of(vectors, creators)) as store:
        store.append("user-7", Events.of([12, 90], [1_700_000_000, 1_700_000_031], labels=[1, 0]))
        paths = store.read("user-7", as_of=1_700_000_100)    # short-term 20, positive 256, lifelong 2,000

Users are spread over shards by a checksum of their key. ``append`` writes a record to the shard's log, then changes
memory; ``snapshot`` writes the shards as artifacts and begins new logs; opening reads the snapshot and replays the logs
behind it. Histories are deterministic, so a reopened store gives the answers that it gave before. One process at a time
(a lock file), any number of threads (a lock per shard). All users are in memory: at most some megabytes each.

Trap: a snapshot and the logs must agree on where one ends and the other begins. A snapshot names the first log that is
not in it, the new log is there before the snapshot is, and old logs go last; a crash in between replays more, not less.
"""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from sidera import artifacts
from sidera.bounds import read_json, shown
from sidera.config import check_value, digest, written
from sidera.core import ArtifactError, InputError
from sidera.disk import try_lock
from sidera.loading import open_artifact
from sidera.store.events import COLUMNS, DTYPES, MAX_LABELS, Events, ItemTable
from sidera.store.lifelong import LifelongConfig, LifelongHistory, Representatives
from sidera.store.record_log import RecordLog, cut, read_records

KIND = "behaviour-shard"
APPEND, REBUILD = 1, 2  # kinds of records


@dataclass(frozen=True)
class StoreConfig:
    """What a store keeps and where; fixed when it is made."""

    num_shards: int = 8
    # The next three say what :meth:`BehaviourStore.read` gives; a Recommender asks for whole histories and reads none.
    num_short: int = 20  # newest events
    num_positive: int = 256  # newest events with one of the labels below
    positive_labels: int = MAX_LABELS  # bits of the labels that make an event a positive one; default: any
    sync: bool = True  # an append returns when it is on the disk
    lifelong: LifelongConfig = field(default_factory=LifelongConfig)

    def __post_init__(self) -> None:
        limits = {"num_shards": 4096, "num_short": 2**20, "num_positive": 2**20, "positive_labels": MAX_LABELS}
        for name, high in limits.items():
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= high
            check_value("[store]", name, value, good, f"whole numbers from 1 to {high}")


@dataclass(frozen=True, eq=False)
class Pathways:
    """What a model reads of one user; all empty for a user who is not known (or was not, as of then)."""

    short: Events  # the newest ``num_short``
    positive: Events  # the newest ``num_positive`` with a positive label
    lifelong: Representatives
    num_events: int  # kept, as of the moment asked for
    num_evicted: int  # came, and left beyond the limit, until now


class BehaviourStore:
    """Open with a folder (made when it is not there) and the item table; close it, or use ``with``."""

    def __init__(self, path: str | Path, items: ItemTable, config: StoreConfig | None = None, seed: int = 0) -> None:
        self.path, self.items, self.config, self.seed = Path(path), items, config or StoreConfig(), seed
        self._nobody = LifelongHistory(items, self.config.lifelong, seed)  # checks the seed, answers for the unknown
        self.torn_bytes = 0  # of a record that a crash left half written, never acknowledged, cut off at opening
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock_file = (self.path / "LOCK").open("a", encoding="utf-8")
        if not try_lock(self._lock_file):
            self._lock_file.close()
            raise InputError(f"store {str(path)!r} is open already", fix="close it where it is open")
        self.background = ThreadPoolExecutor(1, "sidera-clusters")  # waiting chunks of long histories
        self._shards: list[_Shard] = []
        try:
            self._check_same_store()
            self._shards.extend(_Shard(self, number) for number in range(self.config.num_shards))
        except BaseException:
            self.close()
            raise

    def append(self, user: str, events: Events, *, new_only: bool = False) -> int:
        """Add events of a user; they are durable when this returns, and counted. InputError for unknown items, OSError
        for a disk that does not take them; in both cases nothing has changed.

        ``new_only``: an event of an item and second that is held already (or comes twice) is left out, so that a sender
        who got no answer can send again.
        """
        shard, key = self._shard(user)
        with shard.lock:
            events.check_known(self.items)
            if new_only and len(events):
                events = _new_of(shard.users.get(user, self._nobody).events(), events)
            if len(events):
                columns = b"".join(getattr(events, name).astype(DTYPES[name]).tobytes() for name in COLUMNS)
                shard.log.append(APPEND, struct.pack("<HI", len(key), len(events)) + key + columns)
                shard.history(user).append(events)
            return len(events)

    def history(
        self, user: str, as_of: int | None = None, *, representatives: bool = False
    ) -> tuple[Events, Representatives | None] | None:
        """All events kept of a user before ``as_of``, and their representatives if asked for; None: nobody of that key
        ever did anything."""
        shard, _ = self._shard(user)
        with shard.lock:
            history = shard.users.get(user)
            if history is None:
                return None
            return history.events(as_of), history.representatives(as_of) if representatives else None

    def read(self, user: str, as_of: int | None = None) -> Pathways:
        """What is known of a user, of events before ``as_of`` (unix seconds); None: everything."""
        shard, _ = self._shard(user)
        with shard.lock:
            history = shard.users.get(user, self._nobody)
            events = history.events(as_of)
            positive = np.flatnonzero(events.labels & self.config.positive_labels)[-self.config.num_positive :]
            return Pathways(
                short=events.take(slice(max(0, len(events) - self.config.num_short), None)),
                positive=events.take(positive),
                lifelong=history.representatives(as_of),
                num_events=len(events),
                num_evicted=history.num_evicted,
            )

    def users(self) -> list[str]:
        """Keys of all users, sorted."""
        return sorted(user for shard in self._shards for user in list(shard.users))

    @property
    def num_users(self) -> int:
        """Users of whom there is an event."""
        return sum(len(shard.users) for shard in self._shards)

    def snapshot(self) -> None:
        """Build anew the trees that are due, write every shard, and begin new logs: opening is quick afterwards.

        Takes the shards one after the other; a shard's users wait while it is written.
        """
        for shard in self._open_shards():
            with shard.lock:
                shard.snapshot()

    def set_items(self, items: ItemTable) -> None:
        """Take a table with new items below the old ones."""
        items.check_extends(self.items)
        with contextlib.ExitStack() as locks:  # all of them: a shard must not meet items that its histories lack
            for shard in self._open_shards():
                locks.enter_context(shard.lock)
            for shard in self._shards:
                for history in shard.users.values():
                    history.replace_items(items)
            self.items = items

    def close(self) -> None:
        for shard in self._shards:
            with shard.lock:
                shard.log.close()
        self._shards = []
        self.background.shutdown(cancel_futures=True)
        self._lock_file.close()  # gives the lock back

    def __enter__(self) -> BehaviourStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_shards(self) -> list[_Shard]:
        if not self._shards:
            raise InputError(f"store {str(self.path)!r} is closed", fix="open it again")
        return self._shards

    def _shard(self, user: str) -> tuple[_Shard, bytes]:
        shards = self._open_shards()
        key = b""
        if isinstance(user, str):
            with contextlib.suppress(UnicodeEncodeError):  # half a character
                key = user.encode()
        if not 0 < len(key) < 2**16:
            raise InputError(f"user key {shown(user)} cannot be used", allowed="text of 1 to 65,535 bytes")
        return shards[zlib.crc32(key) % len(shards)], key

    def _check_same_store(self) -> None:
        """Other shards or limits than those a store was made with would give other answers from the same files."""
        fixed = {name: value for name, value in asdict(self.config).items() if name != "sync"}
        fixed["lifelong"] = written(self.config.lifelong)
        wanted = {"format": 2, "seed": self.seed, "width": self.items.width, "config": fixed}
        file = self.path / "store.json"
        if not file.exists():
            artifacts.write_text(file, json.dumps(wanted, indent=2) + "\n")
            return
        try:
            found = read_json(file)
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise ArtifactError(f"{file} is damaged", fix="restore it from a backup")
        for name, value in wanted.items():
            if found.get(name) != value:
                raise InputError(
                    f"store {str(self.path)!r} was made with {name} = {shown(found.get(name))}, not {value!r}"
                )


class _Shard:
    """Some of the users: their histories, the log behind the last snapshot, and the lock for both."""

    def __init__(self, store: BehaviourStore, number: int) -> None:
        self.store, self.lock = store, threading.RLock()
        self.users: dict[str, LifelongHistory] = {}
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
                self._replay(kind, payload)
            cut(file, torn)
            store.torn_bytes += torn
        self.generation = max([first, *logs])
        self.log = RecordLog(self._log_path(self.generation), store.config.sync)

    def history(self, user: str) -> LifelongHistory:
        if user not in self.users:
            config = self.store.config.lifelong
            self.users[user] = LifelongHistory(self.store.items, config, self.store.seed, self.store.background)
        return self.users[user]

    def snapshot(self) -> None:
        for user, history in self.users.items():
            if history.rebuild_due:
                self.log.append(REBUILD, user.encode())  # so that a crash before the snapshot gives the same answers
                history.rebuild()
        following = RecordLog(self._log_path(self.generation + 1), self.store.config.sync)
        self.log.close()
        self.log, self.generation = following, self.generation + 1
        tensors: dict[str, torch.Tensor] = {}
        held: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        for number, history in enumerate(self.users.values()):
            tensors |= {f"{number}/{name}": value for name, value in history.state().items()}
            held.append(history.held_items())
        info = {"first_log": self.generation, "users": list(self.users)}
        info["vectors"] = self.store.items.digest(np.concatenate(held))
        with artifacts.writing(self.folder / "snapshot", artifacts.Manifest(KIND, digest(info), info=info)) as folder:
            artifacts.save_tensors(folder, {"none": torch.zeros(0), **tensors}, prefix="users")
        for file in self.folder.glob("log-*"):
            if int(file.name[4:]) < self.generation:
                file.unlink()

    def _read_snapshot(self) -> int:
        """Take over the snapshot, if there is one; the number of the first log that is not in it."""
        path = self.folder / "snapshot"
        if not path.exists() and not (self.folder / ".snapshot.old").exists():
            return 0
        opened = open_artifact(path, KIND)
        users = opened.info("users", list)
        if not all(isinstance(user, str) for user in users) or len(set(users)) != len(users):
            raise opened.damaged("users are not texts, each once")
        states: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in opened.tensors("users").items():
            number, _, part = name.partition("/")
            states.setdefault(number, {})[part] = tensor
        with opened.believed():
            for place, user in enumerate(users):
                config, background = self.store.config.lifelong, self.store.background
                self.users[user] = LifelongHistory.from_state(states[str(place)], self.store.items, config, background)
        held = [history.held_items() for history in self.users.values()]
        vectors = self.store.items.digest(np.concatenate([np.zeros(0, dtype=np.int32), *held]))
        if vectors != opened.info("vectors", str):
            raise ArtifactError(f"{path} was clustered with other vectors", fix="give the item table it was made with")
        return opened.info("first_log", int)

    def _replay(self, kind: int, payload: bytes) -> None:
        if kind == REBUILD:
            self.users[payload.decode()].rebuild()
            return
        length, number = struct.unpack_from("<HI", payload)
        place = 6 + length
        columns = {}
        for name in COLUMNS:
            columns[name] = np.frombuffer(payload, DTYPES[name], number, place)
            place += columns[name].nbytes
        self.history(payload[6 : 6 + length].decode()).append(Events(**columns))

    def _log_path(self, generation: int) -> Path:
        return self.folder / f"log-{generation:08d}"


def _new_of(held: Events, events: Events) -> Events:
    """The events of whose item and second there is none in ``held``, each once."""
    near = np.isin(held.times, events.times)
    known = set(zip(held.times[near].tolist(), held.item_ids[near].tolist(), strict=True))
    kept = []
    for place, pair in enumerate(zip(events.times.tolist(), events.item_ids.tolist(), strict=True)):
        if pair not in known:
            known.add(pair)
            kept.append(place)
    return events.take(np.array(kept, dtype=np.int64))
