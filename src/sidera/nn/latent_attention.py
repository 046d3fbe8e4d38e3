"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads out of one narrow vector.

An event is kept as a latent c = W x of a few numbers and one key of its place, which all heads share. Keys and values
are products of c, so whoever answers event by event needs to keep no more than that: a score is q (K c) = (q K) c, and
the sum over values V (sum of weights times c). :meth:`LatentAttention.from_latents` is that form, and the reference.

The place is turned into a part of queries and keys of its own (decoupled rotary embedding), since a rotation between K
and c could not be moved to the query.

Shape legend: T tokens · H heads · E dims of a head · C of the latent · R of the rotated part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sidera.nn.counters import causal_pairs
from sidera.ops.attention import Layout, attention

BASE = 10_000.0  # of the rotary frequencies


class LatentAttention(nn.Module):
    """(T, D) -> (T, D)"""

    def __init__(self, width: int, num_heads: int, latent_width: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.rotated = 2 * max(self.head_width // 4, 1)  # R, even
        self.query = nn.Linear(width, num_heads * (self.head_width + self.rotated))
        self.latent = nn.Linear(width, latent_width + self.rotated)
        self.norm = nn.RMSNorm(latent_width)
        self.key_value = nn.Linear(latent_width, 2 * width, bias=False)

    def parts(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, E + R), latents (T, C) and keys of places (T, R)."""
        query = self.query(x_TD).unflatten(-1, (self.num_heads, -1))
        latent, place = self.latent(x_TD).tensor_split((self.norm.normalized_shape[0],), dim=1)
        positions = layout.positions[:, None]
        turned = rotate(query[..., self.head_width :], positions)
        query = torch.cat((query[..., : self.head_width], turned.to(query.dtype)), dim=-1)
        return query, self.norm(latent), rotate(place, layout.positions).to(place.dtype)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        query, latent, place = self.parts(x_TD, layout)
        key, value = self.key_value(latent).unflatten(-1, (2, self.num_heads, -1)).unbind(1)  # (T, H, E)
        key = torch.cat((key, place[:, None].expand(-1, self.num_heads, -1).to(key.dtype)), dim=-1)
        value = nn.functional.pad(value, (0, self.rotated))  # one kernel takes keys and values of one width
        qkv = torch.stack((query.to(key.dtype), key, value), dim=1)
        return attention(None, qkv, layout, causal=True)[..., : self.head_width].flatten(1)

    def from_latents(self, query: Tensor, latents: Tensor, places: Tensor) -> Tensor:
        """What one event reads of a history kept as latents: (H, E + R), (t, C), (t, R) -> (D,)."""
        of_keys, of_values = self.key_value.weight.unflatten(0, (2, self.num_heads, -1))  # (H, E, C)
        asked = torch.einsum("he,hec->hc", query[:, : self.head_width], of_keys)
        scores = asked @ latents.T + query[:, self.head_width :] @ places.T  # (H, t)
        weights = (scores * query.shape[1] ** -0.5).softmax(1)
        return torch.einsum("hc,hec->he", weights @ latents, of_values).flatten()

    def flops(self, lengths: Tensor) -> float:
        """Of scores and sums over histories of these lengths (B,), without the projections."""
        return 2.0 * causal_pairs(lengths) * self.num_heads * (2 * self.head_width + self.rotated)


def rotate(values: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding: (..., R) numbers turned, in pairs, by angles of their position (...)."""
    half = values.shape[-1] // 2
    speeds = BASE ** (-torch.arange(half, device=values.device) / half)
    angles = positions[..., None] * speeds
    first, second = values.float().chunk(2, dim=-1)
    return torch.cat((first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()), -1)
