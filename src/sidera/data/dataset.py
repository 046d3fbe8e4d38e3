"""A Dataset: one cleaned log in memory, events sorted by user and, inside a user, oldest first.

Saved as an artifact of kind "dataset": ``events.parquet`` (user, item, time and the feedback columns),
``items.parquet`` and ``users.parquet`` (first column ``key``). Row order is the meaning: event order inside a user
(ties included) is the row order of ``events.parquet``, dense item ids are the row numbers of ``items.parquet``.

Trap: a Dataset holds *all* events. What may be learned from is decided by ``sidera.data.split``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidera import artifacts
from sidera.bounds import shown
from sidera.core import ArtifactError
from sidera.loading import Opened, open_artifact

TimeKind = Literal["seconds", "order"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Events of U users over N items; build one with ``schema.build_dataset`` or ``config.load_dataset``."""

    name: str
    item_keys: np.ndarray  # (N,) object of str
    user_keys: np.ndarray  # (U,) object of str
    offsets: np.ndarray  # (U+1,) int64: events of user u are offsets[u]..offsets[u+1]
    item_ids: np.ndarray  # (E,) int64
    times: np.ndarray  # (E,) int64 unix seconds; the published order when time_kind is "order"
    feedback: Mapping[str, np.ndarray]  # column -> (E,) number
    items: pa.Table  # N rows, row i describes item i
    users: pa.Table  # U rows
    time_kind: TimeKind = "seconds"
    notes: Mapping[str, Any] = field(default_factory=dict)  # what reading noticed; not part of the digest
    source: str = ""  # digest of the data set that this is a view of

    @property
    def source_digest(self) -> str:
        """Equal for all views of one log."""
        return self.source or self.digest

    @property
    def num_users(self) -> int:
        return len(self.user_keys)

    @property
    def num_items(self) -> int:
        return len(self.item_keys)

    @property
    def num_events(self) -> int:
        return len(self.item_ids)

    @cached_property
    def event_users(self) -> np.ndarray:
        """(E,) int64, the user of each event."""
        return np.repeat(np.arange(self.num_users, dtype=np.int64), np.diff(self.offsets))

    @cached_property
    def digest(self) -> str:
        """16 hex digits over everything but ``name`` and ``notes``."""
        sha = hashlib.sha256(self.time_kind.encode())
        for array in (self.offsets, self.item_ids, self.times):
            sha.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        _hash_array(sha, pa.array(self.user_keys, type=pa.string()))
        for name in sorted(self.feedback):
            sha.update(name.encode())
            _hash_array(sha, pa.array(self.feedback[name]))
        for table in (self.items, self.users):
            for name in table.column_names:
                sha.update(name.encode())
                _hash_array(sha, pa.concat_arrays(table[name].chunks) if table.num_rows else pa.array([]))
        return sha.hexdigest()[:16]

    def keep(self, kept_mask: np.ndarray) -> Dataset:
        """The same users and items with only the events that a mask (E,) names."""
        counts = np.concatenate([[0], np.cumsum(kept_mask)])
        return replace(
            self,
            source=self.source_digest,
            offsets=counts[self.offsets].astype(np.int64),
            item_ids=self.item_ids[kept_mask],
            times=self.times[kept_mask],
            feedback={name: values[kept_mask] for name, values in self.feedback.items()},
        )

    def with_feedback(self, name: str, values: np.ndarray) -> Dataset:
        """The same events with one more column (E,)."""
        return replace(self, feedback={**self.feedback, name: values}, source=self.source_digest)

    def save(self, path: str | Path, info: Mapping[str, Any] | None = None) -> None:
        """Write the artifact; an older one at ``path`` survives until the new one is whole.

        ``info`` is kept in the manifest beside names and counts; it is no part of the digest.
        """
        rows = (self.event_users.astype(np.int32), self.item_ids.astype(np.int32))
        events = {
            "user": pa.DictionaryArray.from_arrays(rows[0], pa.array(self.user_keys, type=pa.string())),
            "item": pa.DictionaryArray.from_arrays(rows[1], pa.array(self.item_keys, type=pa.string())),
            "time": pa.array(self.times),
            **{name: pa.array(values) for name, values in self.feedback.items()},
        }
        info = {
            **(info or {}),
            "name": self.name,
            "time_kind": self.time_kind,
            "num_users": self.num_users,
            "num_items": self.num_items,
            "num_events": self.num_events,
            "notes": dict(self.notes),
        }
        manifest = artifacts.Manifest(kind="dataset", digest=self.digest, info=info)
        with artifacts.writing(path, manifest) as folder:
            for name, table in (("events", pa.table(events)), ("items", self.items), ("users", self.users)):
                pq.write_table(table, folder / f"{name}.parquet", compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Read what :meth:`save` wrote; ArtifactError when a file is missing, truncated or edited."""
        opened = open_artifact(path, "dataset")
        kinds: dict[str, dict[str, pa.DataType]] = {
            "events": {"user": pa.string(), "item": pa.string(), "time": pa.int64()},
            "items": {"key": pa.string()},
            "users": {"key": pa.string()},
        }
        events, items, users = (
            opened.table(f"{name}.parquet", opened.info(f"num_{name}", int), columns) for name, columns in kinds.items()
        )
        with opened.believed():
            return cls._of_tables(opened, events, items, users)

    @classmethod
    def _of_tables(cls, opened: Opened, events: pa.Table, items: pa.Table, users: pa.Table) -> Dataset:
        item_keys, user_keys = keys_of(items["key"]), keys_of(users["key"])
        user_ids, item_ids = positions_of(events["user"], users["key"]), positions_of(events["item"], items["key"])
        if (user_ids < 0).any() or (item_ids < 0).any():
            raise opened.damaged("an event is of a user or an item that is not in its table")
        if (np.diff(user_ids) < 0).any():
            raise opened.damaged("the events do not stand user by user")
        feedback = {n: events[n].to_numpy() for n in events.column_names if n not in ("user", "item", "time")}
        for column, values in feedback.items():
            if values.dtype.kind not in "biuf":
                raise opened.damaged(f"column {column!r} of events.parquet holds no numbers in some row")
        kind = opened.info("time_kind", str)
        if kind not in get_args(TimeKind):
            raise opened.damaged(f"time_kind = {shown(kind)}, allowed: {', '.join(get_args(TimeKind))}")
        time_kind: TimeKind = "seconds" if kind == "seconds" else "order"
        dataset = cls(
            name=opened.info("name", str),
            item_keys=item_keys,
            user_keys=user_keys,
            offsets=np.searchsorted(user_ids, np.arange(len(user_keys) + 1)).astype(np.int64),
            item_ids=item_ids,
            times=events["time"].to_numpy().copy(),  # Arrow memory is read-only
            feedback=feedback,
            items=items,
            users=users,
            time_kind=time_kind,
            notes=opened.info("notes", dict),
        )
        if dataset.digest != opened.manifest.digest:
            raise ArtifactError(
                f"dataset {opened.path} does not match its manifest's digest", fix="import the log again"
            )
        return dataset


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One file, its own columns only: ``read_table`` would add a column for every ``name=value`` folder above it."""
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns)


