"""The cool-down: the last phase of a training, in which its learning rate falls to its end.

A training ends for one of three reasons: its steps are taken, its time is gone, or validation has not become better
for a while. Much of the quality comes from the steps at a low rate, so all three end with them. ``schedule = "wsd"``
(warm-up, stable, decay) plans a cool-down for the end of the steps or of the time; patience begins one under any
schedule that decays. Each goes on from the best weights so far: what came after them on a small log is overfitting.
Its length is a share of the steps before it, so that a short training has a short one. A CoolDown is plain numbers:
with the step they give the rate, and the checkpoint holds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sidera.fit.config import FitConfig

ENDLESS = ("constant", "inverse_sqrt")  # schedules whose rate has no end to fall to


@dataclass(frozen=True)
class CoolDown:
    """Where the last phase began, and why."""

    step: int  # optimizer steps before it
    steps: int  # its own
    weights_of: int  # optimizer steps behind the weights that it goes on from
    lr: float  # learning rate that it falls from
    seconds: float  # of max_minutes that were gone
    because: str  # why the training ends with it

    @property
    def end(self) -> int:
        return self.step + self.steps

    def rate(self, config: FitConfig, step: int, time_share: float) -> float:
        """The learning rate of step ``step`` (0-based); ``time_share``: share gone of the time from the start on."""
        floor = min(self.lr, config.min_lr_ratio * config.lr)
        progress = min(1.0, max((step + 1 - self.step) / self.steps, time_share))
        return floor + (self.lr - floor) * (1 - progress)


def stable_share(config: FitConfig) -> float:
    """Share of the steps, or of the time, after which "wsd" decays."""
    return 1 / (1 + config.cooldown)


def cool_down_steps(config: FitConfig, step: int, total_steps: int) -> int:
    """Length of a cool-down after ``step`` of at most ``total_steps``; 0: there is none."""
    if config.schedule in ENDLESS:
        return 0
    return min(math.ceil(config.cooldown * step), total_steps - step)
