"""Who may read whom, said once: a table of bools, True = may read, and what it adds to scores.

    scores + added(causal(8), scores)                       # every token reads those before it and itself
    causal(8, newest=3)                                     # and of these the three newest
    causal(4, 12)                                           # four queries go on behind eight keys
    added(token_mask, scores)[:, None, None]                # padding is read by nobody

Two masks are joined by ``&``. Rows of different lengths need none: a :class:`sidera.ops.attention.Layout` says which
keys a query's row has (segments, padding, and by ``asked_by`` another row's), and ``causal`` there is a flag.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = float("-inf")


def causal(
    queries: int, keys: int | None = None, newest: int | None = None, device: torch.device | None = None
) -> Tensor:
    """(q, k): a query reads the keys up to its own, or the ``newest`` so many of these. The last has the last key."""
    keys = queries if keys is None else keys
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    mask = behind >= 0
    return mask if newest is None else mask & (behind < newest)


def added(mask: Tensor, like: Tensor) -> Tensor:
    """0 where the mask is True and -inf elsewhere, in the number format of ``like``."""
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill_(~mask, NEVER)
