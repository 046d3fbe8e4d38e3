"""What a training says while it runs: ``metrics.jsonl``, TensorBoard events, progress on the screen.

``metrics.jsonl`` has one line an event (``"event": "train" | "eval"``). A checkpoint records the length of the file,
and resuming cuts the file there, so that a killed and resumed training leaves the lines of an uninterrupted one.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sidera.console import Progress
from sidera.core import InputError
from sidera.fit.config import FitConfig

METRICS = "metrics.jsonl"


class TrainingLog:
    """Writes events to every place that was asked for; only rank 0 has one."""

    def __init__(
        self,
        run_dir: Path,
        config: FitConfig,
        keep_bytes: int,
        step: int,
        total_steps: int,
        on_progress: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        self._path = run_dir / METRICS
        try:
            self._file = self._path.open("ab", buffering=0)
            if self._path.stat().st_size > keep_bytes:
                self._file.truncate(keep_bytes)
        except OSError as error:
            raise self._unwritable(error) from error
        self._on_progress = on_progress
        self._events = _tensorboard_writer(run_dir, step) if config.tensorboard else None
        self._progress = Progress("train", total_steps, done=step)
        self._watched = ("loss", config.monitor)  # shown behind the count of steps

    def write(self, event: str, record: Mapping[str, Any]) -> None:
        """One line: the event's name, then ``record`` (which has a "step")."""
        line = {"event": event, **record}
        try:
            content = (json.dumps(line) + "\n").encode()
            if self._file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._unwritable(error) from error
        if self._events is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._events.add_scalar(f"{event}/{name}", value, record["step"])
        self._progress.show(**{name: value for name, value in record.items() if name in self._watched})
        if self._on_progress is not None:
            self._on_progress(line)

    def advance(self) -> None:
        """One more optimizer step is done."""
        self._progress.advance()

    def sync(self) -> int:
        """Bring the file to the disk; its length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self._path}: {error.strerror}", fix="make room or rights, and run it again")

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()
        self._progress.close()


def mean_mfu(run_dir: Path) -> float | None:
    """Mean share of the peak over the training lines of ``metrics.jsonl``; None for models that count no FLOPs."""
    path = run_dir / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [record["mfu"] for record in map(json.loads, lines) if "mfu" in record]
    return sum(found) / len(found) if found else None


def _tensorboard_writer(run_dir: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "[fit] tensorboard = true, but tensorboard is not installed",
            fix="pip install 'sidera[track]', or --set fit.tensorboard=false (metrics.jsonl is always written)",
        ) from None
    # purge_step hides events of steps that a killed process took after its last checkpoint
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)
