"""The refit: validation has chosen steps and settings; now its events are learned too, as production does.

A user's newest event before the question says most about the answer, and a model that was fitted without it has never
seen where it leads. The chosen weights go on for a short training on training *and* validation events, with a learning
rate that falls to its end. Its length is a share of the steps behind the chosen weights, so nothing is chosen by it.
Test events are never among them (``data.split.fitted_split`` checks). The validation rows are no questions any more.
The catalogue stays as it was: its clusters and behaviour vectors know the training part alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sidera.core import InputError
from sidera.fit.config import FitConfig

REFIT = "refit"  # folder of its checkpoint
SHARE = 0.5  # steps of the refit / steps behind the chosen weights


def first_config(config: FitConfig, spent_seconds: float) -> FitConfig:
    """The training that chooses: without a refit, which has its place in what the catalogue left of the budget."""
    if config.max_minutes is None:
        return replace(config, refit=False)
    spent = spent_seconds / 60
    return replace(config, refit=False, max_minutes=spent + (config.max_minutes - spent) / (1 + SHARE))


def refit_config(config: FitConfig, spent_seconds: float, training: dict[str, Any]) -> FitConfig:
    """The short training behind the one that ``training`` records."""
    steps, minutes = max(1, round(SHARE * training["weights_steps"])), None
    if config.max_minutes is not None:
        minutes = (config.max_minutes - spent_seconds / 60) * SHARE / (1 + SHARE)
    return replace(
        config, refit=False, teachers=0, epochs=steps, max_steps=steps, min_steps=0, schedule="linear",
        warmup_steps=min(config.warmup_steps, steps // 10), patience=0, max_minutes=minutes,
    )  # fmt: skip


def check_choice(which: str, fit: str) -> None:
    """InputError where validation rows are asked of a model that has learned them."""
    if which == "valid" and fit != "train":
        raise InputError(
            f"the model was fitted on {fit}: it knows the answers of the validation rows",
            allowed="test rows",
            fix="train with --set fit.refit=false to look at validation rows",
        )
