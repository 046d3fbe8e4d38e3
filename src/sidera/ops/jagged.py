"""Rows of different lengths, one after another, without padding in between; and attention over them.

:class:`Jagged` is one column of such rows. :class:`Columns` and :class:`JaggedColumns` give the same operations to any
frozen dataclass of columns: a group of a Batch names its columns, and cutting, picking and moving them is written here.

:func:`jagged_attention` has two bodies that a test holds together: :func:`looped_attention`, the reference, takes one
history after another; the grouped body sorts histories by length and pads only inside groups of similar
length, so that short histories do not pay for long ones. Causal attention needs no mask at all then: padding stands at
the end, where no real query looks.

Shape legend: T tokens of all histories · B histories · S longest history · H heads · D dims of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_GROUPS = 4  # more groups save padding but cost calls; 4 keeps padding near 20 % on shopping histories


class Columns:
    """Operations of a frozen dataclass whose fields are columns of one length: a tensor whose first dimension is the
    row, a mapping of such tensors, another group, or None where there is no such column. Other fields stay as they are.
    """

    def take(self, rows: Tensor | slice) -> Self:
        """The rows at these indices, of a mask, or of a slice."""
        return self._changed(lambda column: column[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._changed(lambda column: column.to(device, non_blocking=non_blocking))

    def _changed(self, change: Callable[[Any], Any], skip: str = "") -> Self:
        changed: dict[str, Any] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if entry.name == skip or value is None or isinstance(value, str | int):
                continue
            if isinstance(value, Mapping):
                changed[entry.name] = {name: change(column) for name, column in value.items()}
            else:
                changed[entry.name] = change(value)
        return replace(self, **changed)  # type: ignore[type-var]


class JaggedColumns(Columns):
    """Columns of rows of different lengths: row b has the values from ``offsets[b]`` to ``offsets[b+1]``."""

    offsets: Tensor  # (B+1,) int64, from 0 on

    @property
    def num_rows(self) -> int:
        return self.offsets.numel() - 1

    @property
    def num_values(self) -> int:
        """T, without asking the device: of the first column that is a tensor."""
        values = (getattr(self, entry.name) for entry in fields(self) if entry.name != "offsets")  # type: ignore[arg-type]
        return next(value.shape[0] for value in values if isinstance(value, Tensor))

    @property
    def lengths(self) -> Tensor:
        """(B,)"""
        return self.offsets.diff()

    @property
    def row_ids(self) -> Tensor:
        """(T,) the row of each value."""
        rows = torch.arange(self.num_rows, device=self.offsets.device)
        return rows.repeat_interleave(self.lengths, output_size=self.num_values)

    @property
    def from_end(self) -> Tensor:
        """(T,) how many values of its row come after each: 0 for the last."""
        ends = self.offsets[1:].repeat_interleave(self.lengths, output_size=self.num_values)
        return ends - 1 - torch.arange(self.num_values, device=ends.device)

    def cut(self, low: int, high: int) -> Self:
        """The rows ``low`` to ``high - 1``, without a copy."""
        begin, end = int(self.offsets[low]), int(self.offsets[high])
        part = self._changed(lambda column: column[begin:end], skip="offsets")
        return replace(part, offsets=self.offsets[low : high + 1] - begin)  # type: ignore[type-var]

    def rows(self, rows: Tensor) -> Self:
        """The rows ``rows`` (n,), in their order."""
        positions, offsets = jagged_rows(self.offsets, rows)
        part = self._changed(lambda column: column[positions], skip="offsets")
        return replace(part, offsets=offsets)  # type: ignore[type-var]

    def keep(self, mask: Tensor) -> Self:
        """The same rows with only the values that a mask (T,) names."""
        before = self.offsets.new_zeros(len(mask) + 1)  # values kept before each position
        before[1:] = mask.cumsum(0)
        part = self._changed(lambda column: column[mask], skip="offsets")
        return replace(part, offsets=before[self.offsets])  # type: ignore[type-var]

    def newest(self, count: int) -> Self:
        """Each row cut to its last ``count`` values."""
        if not self.num_rows or int(self.lengths.max()) <= count:
            return self
        return self.keep(self.from_end < count)


@dataclass(frozen=True)
class Jagged(JaggedColumns):
    """One column of rows of different lengths."""

    values: Tensor  # (T, ...)
    offsets: Tensor  # (B+1,)

    @classmethod
    def of(cls, rows: list[list[int]]) -> Jagged:
        """Lists of whole numbers."""
        lengths = torch.tensor([0] + [len(row) for row in rows])
        return cls(torch.tensor([value for row in rows for value in row], dtype=torch.int64), lengths.cumsum(0))

    def join(self, other: Jagged) -> Jagged:
        """Row by row, these values and then the other's, which may lie on another device: the result is on this one."""
        device = self.values.device
        rows = torch.cat((self.row_ids, other.row_ids.to(device)))
        order = torch.argsort(rows, stable=True)
        values = torch.cat((self.values, other.values.to(device)))[order]
        return Jagged(values, self.offsets + other.offsets.to(device))

    def pad(self, fill: int | float | bool = 0) -> tuple[Tensor, Tensor]:
        """(B, S, ...) with ``fill`` behind shorter rows, and mask (B, S), True = a value."""
        lengths = self.lengths
        longest = int(lengths.max()) if lengths.numel() else 0
        mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
        table = self.values.new_full((len(lengths), longest, *self.values.shape[1:]), fill)
        table[mask] = self.values
        return table, mask


