"""Choosing the k best with ties broken by position, which ``torch.topk`` does not promise.

``topk`` finds what lies above the k-th value; of what equals it the leftmost are taken. The answer is the same
on every run, device and batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIE_COLUMNS = 1024  # in which the leftmost equal scores are looked for first


def best_positions(scores: Tensor, k: int) -> Tensor:
    """(B, M) -> (B, k) positions of the k highest scores, *ascending by position*; of equal scores the leftmost.

    k is at most M. A NaN raises: it would otherwise pass for the highest score.
    """
    num_scores = scores.shape[1]
    top, positions = scores.topk(min(k + 1, num_scores), dim=1)  # (B, k+1), best first
    threshold = top[:, k - 1 : k]  # (B, 1)
    if top.isnan().any():  # topk puts NaN first
        raise FloatingPointError("scores hold NaN: the model's weights or inputs are broken")
    positions = positions[:, :k]
    if k < num_scores and bool((top[:, k:] == threshold).any()):  # more equal scores than places left
        free_mask = top[:, :k] == threshold  # (B, k) the last places of each row
        positions[free_mask] = _leftmost_ties(scores, threshold, free_mask.sum(dim=1, keepdim=True))
    return positions.sort(dim=1).values


def _leftmost_ties(scores: Tensor, threshold: Tensor, count: Tensor) -> Tensor:
    """Positions of the leftmost ``count`` (B, 1) scores of each row that equal its threshold (B, 1), row after row.

    Many equal scores, such as the zeros of sparse similarities, have their leftmost near the start: only as many
    columns are counted as the row that needs most of them has to see.
    """
    width = min(scores.shape[1], TIE_COLUMNS)
    while True:
        tied_mask = scores[:, :width] == threshold
        rank = tied_mask.cumsum(dim=1, dtype=torch.int32)
        if width == scores.shape[1] or bool((rank[:, -1:] >= count).all()):
            return (tied_mask & (rank <= count)).nonzero()[:, 1]
        width = min(scores.shape[1], 8 * width)


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
