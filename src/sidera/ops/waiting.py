"""Whether a number may be read back from a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def may_ask(tensor: Tensor) -> bool:
    """Whether a number of it can be read at once: a GPU would have to be waited for, and in an exported program no
    number decides what is done."""
    return tensor.is_cpu and not torch.compiler.is_exporting()
