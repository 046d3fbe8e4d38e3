"""Training: :func:`fit` and its settings. Knows modules and batches, nothing of recommending. See docs/training.md."""

from sidera.fit.config import FitConfig
from sidera.fit.loop import BatchSource, Diverged, fit
from sidera.fit.seeding import seed_everything, step_generator
from sidera.fit.signals import Interrupted
from sidera.fit.state import FitResult

__all__ = [
    "BatchSource",
    "Diverged",
    "FitConfig",
    "FitResult",
    "Interrupted",
    "fit",
    "seed_everything",
    "step_generator",
]
