"""Exact log-probabilities of given items, by the steps that a search takes: one pass over the shared context.

An item that counts or a draft proposed was not written by the generator, so it has no score of its own. Here each given
semantic ID is written code by code, as a beam search would have written it: same ``step``, same normaliser, so an item
that a search found scores here as it did there. Prefixes that several items of a history share are one beam.

Shape legend: B histories · C given items of each · W distinct prefixes of a history · L levels · K codes of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidera.decode.beam import normalised
from sidera.decode.eligible import NEG_INF
from sidera.roles import Context, Generator


@torch.inference_mode()
def given_log_probs(generator: Generator, context: Context, sids: Tensor) -> Tensor:
    """sids (B, C, L) -> (B, C) float32; -inf for a place that holds -1, and for codes that the model cannot write."""
    absent_mask = (sids < 0).any(-1)  # (B, C)
    first = absent_mask.logical_not().int().argmax(1)  # an absent place writes what the first item writes: no new beam
    own = torch.arange(sids.shape[1], device=sids.device).expand(sids.shape[:2])
    codes = sids.gather(1, torch.where(absent_mask, first[:, None], own)[..., None].expand_as(sids)).clamp(min=0)
    cache = generator.new_cache(context, sids.shape[1])
    logits, log_norm = normalised(generator.step(context, cache, 0, None, None))
    scores = logits[:, 0].float().gather(1, codes[..., 0]) - log_norm[:, :1]
    prefixes = torch.zeros_like(codes[..., 0])  # (B, C) which beam each item is on
    for level in range(1, sids.shape[2]):
        before = codes[..., level - 1]
        parents, chosen, prefixes = _distinct(prefixes, before, int(generator.level_sizes[level - 1]))
        logits, log_norm = normalised(generator.step(context, cache, level, chosen, parents))  # (B, W, K), (B, W)
        places = prefixes * logits.shape[-1] + codes[..., level]
        found = logits.reshape(len(logits), -1).gather(1, places).float()
        scores = scores + found - log_norm.gather(1, prefixes)
    return scores.masked_fill(absent_mask, NEG_INF)


def _distinct(prefixes: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Beams that grow from ``prefixes`` (B, C) by ``codes`` (B, C): the prefix and the code of each beam (B, W), and
    the beam of each item (B, C). A history with fewer than W repeats its last."""
    ordered, order = (prefixes * size + codes).sort(1)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    numbers = is_new.cumsum(1) - 1  # (B, C) beam of each place in order
    beams = ordered[:, -1:].repeat(1, int(numbers.max()) + 1).scatter(1, numbers, ordered)
    return beams // size, beams % size, torch.empty_like(numbers).scatter(1, order, numbers)
