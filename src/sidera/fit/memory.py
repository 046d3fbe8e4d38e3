"""Does a training fit into this machine's memory? Asked before the optimizer takes its share."""

from __future__ import annotations

from torch import nn

from sidera.bounds import gib, total_memory
from sidera.core import InputError

COPIES = 4  # the weights, their gradients, and AdamW's two running means


def check_fits(model: nn.Module, device: str) -> None:
    """InputError with figures when training ``model`` on the CPU takes more memory than there is."""
    most = total_memory()
    weights = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    if most is None or not device.startswith("cpu") or COPIES * weights <= most:
        return
    raise InputError(
        f"the weights take {gib(weights)}, training them {gib(COPIES * weights)} or more",
        allowed=f"{gib(most)}, this machine's memory",
        fix="make the model smaller (--set model.width=...)",
    )
