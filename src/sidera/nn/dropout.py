"""Dropout as a module; how it draws stands in :mod:`sidera.ops.dropout`."""

from __future__ import annotations

from torch import Tensor, nn

from sidera.core import InputError
from sidera.ops.dropout import dropout


class Dropout(nn.Module):
    """Drop-in for ``torch.nn.Dropout``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise InputError(f"dropout = {rate}", allowed="0 <= dropout < 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate, self.training)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
