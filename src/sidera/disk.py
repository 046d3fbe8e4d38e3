"""What operating systems do differently with files, in one place.

POSIX has ``flock``, and a folder that is opened and synced so that a new name in it survives a power cut. Windows has
``msvcrt.locking``, opens no folder (NTFS journals names by itself), syncs only what is open for writing, and translates
line ends of whatever is not opened as binary. docs/evidence/portability.md says what was run where.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import time
from collections.abc import Iterator
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
BUSY = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}  # of a lock that another holds


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


class NoLocks(OSError):
    """The file system has no locks, as some network file systems."""


def try_lock(file: IO[Any]) -> bool:
    """Take the lock of an open file without waiting; False when it is taken, by this process or by another.

    It is held until the file is closed or the process ends, however it ends. NoLocks where there are none.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _lock_byte(file, msvcrt.LK_NBLCK)
    except OSError as error:
        if error.errno in BUSY:
            return False
        raise NoLocks(error.errno, error.strerror, file.name) from error
    return True


@contextlib.contextmanager
def wait_for_lock(file: IO[Any]) -> Iterator[None]:
    """Hold the lock of an open file; waits while another process has it. NoLocks where there are none."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise NoLocks(error.errno, error.strerror, file.name) from error
    else:
        while not try_lock(file):
            time.sleep(0.002)
    try:
        yield
    finally:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_UN)
        else:
            unlock(file)


def unlock(file: IO[Any]) -> None:
    """Give the lock back before the file is closed, where closing does not do it at once."""
    if fcntl is None:
        _lock_byte(file, msvcrt.LK_UNLCK)


def _lock_byte(file: IO[Any], mode: int) -> None:
    place = file.tell()
    file.seek(LOCKED_BYTE)  # Windows lets nobody else read what is locked: a byte far behind the text
    try:
        msvcrt.locking(file.fileno(), mode, 1)
    finally:
        file.seek(place)
