"""sidera: generative recommendation, from behaviour logs to a served list of items.

``sidera.load("runs/tiger").recommend(histories, k=10)`` answers; the shell verbs are in :mod:`sidera.cli`.
The rooms and what may know what: docs/architecture.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidera.engine.recommender import Recommender

__version__ = "0.1.0"


def load(path: str, device: str = "cpu") -> Recommender:
    """Open a trained recommender: the folder that ``sidera run`` or ``sidera train`` wrote."""
    from sidera.engine.recommender import Recommender  # torch is heavy; `import sidera` stays cheap

    return Recommender.load(path, device=device)
