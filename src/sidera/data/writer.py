"""The one writer of data sets: their file format and their digest.

    with dataset_writer("data/shop", "shop", items, {"rating": pa.float32()}) as writer:
        writer.write(users, counts, item_ids, times, {"rating": ratings})  # these users with all their events
        writer.write(...)                                                  # the next users

The artifact holds ``events.parquet`` (user, item, time and the feedback columns), ``items.parquet`` and
``users.parquet`` (first column ``key``). Events are written in row groups of ``ROW_GROUP`` rows, so equal events give
equal files however they were cut into calls, and memory holds one call's events and one row group.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sidera import artifacts

ROW_GROUP = 1 << 19  # events
TimeKind = Literal["seconds", "order"]
Parts = Iterable[NDArray[Any]]  # one column, in parts of any length


@contextlib.contextmanager
def dataset_writer(
    path: str | Path, name: str, items: pa.Table, feedback: Mapping[str, pa.DataType], *,
    time_kind: TimeKind = "seconds", recipe: Mapping[str, Any] | None = None, digest: str = "",
) -> Iterator[DatasetWriter]:  # fmt: skip
    """Yield a writer; on leaving without an error the artifact is at ``path``, and an older one stands until then.

    ``items`` describe the items, row i item i; ``feedback`` names the columns and their types. ``digest``: the data
    set's where it is known already; otherwise it is computed from what was written.
    """
    # the digest is known when the last event is written, and so is the manifest
    with artifacts.writing(path, lambda: writer.manifest(name, recipe or {}, digest)) as folder:
        writer = DatasetWriter(folder, items, feedback, time_kind, keep_items=not digest)
        with writer.events:
            yield writer
            writer.flush(1)
        writer.write_tables()


class DatasetWriter:
    """Events come user by user, and inside a user oldest first; see :func:`dataset_writer`."""

    def __init__(
        self, folder: Path, items: pa.Table, feedback: Mapping[str, pa.DataType], time_kind: TimeKind, keep_items: bool
    ) -> None:
        self.folder = folder  # what else is written here becomes part of the artifact
        self.info: dict[str, Any] = {"notes": {}}  # for the manifest; no part of the digest
        self.num_users, self.num_events = 0, 0
        self.items, self.feedback, self.time_kind = items, dict(feedback), time_kind
        columns = [("user", pa.string()), ("item", pa.string()), ("time", pa.int64()), *feedback.items()]
        self.schema = pa.schema(columns)
        self.events = pq.ParquetWriter(folder / "events.parquet", self.schema, compression="zstd", compression_level=1)
        self._item_keys = items["key"].combine_chunks().cast(pa.string())
        self._users: list[pa.Table] = []
        self._user_keys: list[pa.Array] = []
        self._counts: list[NDArray[np.int64]] = []
        self._item_ids: list[NDArray[np.int32]] | None = [] if keep_items else None  # 4 bytes an event, for the digest
        self._waiting: list[dict[str, NDArray[Any]]] = []
        self._num_waiting = 0

    def write(
        self, users: pa.Table, counts: NDArray[np.int64], item_ids: NDArray[np.integer], times: NDArray[np.int64],
        feedback: Mapping[str, NDArray[Any]],
    ) -> None:  # fmt: skip
        """The next U users (first column ``key``) with their E events: ``counts`` (U,) sum to E, the others (E,)."""
        rows = np.repeat(np.arange(self.num_users, self.num_users + users.num_rows), counts)
        columns = {"user": rows, "item": item_ids, "time": times, **{name: feedback[name] for name in self.feedback}}
        self._users.append(users)
        self._user_keys += users["key"].cast(pa.string()).chunks
        self._counts.append(np.asarray(counts, dtype=np.int64))
        if self._item_ids is not None:
            self._item_ids.append(item_ids.astype(np.int32))
        self.num_users += users.num_rows
        self.num_events += len(rows)
        self._waiting.append(columns)
        self._num_waiting += len(rows)
        if self._num_waiting >= ROW_GROUP:
            self.flush(ROW_GROUP)

    def flush(self, least: int) -> None:
        """Write the events that wait in row groups of ``ROW_GROUP``, while ``least`` or more of them wait."""
        if self._num_waiting < least:
            return
        parts, number = self._waiting, self._num_waiting
        columns = {name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name]
                   for name in parts[0]}  # fmt: skip
        start = 0
        while number - start >= least:
            self._write_group({name: values[start : start + ROW_GROUP] for name, values in columns.items()})
            start = min(start + ROW_GROUP, number)
        self._waiting, self._num_waiting = [{n: values[start:].copy() for n, values in columns.items()}], number - start

    def _write_group(self, columns: Mapping[str, NDArray[Any]]) -> None:
        first, last = int(columns["user"][0]), int(columns["user"][-1])
        user_keys = pa.chunked_array(self._user_keys, type=pa.string()).slice(first, last - first + 1).combine_chunks()
        arrays = {
            "user": user_keys.take(pa.array(columns["user"] - first)),
            "item": self._item_keys.take(pa.array(columns["item"])),
            "time": pa.array(columns["time"]),
            **{name: pa.array(columns[name]) for name in self.feedback},
        }
        self.events.write_table(pa.table(arrays, schema=self.schema), row_group_size=ROW_GROUP)

    def write_tables(self) -> None:
        """Items and users, once all users are there."""
        self.users = pa.concat_tables(self._users).combine_chunks()
        for name, table in (("items", self.items), ("users", self.users)):
            pq.write_table(table, self.folder / f"{name}.parquet", compression="zstd")

    def manifest(self, name: str, recipe: Mapping[str, Any], digest: str) -> artifacts.Manifest:
        """What the artifact says of itself; ``digest`` is computed where it is empty."""
        counts = {"num_users": self.num_users, "num_items": self.items.num_rows, "num_events": self.num_events}
        info = {**self.info, "name": name, "time_kind": self.time_kind, **counts}
        return artifacts.Manifest("dataset", digest or self._digest(), recipe=dict(recipe), info=info)

    def _digest(self) -> str:
        assert self._item_ids is not None
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._counts))])
        with pq.ParquetFile(self.folder / "events.parquet") as file:
            feedback = {name: (kind, _column(file, name)) for name, kind in self.feedback.items()}
            times = _column(file, "time")
            return content_digest(self.time_kind, offsets, self._item_ids, times, feedback, self.items, self.users)


def content_digest(
    time_kind: TimeKind, offsets: NDArray[np.int64], item_ids: Parts, times: Parts,
    feedback: Mapping[str, tuple[pa.DataType, Parts]], items: pa.Table, users: pa.Table,
) -> str:  # fmt: skip
    """A data set's digest: 16 hex digits over its columns, however each is cut. ``offsets`` (U+1,) end in E."""
    sha = hashlib.sha256(time_kind.encode())
    for parts in ([offsets], item_ids, times):
        for part in parts:
            sha.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    _hash_array(sha, users["key"].cast(pa.string()))
    for name in sorted(feedback):
        kind, parts = feedback[name]
        sha.update(name.encode())
        sha.update(bytes((int(offsets[-1]) + 7) // 8))  # bits of the nulls: there is none
        sha.update(str(kind).encode())
        for part in parts:
            sha.update(np.ascontiguousarray(part).tobytes())
    for table in (items, users):
        for name in table.column_names:
            sha.update(name.encode())
            _hash_array(sha, table[name] if table.num_rows else pa.array([]))
    return sha.hexdigest()[:16]


def _column(file: pq.ParquetFile, name: str) -> Iterator[NDArray[Any]]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=[name])[name].combine_chunks().to_numpy(zero_copy_only=False)


def _hash_array(sha: Any, array: pa.Array | pa.ChunkedArray) -> None:
    """Feed values, lengths and nulls, so that chunking, slicing and string width do not show in the digest."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
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
