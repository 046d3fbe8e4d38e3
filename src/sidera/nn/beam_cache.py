"""The one cache of beam search: keys and values stay where they were written; a beam holds the rows of its ancestors.

A step writes the keys and values of its position once and copies nothing that stands there already. Which beam a beam
continues is an index: for every earlier position the row in which its ancestor was written. One gather a layer fetches
them. Room for all positions is taken when a search begins.

Shape legend: B histories · W beams of a history · M beams of all, B * W · P positions · H heads · E dims of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidera.core import InputError

PIECE = 256  # beams whose attention is computed at once: their keys and values stay in the processor's cache


class BeamCache:
    """Self-attention keys and values of the beams of one search."""

    def __init__(
        self, num_histories: int, width: int, num_positions: int, num_layers: int, inner: int, like: Tensor
    ) -> None:
        """Room for ``width`` beams a history; ``inner`` is H * E, ``like`` has the number format and the device."""
        self.num_histories, self.capacity = num_histories, num_histories * width  # capacity: rows of a position
        size = (num_layers, num_positions * self.capacity, 2 * inner)
        self.rows = torch.empty(size, dtype=like.dtype, device=like.device)  # keys, then values
        self.ancestors = torch.empty(num_histories, 0, dtype=torch.int64, device=like.device)  # (M, P so far)

    @property
    def num_beams(self) -> int:
        """M, of the position that is being written."""
        return self.ancestors.shape[0]  # `len` would fix it in an exported program

    def begin_position(self, parents: Tensor | None) -> None:
        """The next position. parents (B, W): the beam of the last position that each beam continues; None: itself."""
        earlier = self.ancestors
        if parents is not None:
            before = earlier.shape[0] // self.num_histories  # beams of a history at the last position
            first = torch.arange(self.num_histories, device=parents.device)[:, None] * before  # (B, 1)
            earlier = earlier.index_select(0, (parents + first).view(-1))
        (num_beams, position), num_rows = earlier.shape, self.rows.shape[1]
        if num_beams > self.capacity or (position + 1) * self.capacity > num_rows:
            raise InputError(
                f"position {position + 1} of {num_beams} beams",
                allowed=f"{num_rows // max(1, self.capacity)} positions, {self.capacity} beams of all histories",
                fix="ask new_cache for as many beams as the search keeps",
            )
        own = torch.arange(num_beams, device=earlier.device) + position * self.capacity
        self.ancestors = torch.cat((earlier, own[:, None]), dim=1)

    def attend(
        self, layer: int, query: Tensor, key_value: Tensor, num_heads: int, bias: Tensor | None = None
    ) -> Tensor:
        """Write the keys and values (M, 2*H*E) of this position, let the queries (M, H*E) read all positions so far.

        Scores are not scaled: the query carries the scale. bias (P so far, H) is added to them -> (M, H*E).
        """
        written, (num_beams, num_positions) = self.rows[layer], self.ancestors.shape
        begin, inner = (num_positions - 1) * self.capacity, query.shape[1]
        written.narrow(0, begin, num_beams).copy_(key_value)
        if num_positions == 1:
            return key_value[:, inner:].contiguous()  # one key: its weight is 1
        size = num_beams if torch.compiler.is_exporting() else PIECE  # a program fuses what a piece keeps near
        parts = [
            _attend(some.to(written.dtype), written, rows, num_heads, bias)
            for some, rows in zip(query.split(size), self.ancestors.split(size), strict=True)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(query.dtype)


def _attend(query: Tensor, written: Tensor, rows: Tensor, num_heads: int, bias: Tensor | None) -> Tensor:
    """Queries (m, H*E) against the keys and values in their own ``rows`` (m, P) -> (m, H*E)."""
    num_beams, num_positions = rows.shape
    key_value = written.index_select(0, rows.reshape(-1)).view(num_beams, num_positions, 2, num_heads, -1)
    keys, values = key_value.unbind(2)  # each (m, P, H, E)
    scores = (keys * query.view(num_beams, 1, num_heads, -1)).sum(-1)  # (m, P, H)
    if bias is not None:
        scores += bias
    return (values * scores.softmax(1)[..., None]).sum(1).view(num_beams, -1)
