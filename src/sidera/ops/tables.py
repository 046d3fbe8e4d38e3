"""Any function of padded tables, applied to rows of different lengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sidera.ops.attention import Layout


def by_table(values: Tensor, layout: Layout, body: Callable[[Tensor], Tensor]) -> Tensor:
    """``body`` takes rows of like length (b, s, ...), padded at their ends, and gives (b, s, ...).

    values (T, ...) of rows that read themselves -> (T, ...). What ``body`` does at a place may not depend on what comes
    later, or padding would be read.
    """
    answers = [rows.put(body(rows.take(values))) for rows in layout.keys]
    if not answers:
        return body(values.new_zeros(1, 1, *values.shape[1:]))[0, :0]
    joined = torch.cat(answers)
    return joined if layout.restore is None else joined.index_select(0, layout.restore)
