"""Reading artifacts: only the files that the manifest lists, each checked before anything is made of it.

    opened = open_artifact("runs/x/model", "model")
    section = opened.recipe("model", dict)
    tensors = opened.tensors("weights")

A file that the manifest does not list is never opened, so one laid beside the others changes no answer. It is not
refused either: pictures beside a data set and a note beside a model do no harm, and writing over such a folder is
refused already. What is parsed are the very bytes whose digest was compared; a file that is replaced in between is
noticed or not seen at all. Tensors and Arrow tables stay in the mapped file: processes of one machine share its
pages. The mapping is private: who writes into a tensor gets pages of their own, and the file stays as it is. It keeps
its file when another takes the name (an artifact is replaced, never written over).

A digest shows damage, not intent: whoever rewrites a file can rewrite the manifest. So fields have types and ranges,
tables their number of rows and kinds of columns, and everything that is wrong is one :class:`ArtifactError` that names
the artifact.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sidera import artifacts
from sidera.artifacts import ALIGNED, Manifest, file_of, read_manifest
from sidera.bounds import MAX_JSON_BYTES, gib, parse_json, read_regular, shown, total_memory
from sidera.core import ArtifactError, InputError
from sidera.disk import WINDOWS
from sidera.ops.budget import budget_of
from sidera.ops.weights import put_weights

Buffer = bytearray | mmap.mmap
Kind = TypeVar("Kind")
Network = TypeVar("Network", bound=nn.Module)
LARGEST = 2**63 - 1
TENSOR_KINDS = {name: kind for kind, name in artifacts.TENSOR_KINDS.items()}
CELL_BYTES = 8  # of one value of a column, at least, once it is in memory


@dataclass(frozen=True)
class Opened:
    """An artifact whose manifest was read and found good."""

    path: Path
    manifest: Manifest

    def damaged(self, problem: str) -> ArtifactError:
        return ArtifactError(f"{self.manifest.kind} {self.path} is damaged: {problem}",
                             fix=f"make the {self.manifest.kind} again")  # fmt: skip

    @contextlib.contextmanager
    def believed(self) -> Iterator[None]:
        """What is made of the artifact's content inside is damaged content where it fails: one ArtifactError."""
        try:
            yield
        except ArtifactError:
            raise
        except InputError as error:
            allowed = f", allowed: {error.allowed}" if error.allowed else ""
            raise self.damaged(error.problem + allowed) from error  # its fix is for who wrote a recipe
        except (
            ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, SafetensorError,
            TypeError, ValueError, pa.ArrowException, struct.error,
        ) as error:  # fmt: skip
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise self.damaged(f"{type(error).__name__}: {said}") from error

    # -- the manifest ---------------------------------------------------------------------------------------------

    def info(self, name: str, kind: type[Kind], low: int = 0, high: int = LARGEST) -> Kind:
        """A field of the manifest's ``info`` of this type; whole numbers from ``low`` to ``high``."""
        return self.typed(self.manifest.info, name, kind, low, high)

    def recipe(self, name: str, kind: type[Kind], low: int = 0, high: int = LARGEST) -> Kind:
        """Likewise of the manifest's ``recipe``."""
        return self.typed(self.manifest.recipe, name, kind, low, high)

    def typed(self, record: Any, name: str, kind: type[Kind], low: int = 0, high: int = LARGEST) -> Kind:
        """``record[name]``; ArtifactError unless it is there, of this type, and in the range where it is a number."""
        if not isinstance(record, Mapping) or name not in record:
            raise self.damaged(f"it lacks {name}")
        value = record[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.damaged(f"{name} = {shown(value)} is no {kind.__name__}")
        if isinstance(value, int) and kind is int and not low <= value <= high:
            raise self.damaged(f"{name} = {shown(value)}, allowed: {low:,} to {high:,}")
        return value

    # -- files ----------------------------------------------------------------------------------------------------

    def content(self, name: str, most: int | None = None) -> bytes:
        """The bytes of a listed file, of which the digest was compared. ``most``: bytes, default: this machine's
        memory."""
        file = file_of(self.path, self.manifest, name)
        with self._readable(file):
            found = read_regular(file, total_memory() or LARGEST if most is None else most)
        self._compare(name, found)
        return found

    def mapped(self, name: str, most: int = LARGEST) -> Buffer:
        """Likewise as memory that shares the file's pages."""
        file = file_of(self.path, self.manifest, name)
        with self._readable(file):
            found = mapped(file, most)
        self._compare(name, found)
        return found

    @contextlib.contextmanager
    def _readable(self, file: Path) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise self.damaged(f"{file.name}: {error}") from None
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}", fix="check the permissions") from None

    def json(self, name: str, kind: type[Kind]) -> Kind:
        """A JSON file that holds a ``dict`` or a ``list``."""
        with self.believed():
            value = parse_json(self.content(name, MAX_JSON_BYTES))
        if not isinstance(value, kind):
            raise self.damaged(f"{name} holds no {kind.__name__}")
        return value

    def tensor_file(self, name: str, most: int = LARGEST) -> dict[str, Tensor]:
        """The tensors of one safetensors file, in its mapped memory."""
        with self.believed():
            return tensors_in(self.mapped(name, most))

    def tensors(self, prefix: str = "weights") -> dict[str, Tensor]:
        """What :func:`sidera.artifacts.save_tensors` wrote."""
        shard = re.compile(re.escape(prefix) + r"-\d{5,}\.safetensors")
        parts: dict[str, dict[int, Tensor]] = {}
        shapes: dict[str, dict[int, Tensor]] = {}  # of what was cut
        for name in sorted(name for name in self.manifest.files if shard.fullmatch(name)):
            for part_name, part in self.tensor_file(name, total_memory() or LARGEST).items():
                tensor_name, _, index = part_name.rpartition("#") if "#" in part_name else (part_name, "", "0")
                known = (shapes if index == "shape" else parts).setdefault(tensor_name, {})
                place = 0 if index == "shape" else int(index) if index.isdecimal() else -1
                if place < 0 or place in known:
                    raise self.damaged(f"{name} holds {shown(part_name)} once more")
                known[place] = part
        if not parts:
            raise self.damaged(f"it lists no {prefix} files")
        joined = {}
        with self.believed():
            for tensor_name, found in parts.items():
                if sorted(found) != list(range(len(found))):
                    raise self.damaged(f"a part of {shown(tensor_name)} is missing")
                shape = shapes.pop(tensor_name, {}).get(0)
                flat = found[0] if len(found) == 1 else torch.cat([found[i] for i in sorted(found)])
                joined[tensor_name] = flat if shape is None else flat.view(shape.tolist())
            if shapes:
                raise self.damaged(f"{shown(min(shapes))} has a shape and no part")
        return joined

    def network(self, build: Callable[[dict[str, Tensor]], Network]) -> Network:
        """The network that ``build`` makes of the weights' shapes, with these weights, for answering.

        The weights are read first: a recipe that asks for more than they hold is refused before it is built.
        """
        tensors = self.tensors()
        with self.believed(), budget_of(tensors):
            network = build(tensors)
        put_weights(network, tensors, self.damaged)
        return network.eval()

    def table(self, name: str, rows: int | None = None, kinds: Mapping[str, pa.DataType] | None = None) -> pa.Table:
        """A Parquet file of ``rows`` rows; ArtifactError, before a row is read, when it has another number, more than
        this machine can hold, or no column of a name in ``kinds`` (of that type, or a dictionary of it)."""
        with self.believed():
            source = pa.BufferReader(pa.py_buffer(self.mapped(name)))
            with pq.ParquetFile(source) as parquet:
                number, schema = parquet.metadata.num_rows, parquet.schema_arrow
                needed, most = CELL_BYTES * max(0, number) * len(schema), total_memory()
                if number < 0 or (most is not None and needed > most):
                    there = gib(most or 0)
                    raise self.damaged(f"{name} has {number:,} rows: {gib(needed)} or more, this machine has {there}")
                self._check_table(name, number, schema, rows, kinds or {})
                return parquet.read()

    def arrow(self, name: str, rows: int, kinds: Mapping[str, pa.DataType]) -> pa.Table:
        """An Arrow file of one batch, likewise; its columns lie in the file's mapped memory."""
        with self.believed():
            source = pa.BufferReader(pa.py_buffer(self.mapped(name)))
            with pa.ipc.open_file(source) as file:
                if file.num_record_batches != 1:  # the columns of several would have to be copied into one
                    raise self.damaged(f"{name} has {file.num_record_batches:,} batches, not one")
                batch = file.get_batch(0)
            batch.validate(full=True)
            self._check_table(name, batch.num_rows, batch.schema, rows, kinds)
            return pa.Table.from_batches([batch])

    def _check_table(
        self, name: str, number: int, schema: pa.Schema, rows: int | None, kinds: Mapping[str, pa.DataType]
    ) -> None:
        if rows is not None and number != rows:
            raise self.damaged(f"{name} has {number:,} rows, the manifest says {rows:,}")
        for column, kind in kinds.items():
            places = schema.get_all_field_indices(column)
            if len(places) != 1:
                raise self.damaged(f"{name} has {len(places)} columns {column!r}")
            there = schema.field(places[0]).type
            there = there.value_type if pa.types.is_dictionary(there) else there
            if there != kind and not (pa.types.is_large_string(there) and pa.types.is_string(kind)):
                raise self.damaged(f"{name} column {column!r} holds {there}, allowed: {kind}")

    def _compare(self, name: str, content: bytes | Buffer) -> None:
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name]:
            raise ArtifactError(f"{self.path / name} is truncated or was edited (digest differs)",
                                fix=f"make the {self.manifest.kind} again")  # fmt: skip


