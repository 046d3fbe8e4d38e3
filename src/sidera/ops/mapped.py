"""Files as memory: an artifact's large parts are mapped, not read, so that processes of one machine share their pages.

    content = mapped(Path("codes.safetensors"))
    tensors = tensors_in(content)

A mapping is private: who writes into a tensor gets pages of their own, and the file stays as it is. It keeps its file
when another takes the name (an artifact is replaced, never written over), and ends with the last tensor inside it.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidera.bounds import parse_json, shown
from sidera.disk import WINDOWS

Buffer = bytearray | mmap.mmap
KINDS = {  # of a safetensors file
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


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
    kind, shape, (start, end) = KINDS.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    count = math.prod(shape) if whole else 0
    if kind is None or not whole or end > len(content) - begin or end - start != count * kind.itemsize:
        raise ValueError(f"{shown(name)} is no tensor of this file: {shown(entry)}")
    if not count:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(content, dtype=kind, count=count, offset=begin + start).view(shape)
