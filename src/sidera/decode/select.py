"""Choosing the k best with ties broken by position, which ``torch.topk`` does not promise.

``topk`` finds the k-th value; everything above it is taken, and of what equals it the leftmost. The answer is the same
on every run, device and batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_positions(scores: Tensor, k: int) -> Tensor:
    """(B, M) -> (B, k) positions of the k highest scores, *ascending by position*; of equal scores the leftmost.

    k is at most M. A NaN raises: it would otherwise pass for the highest score.
    """
    num_rows = scores.shape[0]
    top = scores.topk(k, dim=1, sorted=False).values  # (B, k)
    threshold = top.amin(dim=1, keepdim=True)  # (B, 1); NaN if any is NaN, and topk puts NaN first
    if threshold.isnan().any():
        raise FloatingPointError("scores hold NaN: the model's weights or inputs are broken")
    keep_mask = scores >= threshold  # (B, M)
    positions = keep_mask.nonzero()  # (at least B k, 2), row by row
    if positions.shape[0] != num_rows * k:  # more equal scores at the threshold than places left
        above_mask, tied_mask = scores > threshold, scores == threshold
        free = k - above_mask.sum(dim=1, keepdim=True)  # (B, 1)
        positions = (above_mask | (tied_mask & (tied_mask.cumsum(dim=1) <= free))).nonzero()
    return positions[:, 1].view(num_rows, k)


def best_first(scores: Tensor, k: int) -> Tensor:
    """(B, M) -> (B, min(k, M)) positions of the highest scores, best first; of equal scores the leftmost."""
    k = min(k, scores.shape[1])
    positions = best_positions(scores, k)
    order = scores.gather(1, positions).sort(dim=1, descending=True, stable=True).indices
    return positions.gather(1, order)


def excluded_mask(rows: Tensor, ids: Tensor, num_ids: int, exclude: tuple[Tensor, Tensor]) -> Tensor:
    """True where the pair (row, id) is excluded. ``exclude`` is jagged: ids (E,) and offsets (B+1,)."""
    excluded_ids, offsets = exclude
    if excluded_ids.numel() == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    lengths = offsets.diff()
    excluded_rows = torch.repeat_interleave(
        torch.arange(lengths.numel(), device=lengths.device), lengths, output_size=excluded_ids.numel()
    )
    keys = (excluded_rows * num_ids + excluded_ids).sort().values  # (E,)
    wanted = rows * num_ids + ids
    places = torch.searchsorted(keys, wanted).clamp_(max=keys.numel() - 1)
    return keys[places] == wanted