def keys_of(column: pa.ChunkedArray) -> np.ndarray:
    """A string column as a numpy object array."""
    return column.cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)


def positions_of(column: pa.ChunkedArray, keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(E,) int64: the row of ``keys`` that each value names, -1 where there is none."""
    if pa.types.is_dictionary(column.type):  # parquet keeps the encoding of save(): decode, or the types do not meet
        column = column.cast(pa.string())
    found = pc.index_in(column.cast(pa.string()), value_set=keys.cast(pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def _hash_array(sha: Any, array: pa.Array) -> None:
    """Feed values, lengths and nulls, so that chunking, slicing and string width do not show in the digest."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    sha.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        sha.update(b"list")
        sha.update(pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype("<i8").tobytes())
        _hash_array(sha, pc.list_flatten(array))
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        sha.update(b"text")
        filled = pc.fill_null(array, "").cast(pa.large_string())
        sha.update(pc.binary_length(filled).to_numpy().astype("<i8").tobytes())
        sha.update("".join(filled.to_pylist()).encode())
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type):
        sha.update(str(array.type).encode())
        sha.update(np.ascontiguousarray(array.drop_null().to_numpy(zero_copy_only=False)).tobytes())
    else:  # dates, structs, ...: rare in items and users, so the slow way will do
        sha.update(f"{array.type}:{array.to_pylist()!r}".encode())
