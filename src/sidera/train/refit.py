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
SHARE = 0.25  # steps of the refit / steps behind the chosen weights
LR_RATIO = 0.5  # its first learning rate / the training's


def first_config(config: FitConfig) -> FitConfig:
    """The training that chooses: the same without a refit, which has its place inside the budget."""
    minutes = None if config.max_minutes is None else config.max_minutes / (1 + SHARE)
    return replace(config, refit=False, max_minutes=minutes)


def refit_config(config: FitConfig, training: dict[str, Any]) -> FitConfig:
    """The short training behind the one that ``training`` records."""
    steps = max(1, round(SHARE * training["weights_steps"]))
    minutes = None if config.max_minutes is None else config.max_minutes * SHARE / (1 + SHARE)
    return replace(
        config, refit=False, epochs=steps, max_steps=steps, min_steps=0, lr=LR_RATIO * config.lr, schedule="linear",
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
