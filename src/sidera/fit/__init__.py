"""Training: :func:`fit` and its settings. Knows modules and batches, nothing of recommending. See docs/use/training.md.

Called as a function, ``sidera.fit(data, "generator")``, this room is :func:`sidera.front.fit`, the whole way from data
to a trained recommender: the two share a name, and a package's attribute is its room once that is imported.
"""

import importlib
import sys
import types
from typing import Any

from sidera.fit.config import FitConfig
from sidera.fit.diverged import Diverged
from sidera.fit.loop import fit
from sidera.fit.protocols import BatchSource, Look, Objective, Resumable, Watch
from sidera.fit.seeding import seed_everything, step_generator
from sidera.fit.signals import Interrupted
from sidera.fit.state import FitResult

__all__ = [
    "BatchSource",
    "Diverged",
    "FitConfig",
    "FitResult",
    "Interrupted",
    "Look",
    "Objective",
    "Resumable",
    "Watch",
    "fit",
    "seed_everything",
    "step_generator",
]


class _Room(types.ModuleType):
    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return importlib.import_module("sidera.front").fit(*arguments, **settings)


sys.modules[__name__].__class__ = _Room
