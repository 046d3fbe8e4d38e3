"""The best items by score: for models that score the whole catalogue, and for vectors searched in chunks.

Equal scores go to the lower item id, on every run and for every batch size. Results that do not exist (k above the
catalogue, everything excluded) have id -1 and score -inf and stand at the end.

Shape legend: B histories · N items · Q vectors of a user · D dims.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sidera.core import InputError
from sidera.decode.eligible import NEG_INF, Jagged
from sidera.decode.select import best_first


@torch.inference_mode()
def top_items(
    scores: Tensor, k: int, *, exclude: Jagged | None = None, alive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(B, N) scores -> ids (B, k) and scores (B, k), best first.

    ``exclude`` holds jagged item ids per history; ``alive`` (N,) bool. A score of -inf means "not this item".
    """
    if k < 1:
        raise InputError(f"k is {k}", allowed="1 or more")
    scores = _masked(scores, 0, exclude, alive)
    positions = best_first(scores, k)  # (B, min(k, N))
    return padded_results(positions, scores.gather(1, positions), k)


@torch.inference_mode()
def target_ties(
    scores: Tensor, target_ids: Tensor, *, exclude: Jagged | None = None, alive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(B, N) scores, targets (B,) -> place of the first item that scores as the target does, from 1 (B,), and how many
    items do (B,); both 0 where the target cannot be answered. What :func:`top_items` leaves out does not count.
    """
    scores = _masked(scores, 0, exclude, alive)
    own = scores.gather(1, target_ids.to(scores.device)[:, None])  # (B, 1)
    there = (own != NEG_INF).squeeze(1)
    return (_count(scores > own) + 1) * there, _count(scores == own) * there


def _count(mask: Tensor) -> Tensor:
    """(B, N) -> (B,) how many are true. On the CPU numpy counts bytes, forty times as fast as torch sums them."""
    if mask.device.type == "cpu":
        return torch.tensor([np.count_nonzero(row) for row in mask.numpy()], dtype=torch.int64)
    return mask.sum(1)


@torch.inference_mode()
def dense_search(
    user_vectors: Tensor,
    item_vectors: Tensor,
    k: int,
    *,
    exclude: Jagged | None = None,
    alive: Tensor | None = None,
    chunk: int = 1 << 16,
) -> tuple[Tensor, Tensor]:
    """Items with the largest dot product: users (B, Q, D), items (N, D) -> ids (B, k), scores (B, k).

    A user with several vectors scores an item by the best of them. Never holds more than B Q ``chunk`` scores.
    """
    if k < 1:
        raise InputError(f"k is {k}", allowed="1 or more")
    num_users, device = user_vectors.shape[0], user_vectors.device
    best_scores = torch.empty(num_users, 0, device=device)
    best_ids = torch.empty(num_users, 0, dtype=torch.int64, device=device)
    for start in range(0, item_vectors.shape[0], chunk):
        scores = (user_vectors @ item_vectors[start : start + chunk].T).amax(dim=1).float()  # (B, chunk)
        scores = _masked(scores, start, exclude, None if alive is None else alive[start : start + chunk])
        positions = best_first(scores, k)
        # What is kept from earlier chunks has lower ids and stands left: ties still go to the lower id.
        best_scores = torch.cat([best_scores, scores.gather(1, positions)], dim=1)
        best_ids = torch.cat([best_ids, positions + start], dim=1)
        merged = best_first(best_scores, k)
        best_scores, best_ids = best_scores.gather(1, merged), best_ids.gather(1, merged)
    return padded_results(best_ids, best_scores, k)


def _masked(scores: Tensor, first_id: int, exclude: Jagged | None, alive: Tensor | None) -> Tensor:
    """``scores`` of the items from ``first_id`` on, float32, -inf where excluded or not alive. A copy if changed."""
    num_rows, num_ids = scores.shape
    scores = scores.float()
    if alive is not None:
        scores = scores.masked_fill(~alive, NEG_INF)
    if exclude is not None and exclude[0].numel():
        ids, offsets = (part.to(scores.device) for part in exclude)
        if offsets.numel() != num_rows + 1:
            raise InputError(f"exclude names {offsets.numel() - 1} histories", allowed=str(num_rows))
        rows = torch.arange(num_rows, device=ids.device).repeat_interleave(offsets.diff(), output_size=ids.numel())
        here = (ids >= first_id) & (ids < first_id + num_ids)
        scores = scores.index_put((rows[here], ids[here] - first_id), scores.new_tensor(NEG_INF))
    return scores


def padded_results(ids: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, at most k) each -> (B, k): id -1 and score -inf behind the last, id -1 where the score is -inf."""
    missing = k - ids.shape[1]
    if missing > 0:
        ids = torch.nn.functional.pad(ids, (0, missing), value=-1)
        scores = torch.nn.functional.pad(scores, (0, missing), value=NEG_INF)
    return ids.masked_fill(scores == NEG_INF, -1), scores
