"""Validation as a watch of the training: one figure chooses the best weights, and patience ends the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sidera.core import InputError
from sidera.fit.config import FitConfig
from sidera.fit.protocols import Look

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class Monitor:
    """``evaluate`` gives the figures; ``config.monitor`` names the one that decides."""

    at_start = False

    def __init__(self, evaluate: Evaluate, config: FitConfig) -> None:
        self.evaluate, self.config = evaluate, config
        self.best: float | None = None
        self.num_worse = 0  # looks after min_steps since the best one

    def __call__(self, model: nn.Module, step: int, means: Mapping[str, float]) -> Look:
        config = self.config
        figures = {name: float(value) for name, value in self.evaluate(model).items()}
        if config.monitor not in figures:
            raise InputError(f"[fit] monitor = {config.monitor!r} is not evaluated", allowed=", ".join(sorted(figures)))
        value = figures[config.monitor]
        if not math.isfinite(value):
            raise InputError(f"validation {config.monitor} = {value} at step {step}", fix="lower [fit] lr")
        sign = -1.0 if config.lower_is_better else 1.0
        better = self.best is None or sign * value > sign * self.best
        self.best = value if better else self.best
        self.num_worse = 0 if better or step < config.min_steps else self.num_worse + 1
        impatient = bool(config.patience) and self.num_worse >= config.patience
        return Look(figures, better, "patience" if impatient else "", cools_down=impatient)

    def state(self) -> Mapping[str, Any]:
        return {"best": self.best, "num_worse": self.num_worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best, self.num_worse = state["best"], state["num_worse"]
