"""What every router is given: the recommender that answers, and what the process knows of itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sidera.engine.recommender import Recommender


@dataclass(frozen=True)
class Served:
    """One application's state. A router takes ``recommender.snapshot`` in the call, not when it is made: it may be
    swapped."""

    recommender: Recommender
    started: float = field(default_factory=time.time)
