"""Where the evaluations of a run lie, and what one with other settings than the recipe's is called.

``evaluation`` is the official one: test rows, the recipe's own ``[eval]``. Every other one has a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidera.core import ArtifactError, InputError

FOLDER = "evaluation"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")


def evaluation_path(run: str | Path, name: str = "") -> Path:
    """``run/evaluation``, or ``run/evaluation-NAME``; InputError when the name cannot be part of a folder's."""
    if not name:
        return Path(run) / FOLDER
    if not NAME.fullmatch(name):
        raise InputError(
            f"the evaluation's name {name[:90]!r} cannot be a folder's",
            allowed="1 to 80 of letters, digits, . _ + -, a letter or digit first",
        )
    return Path(run) / f"{FOLDER}-{name}"


def evaluations_of(run: str | Path) -> list[str]:
    """Names of the evaluations in a run folder; "" is the official one."""
    folders = sorted(path.name for path in Path(run).glob(f"{FOLDER}*") if path.is_dir())
    return [name[len(FOLDER) + 1 :] for name in folders if name == FOLDER or name.startswith(f"{FOLDER}-")]


def existing_evaluation(run: str | Path, name: str) -> Path:
    """The path of one that is there; ArtifactError names those that are."""
    path = evaluation_path(run, name)
    if not path.is_dir() and name:
        known = ", ".join(each or "(the official one)" for each in evaluations_of(run)) or "none"
        raise ArtifactError(
            f"{str(run)!r} holds no evaluation {name!r}",
            allowed=known,
            fix=f"sidera evaluate {run} --data DATA --name {name}",
        )
    return path


def derived_name(own: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]) -> str:
    """A name for an evaluation whose settings ``other`` differ from the recipe's ``own`` ones: keys and values.

    "" when nothing differs.
    """
    parts = [
        f"{key}-{_plain(value)}" if section == "eval" else f"{section}.{key}-{_plain(value)}"
        for section in sorted(other)
        for key, value in other[section].items()
        if own.get(section, {}).get(key) != value
    ]
    return "+".join(parts)[:80].rstrip("+-._")


def _plain(value: Any) -> str:
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
