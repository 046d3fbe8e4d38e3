"""sidera: generative recommendation, from behaviour logs to a served list of items.

    data = sidera.from_frame(events, user="uid", item="asin", time="ts")   # pandas, polars, pyarrow
    run = sidera.fit(data, "generator")                                    # a recipe by name: `sidera recipes`
    run.recommend(["user-7"], k=10).to_frame()

``sidera.load("runs/tiger").recommend(histories, k=10)`` answers from a trained run, ``sidera.Client("http://host:8000")``
asks a server; the shell verbs are in
:mod:`sidera.cli`. The rooms and what may know what: docs/understand/architecture.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidera.client import Client
    from sidera.engine.pretrained import from_pretrained, save_pretrained
    from sidera.engine.recommender import Recommender
    from sidera.engine.serving import ServeConfig
    from sidera.frame import from_frame
    from sidera.front import fit

__version__ = "0.1.0"
__all__ = [
    "Client", "ServeConfig", "__version__", "fit", "from_frame", "from_pretrained", "load", "save_pretrained",
]  # fmt: skip


def load(path: str, device: str = "cpu", serve: ServeConfig | None = None) -> Recommender:
    """Open a trained recommender: the folder that ``sidera run`` or ``sidera train`` wrote, its current version.

    ``serve`` opens beside it what ``sidera serve`` opens: a store, an exposure log, a reranker, a quota.
    """
    from sidera.engine.live import open_current  # torch is heavy; `import sidera` stays cheap

    return open_current(path, device=device, serve=serve)


def __getattr__(name: str) -> Any:
    """The other names are imported when they are first asked for, and torch with them."""
    if name == "from_frame":
        from sidera.frame import from_frame

        return from_frame
    if name == "Client":
        from sidera.client import Client

        return Client
    if name == "ServeConfig":
        from sidera.engine.serving import ServeConfig

        return ServeConfig
    if name in ("from_pretrained", "save_pretrained"):
        return getattr(importlib.import_module("sidera.engine.pretrained"), name)
    if name == "fit":
        return importlib.import_module("sidera.fit")  # the room of that name, which can be called: see there
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
