"""sidera: generative recommendation, from behaviour logs to a served list of items.

    data = sidera.from_frame(events, user="uid", item="asin", time="ts")   # pandas, polars, pyarrow
    run = sidera.fit(data, "generator")                                    # a recipe by name: `sidera recipes`
    run.recommend(["user-7"], k=10).to_frame()

``sidera.load("runs/tiger").recommend(histories, k=10)`` answers from a trained run; the shell verbs are in
:mod:`sidera.cli`. The rooms and what may know what: docs/understand/architecture.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidera.engine.recommender import Recommender
    from sidera.frame import from_frame
    from sidera.front import fit

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "from_frame", "load"]


def load(path: str, device: str = "cpu") -> Recommender:
    """Open a trained recommender: the folder that ``sidera run`` or ``sidera train`` wrote."""
    from sidera.engine.recommender import Recommender  # torch is heavy; `import sidera` stays cheap

    return Recommender.load(path, device=device)


def __getattr__(name: str) -> Any:
    """``from_frame`` and ``fit`` are imported when they are first asked for, and torch with them."""
    if name == "from_frame":
        from sidera.frame import from_frame

        return from_frame
    if name == "fit":
        return importlib.import_module("sidera.fit")  # the room of that name, which can be called: see there
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
