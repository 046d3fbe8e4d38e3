"""Choosing the k best with ties broken by position, which ``torch.topk`` does not promise.

``topk`` finds the k-th value; everything above it is taken, and of what equals it the leftmost. The answer is the same
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
    num_rows, num_scores = scores.shape
    top = scores.topk(min(k + 1, num_scores), dim=1).values  # (B, k+1)
    threshold = top[:, :k].amin(dim=1, keepdim=True)  # (B, 1); NaN if any is NaN, and topk puts NaN first
    if threshold.isnan().any():
        raise FloatingPointError("scores hold NaN: the model's weights or inputs are broken")
    if k < num_scores and bool((top[:, k:] == threshold).any()):  # more equal scores than places left
        keep_mask = _with_leftmost_ties(scores, threshold, k)
    else:
        keep_mask = scores >= threshold  # (B, M)
    return keep_mask.nonzero()[:, 1].view(num_rows, k)  # row by row


def _with_leftmost_ties(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """(B, M) mask of k scores a row: all above the threshold (B, 1), and the leftmost of those that equal it.

    Many equal scores, such as the zeros of sparse similarities, have their leftmost near the start: only as many
    columns are counted as the row that needs most of them has to see.
    """
    keep_mask = scores > threshold
    free = k - keep_mask.sum(dim=1, keepdim=True)  # (B, 1)
    width = min(scores.shape[1], TIE_COLUMNS)
    while True:
        tied_mask = scores[:, :width] == threshold
        rank = tied_mask.cumsum(dim=1, dtype=torch.int32)
        if width == scores.shape[1] or bool((rank[:, -1:] >= free).all()):
            break
        width = min(scores.shape[1], 8 * width)
    keep_mask[:, :width] |= tied_mask & (rank <= free)
    return keep_mask


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