def open_artifact(path: str | Path, kind: str) -> Opened:
    """ArtifactError when there is none of that kind at ``path``, or its manifest is not what one must be."""
    path = Path(path)
    return Opened(path, read_manifest(path, kind))


def mapped(path: Path, most: int) -> Buffer:
    """A regular file as writable memory; ValueError when it is none or larger than ``most`` bytes.

    Windows replaces no file that is mapped, so that there the bytes are read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no regular file")
        if facts.st_size > most:
            raise ValueError(f"it holds {facts.st_size:,} bytes, allowed: up to {most:,}")
        if WINDOWS or not facts.st_size:  # nothing cannot be mapped
            return bytearray(file.read())
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def tensors_in(content: Buffer) -> dict[str, Tensor]:
    """The tensors of a safetensors file, where they lie; ValueError when its header does not fit its length.

    Format: 8 bytes length of the header, a JSON object of name -> (dtype, shape, data_offsets), the numbers.
    """
    if len(content) < 8:
        raise ValueError("the file has no header")
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    if begin > len(content):
        raise ValueError(f"the header takes {begin - 8:,} bytes, the file {len(content):,}")
    header = parse_json(bytes(content[8:begin]))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop("__metadata__", None)
    return {name: _tensor(content, begin, name, entry) for name, entry in header.items()}


def _tensor(content: Buffer, begin: int, name: str, entry: Any) -> Tensor:
    kind, shape, (start, end) = TENSOR_KINDS.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    count = math.prod(shape) if whole else 0
    if kind is None or not whole or end > len(content) - begin or end - start != count * kind.itemsize:
        raise ValueError(f"{shown(name)} is no tensor of this file: {shown(entry)}")
    if not count:
        return torch.empty(shape, dtype=kind)
    found = torch.frombuffer(content, dtype=kind, count=count, offset=begin + start).view(shape)
    return found if found.data_ptr() % ALIGNED == 0 else found.clone()
