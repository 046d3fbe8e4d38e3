"""A Dataset: one cleaned log in memory, events sorted by user and, inside a user, oldest first.

Saved as an artifact of kind "dataset", whose files :mod:`sidera.data.writer` describes. Row order is the meaning: event
order inside a user (ties included) is the row order of ``events.parquet``, dense item ids are the row numbers of
``items.parquet``.

Trap: a Dataset holds *all* events. What may be learned from is decided by ``sidera.data.split``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidera.bounds import shown
from sidera.core import ArtifactError
from sidera.data.writer import TimeKind, content_digest, dataset_writer
from sidera.loading import Opened, open_artifact


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
        feedback = {name: (pa.from_numpy_dtype(values.dtype), [values]) for name, values in self.feedback.items()}
        columns = (self.offsets, [self.item_ids], [self.times], feedback)
        return content_digest(self.time_kind, *columns, self.items, self.users)

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
        feedback = {name: pa.from_numpy_dtype(values.dtype) for name, values in self.feedback.items()}
        with dataset_writer(
            path, self.name, self.items, feedback, time_kind=self.time_kind, digest=self.digest
        ) as writer:
            writer.info |= {**(info or {}), "notes": dict(self.notes)}
            writer.write(self.users, np.diff(self.offsets), self.item_ids, self.times, self.feedback)

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
    rows = pc.index_in(column.cast(pa.string()), value_set=keys.cast(pa.string()))
    return pc.fill_null(rows, -1).to_numpy().astype(np.int64)
