"""Choosing the k best with ties broken by position, which ``torch.topk`` does not promise.

``topk`` finds what lies above the k-th value; of what equals it the leftmost are taken. The answer is the same
on every run, device and batch size.

On the CPU ties are looked for only where there are some. That is a question to the data; a GPU would have to be waited
for, so there (``fixed``) places are counted instead, and a NaN is carried on to be found at the end of the search.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.decode.eligible import NEG_INF

TIE_COLUMNS = 1024  # in which the leftmost equal scores are looked for first


def best_positions(scores: Tensor, k: int, fixed: bool = False) -> Tensor:
    """(B, M) -> (B, k) positions of the k highest scores, *ascending by position*; of equal scores the leftmost.

    k is at most M. A NaN raises: it would otherwise pass for the highest score. ``fixed``: it does pass for that, and
    nothing is read back from the device.
    """
    if fixed:
        return _counted_positions(scores, k)
    num_scores = scores.shape[1]
    top, positions = scores.topk(min(k + 1, num_scores), dim=1)  # (B, k+1), best first
    threshold = top[:, k - 1 : k]  # (B, 1)
    check_numbers(top[:, 0])  # topk puts NaN first
    positions = positions[:, :k]
    tied_mask = top[:, k:] == threshold  # (B, 1) more equal scores than places left; (B, 0) where all are taken
    if tied_mask.any():
        free_mask = (top[:, :k] == threshold) & tied_mask  # (B, k) the last places of each row
        positions[free_mask] = _leftmost_ties(scores, threshold, free_mask.sum(dim=1, keepdim=True))
    return positions.sort(dim=1).values


def check_numbers(scores: Tensor) -> None:
    """FloatingPointError where a score is NaN."""
    if scores.isnan().any():
        raise FloatingPointError("scores hold NaN: the model's weights or inputs are broken")


def _counted_positions(scores: Tensor, k: int) -> Tensor:
    """:func:`best_positions` in operations whose shapes do not depend on the scores."""
    threshold = scores.topk(k, dim=1).values[:, -1:]  # (B, 1)
    above_mask, tied_mask = ~(scores <= threshold), scores == threshold  # a NaN is above everything
    free = k - above_mask.sum(dim=1, keepdim=True)
    chosen_mask = above_mask | (tied_mask & (tied_mask.cumsum(dim=1) <= free))
    places = (chosen_mask.cumsum(dim=1) - 1).masked_fill_(~chosen_mask, k).clamp_(max=k)  # k: not one of the best
    positions = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    best = torch.zeros(scores.shape[0], k + 1, dtype=torch.int64, device=scores.device)
    return best.scatter_(1, places, positions)[:, :k]


def _leftmost_ties(scores: Tensor, threshold: Tensor, count: Tensor) -> Tensor:
    """Positions of the leftmost ``count`` (B, 1) scores of each row that equal its threshold (B, 1), row after row.

    Many equal scores, such as the zeros of sparse similarities, have their leftmost near the start; few lie anywhere.
    So the first columns are looked through for all rows, and more of them for the rows that lack some.
    """
    (num_rows, num_scores), count = scores.shape, count[:, 0]
    ends = count.cumsum(0)
    found, begins = torch.empty(int(ends[-1]), dtype=torch.int64, device=scores.device), ends - count
    waiting, width = torch.arange(num_rows, device=scores.device), min(num_scores, TIE_COLUMNS)
    while True:
        some = scores[:, :width] if len(waiting) == num_rows else scores[:, :width][waiting]
        tied_mask = some == threshold[waiting]
        if len(waiting) == num_rows:  # there may be many
            tied_mask &= tied_mask.cumsum(dim=1, dtype=torch.int32) <= count[waiting, None]
        rows, columns = tied_mask.nonzero(as_tuple=True)  # (ties,)
        ties = torch.bincount(rows, minlength=len(waiting))  # (waiting,)
        rank = torch.arange(len(rows), device=rows.device) - (ties.cumsum(0) - ties)[rows]
        done = ties >= count[waiting]
        kept = done[rows] & (rank < count[waiting][rows])
        found[begins[waiting][rows[kept]] + rank[kept]] = columns[kept]
        if width == num_scores or bool(done.all()):
            return found
        waiting, width = waiting[~done], min(num_scores, 8 * width)


def best_first(scores: Tensor, k: int, fixed: bool = False) -> Tensor:
    """(B, M) -> (B, min(k, M)) positions of the highest scores, best first; of equal scores the leftmost."""
    k = min(k, scores.shape[1])
    positions = best_positions(scores, k, fixed)
    order = scores.gather(1, positions).sort(dim=1, descending=True, stable=True).indices
    return positions.gather(1, order)


def with_places(positions: Tensor, numbers: Tensor, wanted: Tensor, fixed: bool = False) -> Tensor:
    """Positions (B, W) in a table of ascending ``numbers`` (B, P), and those of ``wanted`` (B, C) numbers that are in
    it -> (B, W') ascending, each once; P behind the last of a row. ``fixed``: W' is W + C, or P.

    Behind its last number a row of the table is padded with 0.
    """
    size = numbers.shape[1]
    ascending = numbers.cummax(dim=1).values
    at = torch.searchsorted(ascending, wanted.contiguous()).clamp_(max=size - 1)
    at = at.masked_fill_(ascending.gather(1, at) != wanted, size)
    both = torch.cat((positions, at), dim=1).sort(dim=1).values
    both[:, 1:] = both[:, 1:].masked_fill(both[:, 1:] == both[:, :-1], size)
    number = min(both.shape[1], size) if fixed else int((both < size).sum(dim=1).max())
    return both.sort(dim=1).values[:, :number]


def gathered(scores: Tensor, positions: Tensor) -> Tensor:
    """The scores (B, P) at positions (B, W); -inf at position P."""
    return F.pad(scores, (0, 1), value=NEG_INF).gather(1, positions)
