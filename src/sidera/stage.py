"""A stage of a recipe: an artifact that is made once for its inputs, and read again as long as they stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sidera.artifacts import is_current
from sidera.config import digest

Made = TypeVar("Made")


def stage(
    path: str | Path,
    kind: str,
    inputs: Any,
    make: Callable[[str], Made],
    load: Callable[[], Made],
    *,
    reused: Callable[[], object] = lambda: None,
) -> Made:
    """What ``load`` reads of the artifact at ``path``; ``make`` writes it first unless it is whole and of these inputs.

    ``inputs``: everything that decides the artifact (JSON values), or its digest. ``make`` takes the digest that it has
    to write and returns what ``load`` would. ``reused`` is called where nothing has to be made.
    """
    wanted = inputs if isinstance(inputs, str) else digest(inputs)
    if not is_current(path, kind, wanted):
        return make(wanted)
    reused()
    return load()
