"""A whole recipe, typed: what ``sidera run`` is told, with every section checked before any work starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidera.artifacts import write_text
from sidera.bounds import read_json
from sidera.catalog.config import CatalogConfig
from sidera.config import MAX_RECIPE_BYTES, load_recipe, parse_section, written
from sidera.core import ArtifactError, InputError
from sidera.data.config import DataConfig
from sidera.engine.expert import ExpertConfig
from sidera.engine.run_folder import RUN_RECIPE
from sidera.eval.config import EvalConfig
from sidera.fit.config import FitConfig
from sidera.models import MODELS, RANKING, parse_model, reads_codes, role_of, takes_expert, ways_of
from sidera.recipes import find_recipe


@dataclass(frozen=True)
class Recipe:
    """The sections of a recipe; ``model_section`` keeps [model] as written, ``model_config`` is its typed form."""

    data: DataConfig
    catalog: CatalogConfig
    model_name: str
    model_config: Any
    fit: FitConfig
    expert: ExpertConfig
    eval: EvalConfig

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """From a TOML file, or a name of ``sidera recipes``, with ``section.key=value`` overrides."""
        return cls.parse(load_recipe(find_recipe(path), overrides))

    @classmethod
    def parse(cls, sections: Mapping[str, Mapping[str, Any]]) -> Recipe:
        name, model_config = parse_model(sections["model"])
        catalog = parse_section(CatalogConfig, sections["catalog"], "[catalog]")
        if reads_codes(name) and not catalog.makes_codes:
            raise InputError(
                f"[catalog.quantizer] name = {catalog.quantizer_name!r}, but [model] name = {name!r} reads codes",
                fix="--set catalog.quantizer.name=auto",
            )
        measured = parse_section(EvalConfig, sections["eval"], "[eval]")
        if measured.search != "auto" and measured.search not in ways_of(name):
            raise InputError(
                f"[eval] search = {measured.search!r}, which [model] name = {name!r} cannot be",
                allowed=", ".join(("auto", *ways_of(name))),
            )
        expert = parse_section(ExpertConfig, sections.get("expert", {}), "[expert]")
        if expert.enabled and not takes_expert(name):
            raise InputError(
                f"[expert] enabled = true, but [model] name = {name!r} searches no tree item by item",
                allowed=", ".join(known for known in MODELS if takes_expert(known)),
                fix="--set expert.enabled=false",
            )
        fit = parse_section(FitConfig, {**_watched(name), **sections["fit"]}, "[fit]")
        if fit.teachers and not getattr(MODELS[name], "learns_from_teachers", False):
            raise InputError(
                f"[fit] teachers = {fit.teachers}, but [model] name = {name!r} learns from none",
                allowed=", ".join(known for known, kind in MODELS.items() if hasattr(kind, "learns_from_teachers")),
                fix="--set fit.teachers=0",
            )
        return cls(
            data=parse_section(DataConfig, sections["data"], "[data]"),
            catalog=catalog,
            model_name=name,
            model_config=model_config,
            fit=fit,
            expert=expert,
            eval=measured,
        )

    @property
    def model_section(self) -> dict[str, Any]:
        return {"name": self.model_name, **written(self.model_config)}

    def sections(self) -> dict[str, dict[str, Any]]:
        """Every key with its value, defaults included."""
        return {
            "data": asdict(self.data),
            "catalog": asdict(self.catalog),
            "model": self.model_section,
            "fit": asdict(self.fit),
            "expert": asdict(self.expert),
            "eval": asdict(self.eval),
        }

    def save(self, out: Path) -> None:
        """Leave the recipe in the run folder, so that the later verbs need only the folder."""
        write_text(out / RUN_RECIPE, json.dumps(self.sections(), indent=2) + "\n")

    @classmethod
    def of_run(cls, run: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe that a run folder was made with."""
        path = Path(run) / RUN_RECIPE
        try:
            sections = read_json(path, MAX_RECIPE_BYTES)
        except FileNotFoundError:
            raise ArtifactError(f"{str(run)!r} is no run folder", fix="give a folder that `sidera run` wrote") from None
        except (OSError, ValueError):
            sections = None
        if not isinstance(sections, dict):
            raise ArtifactError(f"{path} is damaged", fix="run the recipe again")
        return cls.parse(load_recipe(sections, overrides))


def _watched(model: str) -> dict[str, Any]:
    """The figure that chooses the best weights where the recipe names none: rankers write no list to measure."""
    return {"monitor": "valid_loss"} if role_of(model) in RANKING else {}
