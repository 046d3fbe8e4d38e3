"""Questions beside the scheduler's queue: one at a time, so that they never take the engine from recommendations."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from sidera.serve.errors import Refused

PATIENCE = 1.0  # seconds that a question waits for the one before it


class Aside:
    """A turn for one question of a router."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Refused (503) where others are before this question for longer than a second."""
        if not self._lock.acquire(timeout=PATIENCE):
            raise Refused(503, "other questions of this kind are being answered; fix: send it again", PATIENCE)
        try:
            yield
        finally:
            self._lock.release()
