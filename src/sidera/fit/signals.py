"""Ctrl-C and SIGTERM: the running step is finished and saved before the training stops.

The first signal is noted and read between steps; during an evaluation, which changes nothing and may take minutes, it
acts at once. A second signal is an ordinary KeyboardInterrupt.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The training was stopped by a signal and can be continued; nothing is lost."""

    def __init__(self, step: int, total_steps: int, checkpoint: Path) -> None:
        self.step, self.total_steps, self.checkpoint = step, total_steps, checkpoint
        super().__init__(f"stopped after step {step} of {total_steps}; run the same command again to go on")


class StopNow(BaseException):
    """Leaves an evaluation; never seen outside this room."""


class StopSignals:
    """A context in which the two signals set ``requested``. In other threads than the main one it does nothing."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup: stays ignored
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal in here raises StopNow."""
        self._at_once = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._at_once:
            raise StopNow