def jagged_rows(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the jagged rows ``rows`` (n,) one after the other, and their new offsets (n+1,)."""
    lengths = offsets.diff()[rows]
    bounds = lengths.new_zeros(len(rows) + 1)
    bounds[1:] = lengths.cumsum(0)
    shift = (offsets[rows] - bounds[:-1]).repeat_interleave(lengths)
    return shift.new_ones(len(shift)).cumsum(0) - 1 + shift, bounds


@dataclass(frozen=True)
class Group:
    """Histories of similar length, padded to the longest of them."""

    gather: Tensor  # (b, s) token that stands at each padded place; pads repeat the history's first token
    keep: Tensor  # (t,) flat places in (b*s) that hold real tokens
    lengths: Tensor  # (b,)
    padded: bool


@dataclass(frozen=True)
class JaggedLayout:
    """Where the tokens of a batch stand; built once per batch and shared by every layer."""

    offsets: Tensor  # (B+1,)
    positions: Tensor  # (T,) place of a token in its history, 0 = oldest
    rows: Tensor  # (T,) history of a token
    groups: tuple[Group, ...]
    restore: Tensor  # (T,) for each token its row in the groups' concatenated outputs


def jagged_layout(offsets: Tensor, max_groups: int = MAX_GROUPS) -> JaggedLayout:
    """Sort histories by length and cut them into at most ``max_groups`` groups, each padded to its longest."""
    device = offsets.device
    lengths = offsets.diff()  # (B,)
    num_histories, num_tokens = lengths.numel(), int(offsets[-1])
    rows = torch.repeat_interleave(torch.arange(num_histories, device=device), lengths, output_size=num_tokens)
    positions = torch.arange(num_tokens, device=device) - offsets[:-1][rows]
    order = torch.argsort(lengths, stable=True)
    sorted_lengths = lengths[order]
    groups: list[Group] = []
    kept_tokens: list[Tensor] = []
    for start, end in _group_bounds(sorted_lengths, max_groups):
        members, longest = order[start:end], int(sorted_lengths[end - 1])
        steps = torch.arange(longest, device=device)
        real_mask = steps < lengths[members, None]  # (b, s)
        gather = offsets[members, None] + torch.where(real_mask, steps, 0)  # (b, s)
        keep = real_mask.flatten().nonzero().squeeze(1)
        kept_tokens.append(gather.flatten()[keep])
        groups.append(Group(gather, keep, lengths[members], bool(sorted_lengths[start] < longest)))
    restore = torch.empty(num_tokens, dtype=torch.int64, device=device)
    if kept_tokens:
        restore[torch.cat(kept_tokens)] = torch.arange(num_tokens, device=device)
    return JaggedLayout(offsets, positions, rows, tuple(groups), restore)


def _group_bounds(sorted_lengths: Tensor, max_groups: int) -> list[tuple[int, int]]:
    """Cuts of an ascending length list where the length doubles at least; empty histories belong to no group."""
    lengths = sorted_lengths.tolist()
    start = next((place for place, length in enumerate(lengths) if length > 0), len(lengths))
    if start == len(lengths):
        return []
    limit = -(-lengths[-1] // 2 ** (max_groups - 1))  # rounded up, or the longest would make a group too many
    bounds: list[tuple[int, int]] = []
    for place in range(start, len(lengths)):
        if lengths[place] > limit:
            if place > start:
                bounds.append((start, place))
            start = place
            while lengths[place] > limit:
                limit *= 2
    bounds.append((start, len(lengths)))
    return bounds


def jagged_attention(q: Tensor, k: Tensor, v: Tensor, layout: JaggedLayout, *, causal: bool = True) -> Tensor:
    """Softmax attention inside each history. q, k, v (T, H, D) -> (T, H, D), scaled by D^-0.5."""
    num_heads, dim = q.shape[1], q.shape[2]
    qkv = torch.stack((q, k, v), dim=1).flatten(1)  # (T, 3*H*D): one gather moves all three
    outputs = []
    for group in layout.groups:
        b, s = group.gather.shape
        q_g, k_g, v_g = qkv[group.gather].view(b, s, 3, num_heads, dim).permute(2, 0, 3, 1, 4)  # each (b, H, s, D)
        mask = None
        if group.padded and not causal:
            steps = torch.arange(s, device=q.device)
            mask = (steps < group.lengths[:, None])[:, None, None, :]  # (b, 1, 1, s) True = attend
        out = F.scaled_dot_product_attention(q_g, k_g, v_g, attn_mask=mask, is_causal=causal)  # (b, H, s, D)
        outputs.append(out.transpose(1, 2).reshape(b * s, num_heads * dim).index_select(0, group.keep))
    if not outputs:
        return torch.zeros_like(q)
    return torch.cat(outputs).index_select(0, layout.restore).view(-1, num_heads, dim)


def looped_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool = True) -> Tensor:
    """The reference of :func:`jagged_attention`: plain softmax attention, one history at a time."""
    lengths = offsets.diff().tolist()
    out = torch.zeros_like(q)
    for row, length in enumerate(lengths):
        start = int(offsets[row])
        span = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", q[span], k[span]) * q.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones(length, length, device=q.device).triu(1).bool(), float("-inf"))
        out[span] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[span])
    return out
