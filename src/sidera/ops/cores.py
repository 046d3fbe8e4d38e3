"""How many cores this process may really use, and how its numeric libraries wait for one another.

torch and numpy start a thread for every core they see. They see neither the CPU quota of a container nor the neighbours
on a shared machine, and their threads *spin* while they wait: two threads that share one core spend its time on
waiting. :func:`available_cores` reads the limits; :func:`library_threads` hands them to the libraries, which read the
environment once, when they are loaded. So it has to run before torch is imported, and imports nothing itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Threads that wait go to sleep instead of spinning: libgomp (torch), then Intel's OpenMP.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_fixed = 0  # see fixed_threads
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def available_cores(root: Path = Path("/")) -> int:
    """Cores that may be kept busy: the least of affinity and CPU quota, the quota rounded down, at least one.

    ``root`` holds ``proc`` and the mounted control groups; tests put files of their own there.
    """
    quota = cpu_quota(root)
    cores = _affinity()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that control groups (version 1 or 2) grant per unit of time; None: no limit is set.

    A limit of an outer group holds for the groups inside, so the least of all of them counts.
    """
    found = [limit for folder in _groups(root) if (limit := _limit(folder)) is not None]
    return min(found, default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the groups that limit this process: its own and those around it, in every CPU hierarchy."""
    paths: dict[str, str] = {}  # kind of hierarchy -> path of this process's group
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        mount, kind = left.split(), right.split()
        if len(mount) < 5 or len(kind) < 3 or kind[0] not in paths:
            continue
        if kind[0] == "cgroup" and "cpu" not in kind[2].split(","):
            continue
        top = root / mount[4].lstrip("/")
        inside = _below(paths[kind[0]], mount[3])
        yield from (top.joinpath(*inside[:depth]) for depth in range(len(inside) + 1))


def _below(path: str, mounted: str) -> tuple[str, ...]:
    """Parts of ``path`` below the group that is mounted; none where it lies elsewhere, as containers may see it."""
    parts, base = Path(path).parts[1:], Path(mounted).parts[1:]
    return parts[len(base) :] if parts[: len(base)] == base and ".." not in parts else ()


def _limit(folder: Path) -> float | None:
    """Quota over period of one group."""
    both = _lines(folder / "cpu.max")  # version 2: "QUOTA PERIOD" or "max PERIOD"
    words = both[0].split() if both else []
    if not words:  # version 1: two files, -1 for no limit
        words = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def fixed_threads() -> int:
    """Threads that whoever runs this process has asked for (``--threads``); 0: nobody has, they may be chosen."""
    return _fixed


@contextlib.contextmanager
def library_threads(count: int = 0) -> Iterator[None]:
    """Inside, numeric libraries wait passively and take ``count`` threads; 0: as many as :func:`available_cores`.

    Libraries that are still to be loaded read it from the environment; those that are loaded are told. What a user has
    put into the environment stays, unless a ``count`` is given.
    """
    wanted = {} if any(name in os.environ for name in PASSIVE) else dict(PASSIVE)
    if count or cpu_quota() is not None:
        wanted |= dict.fromkeys(POOLS, str(count or available_cores()))
    if not count:
        wanted = {name: value for name, value in wanted.items() if name not in os.environ}
    global _fixed
    before, fixed_before = {name: os.environ.get(name) for name in wanted}, _fixed
    os.environ.update(wanted)
    _fixed = count
    try:
        with _loaded_libraries(count) if count else contextlib.nullcontext():
            yield
    finally:
        _fixed = fixed_before
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _loaded_libraries(count: int) -> Iterator[None]:
    """Tell the libraries that are loaded already, as in a process that calls the command line as a function."""
    torch = sys.modules.get("torch")
    with contextlib.ExitStack() as told:
        if torch is not None:
            told.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(count)
        if "numpy" in sys.modules or "sklearn" in sys.modules:
            with contextlib.suppress(ImportError):  # comes with scikit-learn; else numpy keeps its pool
                from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

                told.enter_context(threadpool_limits(count))
        yield
