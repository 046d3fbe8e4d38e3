"""Where a world comes from when people name it: ``easy``, ``hard``, a TOML file, or a log that ``simulate`` wrote.

A TOML file holds the section ``[world]`` with the numbers that differ, from ``easy`` or from ``base = "hard"``. A log's
folder names its world in the manifest, with its seed and days, so that a test is of the very world that was logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidera.artifacts import MANIFEST
from sidera.config import closest, override_value, parse_section, read_toml
from sidera.core import InputError
from sidera.loading import open_artifact
from sidera.sim.config import WORLDS, WorldConfig, world_config
from sidera.sim.world import World, user_keys

MAX_DAYS = 36_525  # a century


@dataclass(frozen=True)
class WorldSource:
    config: WorldConfig
    seed: int | None = None  # a log's; None where only numbers are named
    days: int | None = None  # a log's


def world_source(spec: str, overrides: Sequence[str] = ()) -> WorldSource:
    """The world that ``spec`` names, with ``world.key=value`` overrides; InputError names what cannot be."""
    changes = dict(_override(text) for text in overrides)
    path = Path(spec)
    if spec in WORLDS:
        return WorldSource(world_config(spec, changes))
    if path.is_dir():
        opened = open_artifact(path, "dataset")
        if "world" not in opened.manifest.recipe:
            raise InputError(f"{spec!r} is a data set, but no log of `sidera simulate`", fix="name the world instead")
        if changes:
            raise InputError("--set cannot change the world of a log that is written", fix="simulate another log")
        with opened.believed():
            config = parse_section(WorldConfig, opened.recipe("world", dict), f"{path / MANIFEST} world")
        return WorldSource(config, opened.recipe("seed", int), opened.recipe("days", int, low=1, high=MAX_DAYS))
    if path.suffix == ".toml" or path.is_file():
        return WorldSource(_from_file(path, changes))
    allowed = f"{', '.join(WORLDS)}, a TOML file with [world], or a folder that `sidera simulate` wrote"
    raise InputError(f"no world {spec!r}{closest(spec, WORLDS)}", allowed=allowed)


def logged_world(data: str | Path, keys: Sequence[str]) -> tuple[World, NDArray[np.int64], int]:
    """The world of a log, the numbers of the users ``keys`` in it (in order), and the days that the log lasted.

    InputError when the folder is no log of ``simulate``, or a key names none of its users.
    """
    source = world_source(str(data))
    if source.seed is None or source.days is None:
        raise InputError(f"{str(data)!r} is no log of `sidera simulate`: only a world's users can be served")
    ordered = sorted(keys)
    numbers = np.array([int(key[1:]) if key[1:].isdigit() else -1 for key in ordered], dtype=np.int64)
    for key, known in zip(ordered, user_keys(numbers), strict=True):
        if key != known:
            raise InputError(f"{key!r} is no user of a simulated log", allowed="keys such as u00000007")
    return World.build(source.config, source.seed), numbers, source.days


def _from_file(path: Path, changes: Mapping[str, Any]) -> WorldConfig:
    if not path.is_file():
        raise InputError(f"no world file at {str(path)!r}", fix="check the path")
    written = read_toml(path)
    for name in written:
        if name not in ("base", "world"):
            raise InputError(f"{path}: unknown key {name!r}{closest(name, ('base', 'world'))}", allowed="base, [world]")
    section = written.get("world", {})
    if not isinstance(section, Mapping):
        raise InputError(f"{path}: 'world' must be a section", fix="write it as [world] with keys below")
    base = written.get("base", "easy")
    if not isinstance(base, str):
        raise InputError(f"{path}: base = {base!r}", allowed=", ".join(WORLDS))
    return world_config(base, {**section, **changes})


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name) or section != "world":
        raise InputError(f"--set {text!r} is not an override", allowed="world.KEY=VALUE")
    return name, override_value(value.strip())
