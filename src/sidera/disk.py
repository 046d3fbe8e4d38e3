"""What operating systems do differently with files, in one place.

POSIX has ``flock``, and a folder that is opened and synced so that a new name in it survives a power cut. Windows has
``msvcrt.locking``, opens no folder (NTFS journals names by itself), syncs only what is open for writing, and translates
line ends of whatever is not opened as binary. docs/evidence/portability.md says what was run where.
"""

from __future__ import annotations

import errno
import importlib
import os
import time
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


class wait_for_lock:  # called like a function
    """Hold the lock of an open file inside a ``with``; waits while another process has it. NoLocks where there are
    none."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def __enter__(self) -> None:
        if fcntl is None:
            while not try_lock(self._file):
                time.sleep(0.002)
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            raise NoLocks(error.errno, error.strerror, self._file.name) from error

    def __exit__(self, *error: object) -> None:
        if fcntl is None:
            unlock(self._file)
        else:
            fcntl.flock(self._file, fcntl.LOCK_UN)


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
