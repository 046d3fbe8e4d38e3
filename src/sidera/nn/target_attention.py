"""What a history says about a candidate: exact matches by category, learned sums over time, and attention.

SIM (Qi et al., 2006.05639) searches a long history twice: a general unit picks events of the candidate's category, an
exact one attends to them. Here both run over the whole window that is read, and keep the *counts*: how many of the
newest exposures had the candidate's topic or creator, clicked or not, and how long ago. Softmax attention divides
counts away, and with them satiation: a user who saw five cooking videos in a row looks like one who saw a single one.

An event's weight under *kernel* k is exp(place_k(its place) + age_k(its age)), learned, started as decays over
``DECAYS`` events; time decides how much of it a night undoes.

Shape legend: B histories · S events, padded · C candidates · D width · K kernels · Y signals of an event (1, labels)
· H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sidera.ops.masks import added

AGE_BUCKETS, PLACE_BUCKETS = 64, 24  # half octaves of seconds and of events
DECAYS = (3.0, 8.0, 24.0, 96.0)  # events until a kernel has fallen to 1/e


def half_octaves(values: Tensor, limit: int) -> Tensor:
    """floor(2 log2(1 + x)), below ``limit``."""
    return (2 * (values.float() + 1).log2()).floor().long().clamp(0, limit - 1)


def squashed(values: Tensor) -> Tensor:
    """Sums of any size -> numbers that a layer can take: x near 0, sign(x) log(2 |x|) far from it."""
    return torch.asinh(values)


class Kernels(nn.Module):
    """(B, S) places and ages -> (B, S, K) weights, 0 where there is no event."""

    def __init__(self, num_kernels: int) -> None:
        super().__init__()
        self.place, self.age = nn.Embedding(PLACE_BUCKETS, num_kernels), nn.Embedding(AGE_BUCKETS, num_kernels)
        events = 2 ** (torch.arange(PLACE_BUCKETS) / 2) - 1  # where each bucket begins
        decays = torch.tensor([DECAYS[number % len(DECAYS)] for number in range(num_kernels)])
        with torch.no_grad():
            self.place.weight.copy_((-events[:, None] / decays).clamp(min=-6))
            self.age.weight.zero_()

    def forward(self, places: Tensor, ages: Tensor, mask: Tensor) -> Tensor:
        logits = self.place(half_octaves(places, PLACE_BUCKETS)) + self.age(ages)
        return logits.clamp(max=3).exp() * mask[..., None]


def weighted_signals(weights: Tensor, signals: Tensor) -> Tensor:
    """(B, S, K) kernels and (B, S, Y) signals -> (B, S, K*Y); the first of each Y is the weight itself."""
    return (weights[..., None] * signals[:, :, None]).flatten(2)


def match_sums(candidates: Tensor, events: Tensor, weighted: Tensor) -> Tensor:
    """Sums over the events that share the candidate's category: (B, C), (B, S), (B, S, K*Y) -> (B, C, K*Y).

    Category 0 is unknown and matches nothing.
    """
    match = (candidates[:, :, None] == events[:, None]) & (candidates[:, :, None] > 0)
    return match.to(weighted.dtype) @ weighted


def counts_and_rates(sums: Tensor, num_signals: int) -> Tensor:
    """(B, C, K*Y) sums -> (B, C, K*Y): the counts, squashed, and of the other signals their mean per count."""
    by_kernel = sums.unflatten(-1, (-1, num_signals))
    counts = by_kernel[..., :1]
    return torch.cat((squashed(counts), by_kernel[..., 1:] / (counts + 1)), dim=-1).flatten(-2)


class TargetAttention(nn.Module):
    """Softmax attention of candidates over events, with a learned pull by place and age and a place for "nothing"."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.place, self.age = nn.Embedding(PLACE_BUCKETS, num_heads), nn.Embedding(AGE_BUCKETS, num_heads)
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.age.weight)

    def keys(self, events: Tensor, places: Tensor, ages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What all candidates share: keys, values (B, H, S, D/H) and bias (B, H, S)."""
        bias = self.place(half_octaves(places, PLACE_BUCKETS)) + self.age(ages)  # (B, S, H)
        bias = (bias + added(mask, bias)[..., None]).transpose(1, 2)
        return self._heads(self.key(events)), self._heads(self.value(events)), bias

    def forward(self, candidates: Tensor, shared: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B, C, D) -> (B, C, D)"""
        keys, values, bias = shared
        query = self._heads(self.query(candidates))  # (B, H, C, D/H)
        logits = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias[:, :, None]
        nothing = logits.new_zeros(*logits.shape[:-1], 1)
        share = torch.cat((logits, nothing), dim=-1).softmax(dim=-1)[..., :-1]
        return (share @ values).transpose(1, 2).flatten(2)

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
