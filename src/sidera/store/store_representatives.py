"""Representatives of the users of a history store, in the vectors of one catalogue: what serving reads.

Clusters are a *view* of the events, made with the vectors of one catalogue. Nothing in them is not in the store too, so
they may be dropped at any time: another catalogue's vectors drop all of them, and a user's are made again from the
events when the user is read next. A catalogue that only grew keeps them, but for users with an event of an item that
it did not hold before.

    view = StoreRepresentatives(store, CatalogItems.of(keys, find_ids, vectors), config, folder)
    tokens = view.of("user-7", as_of=1_700_000_100)
    view.save()                                   # so that the next start makes none again

Short histories, of which no event would be clustered, are read from the store and held by nobody here. Making the
clusters of a long one takes about 20 ms for a chunk of 250 events; following an event afterwards takes microseconds.

Trap: after events were let go (beyond the store's limit) clusters are made of the events still kept, and may differ
from those that grew with all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sidera import artifacts
from sidera.config import digest, written
from sidera.core import ArtifactError, InputError
from sidera.loading import open_artifact
from sidera.store.events import Events
from sidera.store.history_store import CatalogIds, FindIds, HistoryStore
from sidera.store.item_keys import key_bytes
from sidera.store.lifelong import LifelongConfig, LifelongHistory
from sidera.store.splitting import Floats

KIND = "representatives"
NUM_LOCKS = 64


@dataclass(frozen=True, eq=False)
class CatalogItems:
    """What clusters need of a catalogue: keys, ids and vectors of its items."""

    keys: Sequence[str]  # (N,) by id
    find_ids: FindIds
    vectors: Floats  # (N, D)

    @classmethod
    def of(cls, keys: Sequence[str], find_ids: FindIds, vectors: ArrayLike) -> CatalogItems:
        """Check and convert; InputError for vectors that are not a finite table with a row for each key."""
        table = np.ascontiguousarray(vectors, dtype=np.float32)
        if table.ndim != 2 or len(table) != len(keys) or 0 in table.shape:
            raise InputError(f"item vectors have shape {table.shape}", allowed=f"({len(keys)} items, dims)")
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if len(bad):
            raise InputError(
                f"the vector of item {bad[0]} holds NaN or inf ({len(bad)} such items)",
                allowed="finite numbers",
                fix="compute these vectors again",
            )
        return cls(keys, find_ids, table)

    def identity(self, num_items: int) -> str:
        """16 hex digits over keys and vectors of the first ``num_items`` items: clusters are good for these."""
        content = hashlib.sha256(self.vectors[:num_items].tobytes())
        content.update("\0".join(map(str, self.keys[:num_items])).encode())
        return content.hexdigest()[:16]

    def grew_from(self, older: CatalogItems) -> bool:
        """True when the items of ``older`` have their old ids and vectors in this one."""
        number = len(older.keys)
        return (
            len(self.keys) >= number
            and np.array_equal(self.vectors[:number], older.vectors)
            and list(self.keys[:number]) == list(older.keys)
        )


@dataclass(eq=False)
class _Held:
    """The clusters of one user."""

    history: LifelongHistory
    absorbed: int  # events that arrived before this number are in them
    num_unread: int  # of these, events of items that the catalogue does not hold
    checked: bool = True  # that they are of the store's events; False: as a file said


class StoreRepresentatives:
    """A :class:`sidera.data.representatives.Representatives` of users by key and moments in unix seconds (None: now).

    Any number of threads; ``folder`` is where :meth:`save` writes.
    """

    def __init__(
        self, store: HistoryStore, items: CatalogItems, config: LifelongConfig, folder: Path | None = None
    ) -> None:
        """ArtifactError when ``folder`` holds a damaged view; one of other vectors or settings is left unread."""
        config.check_chunk()
        self.store, self.items, self.config, self.folder = store, items, config, folder
        self.ids = CatalogIds(store, items.find_ids)
        self._held: dict[str, _Held] = {}
        self._locks = [threading.RLock() for _ in range(NUM_LOCKS)]
        self._background = ThreadPoolExecutor(1, "sidera-clusters")  # waiting chunks of long histories
        if folder is not None and (folder.exists() or (folder.parent / f".{folder.name}.old").exists()):
            self._load(folder)

    def of(self, user: str, as_of: int | None = None) -> NDArray[Any]:
        """(R,) of dtype TOKEN: of the events kept before ``as_of`` whose items the catalogue holds."""
        with self._lock(user):
            held = self._follow(user) or self._made(user)
            if isinstance(held, _Held):
                return held.history.representatives(as_of)
            events = held if as_of is None else held.take(held.times < as_of)
            first = self.config.first_token(len(events))
            return events.take(slice(first, None)).in_time_order().tokens()

    def follow(self, user: str) -> None:
        """Take in what a user did since, where the clusters are held; others are made when they are read."""
        with self._lock(user):
            self._follow(user)

    def forget(self, user: str) -> None:
        """Drop what is held of an erased user, in the file too."""
        with self._lock(user):
            self._held.pop(user, None)
        if self.folder is not None and self.folder.exists():
            self.save()

    def set_items(self, items: CatalogItems) -> None:
        """Read with another catalogue from now on. Clusters that are not of its vectors are dropped."""
        with self._all_locks():
            grew = items.grew_from(self.items)
            self.items, self.ids = items, CatalogIds(self.store, items.find_ids)
            self._held = {user: held for user, held in self._held.items() if grew and not held.num_unread}
            for held in self._held.values():
                held.history.vectors = items.vectors

    def save(self) -> None:
        """Write an artifact of all clusters held; an older one survives until it is whole."""
        if self.folder is None:
            return
        with self._all_locks():
            users = set(self.store.users())  # one that was erased while nobody looked is not written again
            self._held = {user: held for user, held in self._held.items() if user in users}
            texts = [user.encode() for user in self._held]
            counters = [(held.absorbed, held.num_unread) for held in self._held.values()]
            tensors = {
                "users": torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8),
                "user_ends": torch.tensor([len(text) for text in texts], dtype=torch.int64).cumsum(0),
                "counters": torch.tensor(counters, dtype=torch.int64).reshape(-1, 2),
            }
            for number, held in enumerate(self._held.values()):
                tensors |= {f"{number}/{name}": values for name, values in held.history.state().items()}
            num_items = len(self.items.keys)
            info = {"num_items": num_items, "num_users": len(texts)}
            manifest = artifacts.Manifest(KIND, self._digest(num_items), info=info)
            with artifacts.writing(self.folder, manifest) as folder:
                artifacts.save_tensors(folder, tensors, prefix=KIND)

    def close(self) -> None:
        self._background.shutdown(cancel_futures=True)

    # -- one user --------------------------------------------------------------------------------------------------

    def _follow(self, user: str) -> _Held | None:
        """The clusters held of a user with all that arrived, or None where none of these events are held."""
        held = self._held.get(user)
        if held is None:
            return None
        first, events = self.store.arrivals(user, held.absorbed)
        if first != held.absorbed or not (held.checked or self._is_of(user, held)):
            del self._held[user]  # of events that the store has no more
            return None
        self._absorb(held, events)
        return held

    def _made(self, user: str) -> _Held | Events:
        """The clusters of a user, made from the events kept; or these, where none of them would be clustered."""
        first, arrived = self.store.arrivals(user)
        events = self._readable(arrived)
        if self.config.first_token(len(events)) is not None:
            return events
        held = _Held(LifelongHistory(self.items.vectors, self.config, background=self._background), first, 0)
        self._absorb(held, arrived)
        self._held[user] = held
        return held

    def _absorb(self, held: _Held, arrived: Events) -> None:
        events = self._readable(arrived)
        held.history.append(events)
        held.absorbed += len(arrived)
        held.num_unread += len(arrived) - len(events)

    def _readable(self, arrived: Events) -> Events:
        """Events by the catalogue's ids, without those of items that it does not hold."""
        ids = self.ids.of(arrived.item_ids)
        events = Events(**{**vars(arrived), "item_ids": ids})
        return events if not len(ids) or int(ids.min()) >= 0 else events.take(ids >= 0)

    def _is_of(self, user: str, held: _Held) -> bool:
        """True when what a file says of a user was made of the events that the store has."""
        first, arrived = self.store.arrivals(user)
        expected = self._readable(arrived.take(slice(0, max(0, held.absorbed - first))))
        events = held.history.arrivals()
        number = min(len(events), len(expected))
        held.checked = number > 0 and all(
            np.array_equal(getattr(events, name)[-number:], getattr(expected, name)[-number:], equal_nan=True)
            for name in vars(events)
        )
        return held.checked

    # -- all of them -----------------------------------------------------------------------------------------------

    def _lock(self, user: str) -> contextlib.AbstractContextManager[Any]:
        return self._locks[zlib.crc32(key_bytes(user, "user")) % NUM_LOCKS]

    @contextlib.contextmanager
    def _all_locks(self) -> Iterator[None]:
        with contextlib.ExitStack() as locks:
            for lock in self._locks:
                locks.enter_context(lock)
            yield

    def _digest(self, num_items: int) -> str:
        return digest([KIND, written(self.config), self.items.identity(num_items)])

    def _load(self, folder: Path) -> None:
        """Take over a saved view, unless it is of other vectors: then it is made again from the events."""
        try:
            opened = open_artifact(folder, KIND)
            num_items = opened.info("num_items", int)
            if num_items > len(self.items.keys) or opened.manifest.digest != self._digest(num_items):
                return
            tensors = opened.tensors(KIND)
            with opened.believed():
                self._restore(tensors, opened.info("num_users", int), grew=num_items < len(self.items.keys))
        except ArtifactError as error:
            raise ArtifactError(error.problem, fix=f"remove {folder}: it is made again from the events") from error

    def _restore(self, tensors: Mapping[str, torch.Tensor], num_users: int, grew: bool) -> None:
        text, ends = tensors["users"].numpy().tobytes(), [0, *tensors["user_ends"].tolist()]
        states: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            number, slash, part = name.partition("/")
            if slash:
                states.setdefault(number, {})[part] = tensor
        for place in range(num_users):
            absorbed, num_unread = tensors["counters"][place].tolist()
            if grew and num_unread:
                continue
            state = states[str(place)]
            history = LifelongHistory.from_state(state, self.items.vectors, self.config, self._background)
            user = text[ends[place] : ends[place + 1]].decode()
            self._held[user] = _Held(history, absorbed, num_unread, checked=False)
