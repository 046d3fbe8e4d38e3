"""Gates: how far a run may go before it is stopped. No gate looks at the reward: the hacked policy has the best one.

A figure is compared with what it was before the first step. ``least`` are shares of that which must remain; a recall
may besides fall by twice its standard error, because few held-out likes make a coarse figure. ``most`` are limits of
what the steps since the last look reported: ratios and KL to the snapshot, and the share of groups that taught nothing.
The gradient's norm is compared with that of the first steps.

What a healthy run needs and what a broken one does (small worlds): docs/understand/alignment.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

LEAST = {
    "legality_sample": 0.85,
    "legality_beam": 0.85,
    "entropy": 0.5,
    "coverage": 0.7,
    "recall@50_long_view": 0.8,
    "recall@50_like": 0.8,
    "recall@50_next": 0.8,
}
MOST = {"ratio_q99": 20.0, "kl": 1.0, "zero_advantage": 0.99}
GRADIENT_GROWTH = 10.0


@dataclass(frozen=True)
class Gates:
    """Limits by figure; a figure that a run does not have is not looked at. ``Gates.open()`` stops nothing."""

    least: Mapping[str, float] = field(default_factory=lambda: dict(LEAST))  # share of the start's figure
    most: Mapping[str, float] = field(default_factory=lambda: dict(MOST))  # of the mean since the last look
    gradient_growth: float = GRADIENT_GROWTH  # times the norm of the first look's steps

    @classmethod
    def open(cls) -> Gates:
        return cls({}, {}, math.inf)

    def broken(self, start: Mapping[str, float], now: Mapping[str, float], first: Mapping[str, float]) -> str:
        """One line saying which gate was left, "" if none.

        ``start``: the probe before the first step; ``now``: probe and step means of this look; ``first``: step means
        of the first look.
        """
        for name, share in self.least.items():
            if name in start and name in now:
                floor = share * start[name] - _slack(name, start)
                if not now[name] >= floor:  # NaN is a break too
                    return f"{name} fell from {start[name]:.3g} to {now[name]:.3g}, below {floor:.3g}"
        for name, limit in self.most.items():
            if name in now and not now[name] <= limit:
                return f"{name} is {now[name]:.3g}, above {limit:.3g}"
        if "grad_norm" in now and "grad_norm" in first:
            limit = self.gradient_growth * first["grad_norm"]
            if not now["grad_norm"] <= limit:
                return f"grad_norm grew from {first['grad_norm']:.3g} to {now['grad_norm']:.3g}, above {limit:.3g}"
        return ""


def _slack(name: str, start: Mapping[str, float]) -> float:
    """Twice the standard error of a recall over the probe's rows."""
    if not name.startswith("recall@"):
        return 0.0
    rows = start.get("rows_" + name.split("_", 1)[1], 0.0)
    share = start[name]
    return 2 * math.sqrt(share * (1 - share) / rows) if rows else math.inf
