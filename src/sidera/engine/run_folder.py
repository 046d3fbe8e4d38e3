"""What the engine reads and writes of a run folder: ``model/``, ``catalog/``, and the recipe that it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidera.bounds import read_json
from sidera.catalog.catalog import Catalog
from sidera.config import MAX_RECIPE_BYTES, MOST
from sidera.core import ArtifactError
from sidera.decode.ways import AUTO
from sidera.engine.snapshot import Snapshot
from sidera.loading import open_artifact
from sidera.models import saved

RUN_RECIPE = "recipe.json"  # the recipe that a run folder was made with


def load_snapshot(path: Path, device: str = "cpu", catalog: Catalog | None = None) -> Snapshot:
    """The model of a run folder over its catalogue, or over the one given. ArtifactError where something is missing."""
    if not path.is_dir():
        raise ArtifactError(f"no run folder at {str(path)!r}", fix="give a folder that `sidera run` wrote")
    catalog = catalog or Catalog.load(path / "catalog")
    opened = open_artifact(path / "model", "model")
    model, section, num_known = saved.saved_model(opened, catalog)
    snapshot = Snapshot.of(model, catalog, section, opened.manifest.digest, num_known, device)
    return replace(snapshot, search=search_of_run(path))


def save_model(
    snapshot: Snapshot, path: str | Path, digest: str, parents: Mapping[str, str], training: Mapping[str, Any]
) -> None:
    """Write the model artifact (weights in shards small enough to move about); the Catalog is its own artifact."""
    saved.save_model(
        snapshot.trained, path, snapshot.catalog, dict(snapshot.section), digest=digest, parents=dict(parents),
        num_known=snapshot.num_known, training=dict(training),
    )  # fmt: skip


def section_of_run(path: Path, name: str, why: str, fix: str) -> Mapping[str, Any]:
    """One section of the run's recipe. ArtifactError when there is no recipe, saying ``why`` it is needed and the
    ``fix``, or when it is damaged."""
    file = path / RUN_RECIPE
    try:
        section = read_json(file, MAX_RECIPE_BYTES)[name]
    except FileNotFoundError:
        raise ArtifactError(f"{path} has no {RUN_RECIPE}, which says {why}", fix=fix) from None
    except (OSError, ValueError, KeyError, TypeError):
        section = None
    if not isinstance(section, dict):
        raise ArtifactError(f"{file} is damaged: no [{name}]", fix="run the recipe again")
    return section


def search_of_run(path: Path) -> str:
    """How the run's evaluation searched; the model's usual way where no recipe says it."""
    try:
        search = read_json(path / RUN_RECIPE, MAX_RECIPE_BYTES)["eval"].get("search", AUTO)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return AUTO
    return search if isinstance(search, str) else AUTO


def beam_of_run(path: Path) -> int:
    """The beam that the run's evaluation used: what is measured is what is served. ArtifactError where none is said."""
    why, most = "how wide its beam was when it was measured", MOST["beam"]
    fix = f"put {RUN_RECIPE} of the run beside model/ and catalog/, or give beam to Recommender.load"
    beam = section_of_run(path, "eval", why, fix).get("beam")
    if type(beam) is not int or not 1 <= beam <= most:
        raise ArtifactError(
            f"{path / RUN_RECIPE} is damaged: no [eval] beam from 1 to {most:,}", fix="run the recipe again"
        )
    return beam
