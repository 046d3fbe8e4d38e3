"""What every router is given: the recommender that answers, and what the process knows of itself."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidera.engine.recommender import Recommender
from sidera.engine.scheduler import PRIORITIES, Overloaded, Place
from sidera.serve.asking import Asker
from sidera.serve.config import HttpConfig
from sidera.serve.errors import Refused
from sidera.serve.keys import KeyFile
from sidera.serve.metrics import Metrics
from sidera.serve.worker import Worker

if TYPE_CHECKING:
    from sidera.serve.tracing import Tracer

MAX_DEADLINE_MS = 600_000
WAY_BACK = 0.15  # of a deadline: kept for the way to the client
WRITERS = 32  # threads that wait for the disk: a store that gathers writes takes as many in one go


@dataclass
class Served:
    """One application's state. A router takes ``recommender.snapshot`` in the call, not when it is made: it may be
    swapped."""

    recommender: Recommender
    config: HttpConfig
    keys: KeyFile | None = None  # None: nobody needs one
    metrics: Metrics = field(default_factory=Metrics)
    stopping: bool = False  # SIGTERM came: readyz says so
    num_writing: int = 0  # event calls that wait for the disk
    tracer: Tracer | None = None  # makes spans of requests
    worker: Worker | None = None  # which of several processes this is

    def __post_init__(self) -> None:
        self.asker = Asker(self.recommender, self.config.scheduler)
        self.asker.times_steps = self.tracer is not None
        self.writers = ThreadPoolExecutor(WRITERS, "writer")

    def urgency(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[float, int]:
        """What ``X-Deadline-Ms`` and ``X-Priority`` say: seconds for the engine, place in PRIORITIES."""
        milliseconds, priority = self.config.scheduler.deadline_ms, 1
        for name, value in headers:
            if name == b"x-deadline-ms":
                if not value.isdigit() or not 1 <= (milliseconds := int(value[:9])) <= MAX_DEADLINE_MS:
                    shown = value[:40].decode("latin-1")
                    raise Refused(422, f"X-Deadline-Ms: {shown!r}; allowed: 1 to {MAX_DEADLINE_MS:,}")
            elif name == b"x-priority":
                if (text := value.decode("latin-1")) not in PRIORITIES:
                    raise Refused(422, f"X-Priority: {text[:40]!r}; allowed: {', '.join(PRIORITIES)}")
                priority = PRIORITIES.index(text)
        return (1 - WAY_BACK) * milliseconds / 1000, priority

    def let_in(self, deadline: float, priority: int) -> Place:
        """Where a request stands until its ticket comes; Refused when the engine cannot answer an ordinary one by
        ``deadline``."""
        scheduler, recommender = self.asker.scheduler, self.recommender
        rows = recommender.pipeline.width(1) if recommender.snapshot.generates else 1
        try:
            return scheduler.let_in(deadline, rows, priority)
        except Overloaded as error:
            scheduler.counts.refused += 1
            raise Refused(503, error.problem, error.retry_after) from None

    def reopen(self) -> None:
        """Begin again after :meth:`close`, as an application does that is started twice."""
        if self.stopping:
            self.stopping = False
            self.asker.reopen()
            self.writers = ThreadPoolExecutor(WRITERS, "writer")

    def close(self) -> None:
        """Everything that was taken is answered when this returns, within the grace time."""
        self.stopping = True
        self.asker.close(self.config.grace_seconds)
        self.writers.shutdown()
        if self.tracer is not None:
            self.tracer.close()
