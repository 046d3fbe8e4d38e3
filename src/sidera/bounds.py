"""What comes from outside is bounded before it is believed: the size of a file, the nesting of JSON, this machine's
memory. The lowest floor above the errors, so that recipes, artifacts and models share one set of limits.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 256 * 2**20  # a vocabulary of ten million names still fits
MAX_DEPTH = 32  # of lists and sections inside one another; what this project writes has at most 8
SHOWN = 80  # characters of a value in a message
CGROUP = Path("/sys/fs/cgroup")


def shown(value: Any) -> str:
    """``repr`` of a value for a one-line message, cut where it is long; it never fails."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more digits than Python prints, a nesting without end
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def read_regular(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file; ValueError when it is none (a pipe would wait for ever) or larger than ``most``."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(path, flags)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        if found.st_size > most:
            raise ValueError(f"it holds {found.st_size:,} bytes, allowed: up to {most:,}")
        return file.read()


def parse_json(text: bytes | str) -> Any:
    """JSON as Python values; ValueError when it is malformed, no UTF-8, or nested deeper than ``MAX_DEPTH``."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    check_depth(value)
    return value


def read_json(path: str | Path, most: int = MAX_JSON_BYTES) -> Any:
    """A JSON file; OSError when it cannot be read, ValueError when it is too large, too deep or malformed."""
    return parse_json(read_regular(path, most))


def check_depth(value: Any) -> None:
    """ValueError when lists and dictionaries stand deeper than ``MAX_DEPTH`` inside one another. Recurses nowhere."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for entry in level:
            entries: Iterable[Any] = entry.values() if isinstance(entry, dict) else entry
            if isinstance(entry, dict | list):
                inner += [part for part in entries if isinstance(part, dict | list)]
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def total_memory() -> int | None:
    """Bytes of memory that this process may have in all: the machine's, or less where a container allows less.

    None where the system does not say.
    """
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((CGROUP / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no control group, or "max"
            continue
        if limit > 0:
            found.append(limit)
    return min(found, default=None)


def gib(number: int) -> str:
    """Bytes for a message."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 // 10 else f"{number / 2**20:,.1f} MiB"
