"""Softmax over a target and a few other items, corrected for how likely each was to be drawn.

A softmax over all N items costs N scores a target. Over a sample it is unbiased when every negative's score is lowered
by the logarithm of how often it is expected in the sample (log Q correction; Bengio and Senecal 2008, Yi et al. 2019).
Uniform negatives all have the same expectation, M / N. Items of the same batch come as often as they are consumed
(:func:`log_shares`), and without the correction popular items are pushed down.

A negative that is the target itself does not count. Label smoothing spreads its share over the negatives that count.

Shape legend: T targets · N items · M negatives · D width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def log_shares(item_ids: np.ndarray, num_items: int) -> Tensor:
    """(N,) log of the share that each item has of the events (E,); one that never comes counts as if it came once."""
    counts = np.bincount(item_ids, minlength=num_items) + 1.0
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def log_chance(log_share: Tensor, num_draws: int) -> Tensor:
    """(n,) log of the chance that items of these shares (n,) are at least once among so many drawn ones."""
    return (-torch.expm1(num_draws * torch.log1p(-log_share.double().exp()))).log().to(log_share.dtype)


def sampled_softmax(
    states_TD: Tensor,
    vectors_ND: Tensor,
    target_ids: Tensor,
    num_negatives: int,
    *,
    temperature: float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """() sum over the targets (T,), against uniform negatives that all targets share.

    ``temperature``: scores are cosines divided by it; None: scores are dot products.
    """
    num_items = vectors_ND.shape[0]
    negative_ids = torch.randint(num_items, (num_negatives,), device=target_ids.device)  # (M,)
    targets, negatives = F.embedding(target_ids, vectors_ND), F.embedding(negative_ids, vectors_ND)
    if temperature is not None:
        states_TD = F.normalize(states_TD, dim=1) / temperature
        targets, negatives = F.normalize(targets, dim=1), F.normalize(negatives, dim=1)
    return uniform_softmax(states_TD, targets, negatives, target_ids, negative_ids, num_items, label_smoothing)


def own_softmax(
    states_TD: Tensor, vectors_ND: Tensor, target_ids: Tensor, num_negatives: int, temperature: float
) -> Tensor:
    """() sum over the targets (T,), each against uniform negatives that it draws for itself; scores are cosines
    divided by ``temperature``, not corrected.

    More different negatives a step than :func:`sampled_softmax`, and T times as many vectors to read.
    """
    negative_ids = torch.randint(len(vectors_ND), (len(target_ids), num_negatives), device=target_ids.device)  # (T, M)
    states_TD = F.normalize(states_TD, dim=1) / temperature
    targets, negatives = F.embedding(target_ids, vectors_ND), F.embedding(negative_ids, vectors_ND)
    positive = (states_TD * F.normalize(targets, dim=1)).sum(1)  # (T,)
    negative = (F.normalize(negatives, dim=2) @ states_TD[:, :, None])[..., 0]  # (T, M)
    return softmax_against(positive, negative, negative_ids == target_ids[:, None])


def uniform_softmax(
    states_TD: Tensor,
    targets_TD: Tensor,
    negatives_MD: Tensor,
    target_ids: Tensor,
    negative_ids: Tensor,
    num_items: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """() the same with the vectors of the targets (T,) and of uniform negatives (M,) at hand."""
    positive = (states_TD * targets_TD).sum(1)  # (T,)
    # each uniform negative stands for N/M items
    negative = states_TD @ negatives_MD.T + math.log(num_items / len(negative_ids))  # (T, M)
    return softmax_against(positive, negative, negative_ids == target_ids[:, None], label_smoothing)


def softmax_against(positive: Tensor, negative: Tensor, same_mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """() sum over the targets of the cross-entropy. positive (T,), negative (T, M) corrected scores; ``same_mask``
    (T, M): the negative is the target itself."""
    negative = negative.masked_fill(same_mask, float("-inf"))
    # written out because cross_entropy's smoothing would average over the -inf of accidental hits
    log_norm = torch.cat((positive[:, None], negative), dim=1).logsumexp(1)
    total = (log_norm - positive).sum()
    if label_smoothing:
        finite_mean = negative.masked_fill(negative.isinf(), 0.0).mean(1)
        total = (1 - label_smoothing) * total
        total = total + label_smoothing * (log_norm - finite_mean).sum()
    return total
