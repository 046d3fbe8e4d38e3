"""One writer a run folder: a second process that would write into it is refused while the first is at work.

    with run_lock("runs/mine"):
        ...

    @one_writer  # the same, around a function that writes into its argument ``out``
    def run(recipe, data, out): ...

The lock is the operating system's (:mod:`sidera.disk`) on the file ``.lock`` in the folder, so
that it ends with its process however that ends; the file is removed at the end. Where a file system has no such locks,
the file holds the number of the process that made it, and one whose process is gone is taken over. A thread may take
its own lock again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from sidera import disk
from sidera.core import InputError
from sidera.fit import distributed

NAME = ".lock"

P = ParamSpec("P")
R = TypeVar("R")
_held: dict[str, int] = {}  # real path of a folder that this process has locked -> the thread that did


def one_writer(function: Callable[P, R]) -> Callable[P, R]:
    """Hold the folder ``out`` while the function runs; of a ``torchrun`` the first process does it for all."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        if distributed.rank() > 0:
            return function(*args, **kwargs)
        with run_lock(signature.bind(*args, **kwargs).arguments["out"]):
            return function(*args, **kwargs)

    return locked


@contextlib.contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Hold the folder, which is made where it is missing; InputError when another process holds it."""
    folder = Path(folder)
    key, me = os.path.realpath(folder), threading.get_ident()
    if _held.get(key) == me:
        yield
        return
    if key in _held:
        raise _refusal(folder, os.getpid())
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}", fix="choose another one") from error
    try:
        with _locked(folder / NAME, folder):
            _held[key] = me
            try:
                yield
            finally:
                del _held[key]
    finally:
        if made:  # for nothing, where the input was refused before anything was written
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    with _opened(path, folder) as (file, is_locked):
        if not is_locked:
            holder = _read(path)
            if holder is not None and holder != os.getpid() and _is_alive(holder):
                raise _refusal(folder, holder)
        _sign(file)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file; the next writer takes it over
                path.unlink()
            if is_locked:
                disk.unlock(file)


@contextlib.contextmanager
def _opened(path: Path, folder: Path) -> Iterator[tuple[IO[str], bool]]:
    """The file at ``path`` and whether it is locked: not where there are no locks."""
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write into {folder}: {error.strerror}", fix="choose another folder") from error
        with file:
            is_locked = _take(file)
            try:
                is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:  # its holder was done, and removed it, between our opening and our locking
                is_there = False
            if is_there:
                yield file, is_locked
                return


def _take(file: IO[str]) -> bool:
    """True: this process has the lock. False: there are no locks here. InputError: another process has it."""
    try:
        if disk.try_lock(file):
            return True
    except disk.NoLocks:
        return False
    raise _refusal(Path(file.name).parent, _read(Path(file.name)))


def _sign(file: IO[str]) -> None:
    """Write this process's number, for the message and for file systems without locks."""
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None


def _is_alive(process: int) -> bool:
    if disk.WINDOWS:  # there os.kill ends what it asks after
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _refusal(folder: Path, holder: int | None) -> InputError:
    who = f"process {holder}" if holder else "another process"
    return InputError(
        f"{str(folder)!r} is being written by {who}", fix="wait until it is done, or give another folder with --out"
    )
