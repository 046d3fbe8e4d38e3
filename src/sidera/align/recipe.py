"""The sections [align] and [rewards] of a recipe: which policies are trained from the pretrained one, and for what.

    [align]
    steps = 300
    [align.arms.safe]            # an arm: what differs from [align]
    ntp = "safe"
    [align.arms.aggressive]
    ntp = "aggressive"
    [rewards]
    weights = {click = 0.5, like = 2.0}
    rules = [{rule = "diversity", field = "creator", weight = 0.05}]

Without ``arms`` there is one, named as its method. ``controls`` are trained beside them with the same steps, learning
rate and batches: a gain against less is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sidera.align.config import AlignConfig
from sidera.align.methods import METHODS, method_of
from sidera.align.rules import Rule, parse_rules
from sidera.config import check_value, closest, load_recipe, parse_section
from sidera.core import InputError
from sidera.models import parse_model, role_of
from sidera.recipes import find_recipe
from sidera.train.recipe import Recipe

CONTROLS = ("sft", "long_view_sft", "rsft")
PRETRAINED = "pretrained"  # the name of the policy that all arms start from


@dataclass(frozen=True)
class RewardsConfig:
    """Section [rewards]: the ranker that policies are rewarded by."""

    network: str = "pscore"  # a ranker's name, as in [model]
    weights: dict[str, float] = field(default_factory=dict)  # of the objectives in p; others as the P-Score's WEIGHTS
    outcomes: tuple[str, ...] = ()  # more objectives of the session: stays, returns
    epochs: int = 4  # at most, over the exposures of its users
    rules: tuple[dict[str, Any], ...] = ()  # business rules: align/rules.py
    seed: int = 0  # of the P-Score's weights and batches

    def __post_init__(self) -> None:
        check_value("[rewards]", "epochs", self.epochs, self.epochs >= 1, "a whole number >= 1")
        parse_rules(self.rules)
        name, _ = parse_model(self.model)
        check_value("[rewards]", "network", name, role_of(name) == "ranker", "a model that ranks single items")

    @property
    def model(self) -> dict[str, Any]:
        """The [model] section of the network that rewards, and of its judge."""
        given = {"weights": self.weights, "outcomes": self.outcomes}
        return {"name": self.network, **{key: value for key, value in given.items() if value}}

    @property
    def parsed_rules(self) -> tuple[Rule, ...]:
        return parse_rules(self.rules)


@dataclass(frozen=True)
class AlignRecipe:
    """Everything that ``sidera align`` is told."""

    base: Recipe  # of the pretrained policy
    arms: Mapping[str, AlignConfig]  # controls first
    controls: tuple[str, ...]  # names of the arms that are controls
    rewards: RewardsConfig

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> AlignRecipe:
        """From a TOML file, or a name of ``sidera recipes``, with ``section.key=value`` overrides."""
        return cls.parse(load_recipe(find_recipe(path), overrides))

    @classmethod
    def parse(cls, sections: Mapping[str, Mapping[str, Any]]) -> AlignRecipe:
        written = dict(sections["align"])
        if not written:
            raise InputError("the recipe has no section [align]", fix='add one, such as [align] method = "ecpo"')
        arms, controls = written.pop("arms", {}), written.pop("controls", list(CONTROLS))
        common = parse_section(AlignConfig, written, "[align]")
        found = {name: replace(common, method=name) for name in _controls(controls)}
        found |= {name: _arm(common, name, changes) for name, changes in _arms(common, arms, found).items()}
        rewards = parse_section(RewardsConfig, sections["rewards"], "[rewards]")
        return cls(Recipe.parse(sections), found, tuple(controls), rewards)

    @property
    def tuned(self) -> tuple[str, ...]:
        """The arms that are no controls, in the order written: the first is the one recommended."""
        return tuple(name for name in self.arms if name not in self.controls)

    def sections(self) -> dict[str, Any]:
        """Every key with its value, for the record."""
        arms = {name: asdict(config) for name, config in self.arms.items()}
        return {**self.base.sections(), "align": {"arms": arms}, "rewards": asdict(self.rewards)}


def _controls(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise InputError(f"[align] controls = {given!r}", allowed="a list of " + ", ".join(CONTROLS))
    for name in given:
        if name not in METHODS or METHODS[name].step is not None:
            raise InputError(f"[align] controls names {name!r}{closest(name, CONTROLS)}", allowed=", ".join(CONTROLS))
    return tuple(given)


def _arms(common: AlignConfig, arms: Any, controls: Mapping[str, AlignConfig]) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(arms, Mapping) or not all(isinstance(changes, Mapping) for changes in arms.values()):
        raise InputError(f"[align] arms = {arms!r}", fix="write each arm as [align.arms.NAME] with its keys below")
    for name in arms:
        if name in controls or name == PRETRAINED:
            raise InputError(f"[align.arms.{name}] has the name of a control", fix="choose another name")
        if not name.replace("-", "").replace("_", "").isalnum():  # it becomes a folder
            raise InputError(f"[align.arms.{name}]: no name", allowed="letters, digits, - and _")
    return arms or {common.method: {}}


def _arm(common: AlignConfig, name: str, changes: Mapping[str, Any]) -> AlignConfig:
    config = parse_section(AlignConfig, {**asdict(common), **changes}, f"[align.arms.{name}]")
    method_of(config.method)
    return config
