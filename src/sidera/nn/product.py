"""Matrix products on the CPU that do not depend on whose library is best at them.

torch sends float32 products to MKL, which on processors of other makers runs at half of what oneDNN reaches on the same
core; bfloat16 products go to oneDNN already. :func:`product` asks oneDNN for both, where torch was built with it and
the input has enough rows to pay for the call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROWS = 16  # below, the call costs more than it saves
_ONEDNN = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


def packed(weight: Tensor, num_rows: int) -> Tensor:
    """``weight`` (N, K) in the layout that oneDNN multiplies fastest by about ``num_rows`` rows; only for ``product``.

    Without it oneDNN lays the weight out anew at every call. Off the CPU, or without oneDNN: the weight itself.
    """
    if _ONEDNN is None or not weight.is_cpu:
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), num_rows)


def product(x: Tensor, weight: Tensor, relu: bool = False) -> Tensor:
    """x (..., K) times weight (N, K) transposed -> (..., N), with ReLU if asked.

    No gradient flows through it: call it without grad mode, or inside an autograd function.
    """
    f32_rows = x.shape[0] >= MIN_ROWS and x.dtype == torch.float32 and x.is_cpu
    if _ONEDNN is not None and (weight.is_mkldnn or f32_rows):
        return _ONEDNN(x, weight, None, "relu" if relu else "none", [], "")
    out = F.linear(x, weight)
    return out.relu_() if relu else out
