"""What operating systems do differently with files, in one place.

POSIX has ``flock``, and a folder that is opened and synced so that a new name in it survives a power cut. Windows has
``msvcrt.locking``, opens no folder (NTFS journals names by itself), syncs only what is open for writing, and translates
line ends of whatever is not opened as binary. docs/portability.md says what was run where.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import IO, Any


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")  # each system has one of them
WINDOWS = os.name == "nt"
LOCKED_BYTE = 2**30


def sync(place: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. OSError when the disk does not take it."""
    if WINDOWS and place.is_dir():
        return
    handle = os.open(place, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_to_append(path: Path) -> int:
    """A handle whose writes go to the end of ``path`` byte by byte as given; the file is made when it is not there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)


def try_lock(file: IO[Any]) -> bool:
    """Take the lock of an open file without waiting; False when it is taken, by this process or by another.

    It is held until the file is closed or the process ends, however it ends.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            place = file.tell()
            file.seek(LOCKED_BYTE)  # Windows lets nobody else read what is locked: a byte far behind the text
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            finally:
                file.seek(place)
    except OSError:
        return False
    return True
