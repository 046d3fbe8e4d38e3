"""What every router is given: the recommender that answers, and what the process knows of itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sidera.engine.recommender import Recommender
from sidera.serve.asking import Asker
from sidera.serve.config import HttpConfig
from sidera.serve.keys import KeyFile
from sidera.serve.metrics import Metrics

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

    def __post_init__(self) -> None:
        self.asker = Asker(self.recommender, self.config.scheduler)
        self.writers = ThreadPoolExecutor(WRITERS, "writer")

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
