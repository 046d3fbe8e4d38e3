"""Targets ahead: training asks an event now and then for a later one than the next.

Items that are near each other in a history belong together whichever came first, and on a sparse log the next item
alone shows few of the pairs. One target an event is drawn, so a step costs what it did; answering knows nothing of it.
PinnerFormer (arXiv 2205.04507) asks for all actions of a window; here nearer ones are likelier.

Shape legend: T events of all histories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidera.ops.attention import Layout


def places_ahead(layout: Layout, offsets: Tensor, horizon: int, decay: float) -> Tensor:
    """(T,) for each event the place of the event whose target it is asked for: its own, or one of the ``horizon`` - 1
    behind it in its history, each ``decay`` times as likely as the one before. Too few behind it: its own."""
    ends = offsets[1:][layout.row_ids]  # (T,)
    chances = decay ** torch.arange(horizon, device=ends.device, dtype=torch.float32)
    ahead = torch.multinomial(chances, len(ends), replacement=True)  # (T,) 0: its own
    places = torch.arange(len(ends), device=ends.device)
    return torch.where(places + ahead < ends, places + ahead, places)
