"""Matrix products on the CPU that do not depend on whose library is best at them.

torch sends float32 products to MKL, which on some processors of other makers runs at half of what oneDNN reaches on the
same core; bfloat16 products go to oneDNN already. :func:`product` asks oneDNN for both, where
:mod:`sidera.ops.processor` finds that it serves them here and is faster, and the input has enough rows to pay for the
call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidera.ops import processor

MIN_ROWS = 16  # below, the call costs more than it saves
PACKABLE = (torch.float32, torch.bfloat16, torch.float16)


def packed(weight: Tensor, num_rows: int) -> Tensor:
    """``weight`` (N, K) in the layout that oneDNN multiplies fastest by about ``num_rows`` rows; only for ``product``.

    Without it oneDNN lays the weight out at every call. Off the CPU, and where oneDNN packs no weights of this number
    format or is no faster with them: the weight itself.
    """
    if not weight.is_cpu or weight.dtype not in PACKABLE or not processor.pays(weight.dtype, is_packed=True):
        return weight
    return processor.pack(weight, num_rows)


def product(x: Tensor, weight: Tensor, relu: bool = False) -> Tensor:
    """x (..., K) times weight (N, K) transposed -> (..., N), with ReLU if asked.

    No gradient flows through it: call it without grad mode, or inside an autograd function.
    """
    f32_rows = x.shape[0] >= MIN_ROWS and x.dtype == torch.float32 and x.is_cpu
    if weight.is_mkldnn or (f32_rows and processor.pays(torch.float32, is_packed=False)):
        return processor.linear(x, weight, relu)
    return processor.plain_linear(x, weight, relu)
