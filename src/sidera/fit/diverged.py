"""The end of a training whose numbers are no longer numbers."""

from __future__ import annotations

import math
from typing import Self

from sidera.core import InputError


class Diverged(InputError):
    """The loss or its gradient is not a finite number."""

    step = 0  # steps that were taken, the one that diverged included
    loss = norm = math.nan

    @classmethod
    def at(cls, step: int, loss: float, norm: float, where: str, lr: float) -> Self:
        """At optimizer step ``step`` (0-based); ``where`` the last good state is."""
        error = cls(
            f"training diverged at step {step}: loss {loss}, gradient norm {norm}; {where}",
            fix=f"lower [fit] lr (now {lr}), lengthen warmup_steps or lower clip_norm, and train again",
        )
        error.step, error.loss, error.norm = step + 1, loss, norm
        return error
