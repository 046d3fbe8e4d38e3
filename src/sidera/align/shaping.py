"""What logged feedback is worth, fair to short items: OneRec-V2's duration-aware shaping (2508.20900, 5.1).

Seconds watched favour long items. So an exposure's watch time is compared with the same user's earlier views of items
of like duration (buckets of log2 seconds): q is the share of them that it beats. In a batch the top quarter of q,
without negative feedback, is worth +1; an explicit dislike -1; the rest 0 and is dropped. Nothing is normalised.

Choices where the paper is silent: base 2; ties count half and the view itself counts as one (or in a bucket of
two views half of everything would be "the best ever"); a user with fewer than ``fewest`` earlier views in the bucket
says nothing (0).

Shape legend: T events of all histories · B requests · G targets of all requests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidera.core import Batch, InputError
from sidera.models.rankers.pscore import NEGATIVE_LABELS


def feedback_advantage(batch: Batch, *, share: float = 0.25, fewest: int = 3) -> Tensor:
    """(G,) +1, 0 or -1 for each target of a batch of ``RequestRows(targets="all")``."""
    if not 0 < share < 1:
        raise InputError(f"share = {share}", allowed="a share inside 0..1")
    quantiles = view_quantiles(batch, fewest)
    known = ~quantiles.isnan()
    negative = torch.zeros_like(known)
    for name in NEGATIVE_LABELS:
        if name in batch.target_feedback:
            negative |= batch.target_feedback[name] > 0
    result = torch.zeros_like(quantiles)
    if known.any():
        count = max(1, round(share * int(known.sum())))
        threshold = quantiles[known].topk(count).values[-1]
        result[known & (quantiles >= threshold)] = 1.0
    result[negative] = -1.0
    return result


def view_quantiles(batch: Batch, fewest: int = 3) -> Tensor:
    """(G,) share of the user's earlier views in the target's bucket of duration that were shorter; NaN: too few."""
    for where, columns in (("history", batch.feedback), ("targets", batch.target_feedback)):
        for name in ("watch_time", "duration"):
            if name not in columns:
                raise InputError(f"the batch's {where} has no {name!r}", fix="give a log with watch time and duration")
    assert batch.target_offsets is not None
    lengths, counts = batch.lengths, batch.target_offsets.diff()
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # (G,)
    longest = max(1, int(lengths.max()))
    places = torch.arange(longest, device=lengths.device)
    mask = places < lengths[:, None]  # (B, S)
    where_ = torch.where(mask, batch.offsets[:-1, None] + places, 0)
    watched = batch.feedback["watch_time"][where_]
    mask &= watched.isfinite() & batch.feedback["duration"][where_].isfinite()
    buckets = log2_buckets(batch.feedback["duration"])[where_]
    mine, bucket = batch.target_feedback["watch_time"], log2_buckets(batch.target_feedback["duration"])
    like = mask[rows] & (buckets[rows] == bucket[:, None])  # (G, S)
    shorter = (like & (watched[rows] < mine[:, None])).sum(1)
    equal = (like & (watched[rows] == mine[:, None])).sum(1)
    total = like.sum(1)
    quantiles = (shorter + 0.5 * (equal + 1)) / (total + 1)
    unknown = (total < fewest) | ~mine.isfinite() | ~batch.target_feedback["duration"].isfinite()
    return quantiles.masked_fill(unknown, float("nan"))


def log2_buckets(seconds: Tensor) -> Tensor:
    """floor(log2(d)), 0 for a second or less."""
    return seconds.nan_to_num(1.0).clamp(min=1.0).log2().floor().long()
