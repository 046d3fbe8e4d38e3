"""Attention inside rows of different lengths: one op for every model, with a body per kind of layout and device.

    layout = layout_of(offsets)                                         # once per batch, shared by every layer
    out = attention(None, qkv, layout, causal=True)                     # a row reads itself: (T, 3, H, E) -> (T, H, E)
    out = attention(query, key_value, layout.asked_by(4))               # 4 queries a row read the row's tokens

Queries, keys and values come as their projection leaves them, side by side in one tensor: one gather moves all of them
and their gradient is one tensor. Rows are never padded outside of the op.

Bodies, held together by ``tests/ops/test_attention.py``: :func:`looped_attention` is the reference, one row after
another. :func:`_fused` takes rows of like length together, padded to the longest of their group, through torch's own
kernels, on any device. :func:`_pairs` writes out the pairs of rows of a few positions, on the CPU.
``ops/written_attention.py`` writes out the gradients of neighbouring rows of equal length: T5's body, with its bias and
dropout. Streams that read one table of keys stand in ``ops/shared_keys.py``.

A group costs a dozen launches. On the CPU they are cheap beside the arithmetic that exact groups save; on a device they
are all that a small group costs. There neighbours are padded into one table first (:meth:`Layout.padded`).

Causal attention needs no mask: padding stands at the end, where no real query looks.

Shape legend: T tokens of all rows (Tq: queries, Tk: keys) · B rows · b rows of a group · s longest row of a group ·
H heads · E dims of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.ops.masks import added
from sidera.ops.masks import causal as causal_mask
from sidera.ops.written_attention import Written, written_attention

MAX_GROUPS = 4  # more groups save padding but cost calls; 4 keeps padding near 20 % on shopping histories
FEW_POSITIONS = 8  # of a row, where writing out all pairs is cheaper than a kernel's call per head


@dataclass(frozen=True)
class Rows:
    """Rows of like length as a table (b, s): neighbours of equal length, or gathered and padded at the end."""

    num_rows: int  # b
    length: int  # s
    start: int = 0  # first token of neighbours
    index: Tensor | None = None  # (b, s) token at each position; pads repeat the row's first token. None: neighbours
    keep: Tensor | None = None  # (t,) flat positions in (b*s) that hold real tokens; None: all do
    lengths: Tensor | None = None  # (b,); None: all have s

    @property
    def end(self) -> int:
        """Token behind the last of neighbours."""
        return self.start + self.num_rows * self.length

    def take(self, x: Tensor) -> Tensor:
        """(T, ...) -> (b, s, ...)"""
        if self.index is None:
            return x[self.start : self.end].unflatten(0, (self.num_rows, self.length))
        return x[self.index]

    def put(self, table: Tensor) -> Tensor:
        """(b, s, ...) -> (t, ...), the real tokens."""
        flat = table.flatten(0, 1)
        return flat if self.keep is None else flat.index_select(0, self.keep)

    def mask(self) -> Tensor | None:
        """(b, s) True = a token; None: all are."""
        if self.lengths is None:
            return None
        return torch.arange(self.length, device=self.lengths.device) < self.lengths[:, None]


@dataclass(frozen=True)
class Layout:
    """Which keys each query reads: group i of the queries reads, row by row, group i of the keys."""

    queries: tuple[Rows, ...]
    keys: tuple[Rows, ...]
    offsets: Tensor | None = None  # (B+1,) of the rows; None: neighbours only, whose groups say it
    members: tuple[Tensor, ...] = ()  # (b,) the rows of each gathered group
    restore: Tensor | None = None  # (Tq,) where each query stands in the groups' joined answers; None: in order
    missing: bool = False  # some queries have nothing to read: they stand behind the answers, as one row of zeros
    _padded: dict[torch.device, Layout] = field(default_factory=dict, repr=False, compare=False)

    def padded(self, device: torch.device) -> Layout:
        """Neighbours of every length as one table on ``device``, made once for all layers."""
        if len(self.keys) == 1:
            return self
        if device not in self._padded:
            self._padded[device] = Layout((_one_table(self.queries, device),), (_one_table(self.keys, device),))
        return self._padded[device]

    @cached_property
    def row_ids(self) -> Tensor:
        """(T,) row of a token."""
        assert self.offsets is not None
        rows = torch.arange(self.offsets.numel() - 1, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self._num_tokens)

    @cached_property
    def positions(self) -> Tensor:
        """(T,) position of a token in its row, 0 = oldest."""
        assert self.offsets is not None
        return torch.arange(self._num_tokens, device=self.offsets.device) - self.offsets[:-1][self.row_ids]

    @property
    def _num_tokens(self) -> int:
        return 0 if self.restore is None else self.restore.numel()

    def asked_by(self, each: int) -> Layout:
        """The same rows, read by ``each`` queries of their own. Queries stand row after row."""
        if self.offsets is None:
            groups, start = [], 0
            for rows in self.keys:
                groups.append(Rows(rows.num_rows, each, start))
                start = groups[-1].end
            return Layout(tuple(groups), self.keys)
        steps = torch.arange(each, device=self.offsets.device)
        indices = [members[:, None] * each + steps for members in self.members]  # (b, each)
        asked = torch.cat([index.flatten() for index in indices]) if indices else steps[:0]
        total = (self.offsets.numel() - 1) * each
        restore = torch.full((total,), asked.numel(), device=steps.device)
        restore[asked] = torch.arange(asked.numel(), device=steps.device)
        queries = tuple(Rows(len(index), each, index=index) for index in indices)
        return Layout(queries, self.keys, restore=restore, missing=asked.numel() < total)


def layout_of(offsets: Tensor, max_groups: int = MAX_GROUPS, num_tokens: int | None = None) -> Layout:
    """Rows that read themselves, sorted by length and cut into at most ``max_groups`` groups of like length.

    ``num_tokens``: of all rows, where the caller knows it; of one row no number is read back then."""
    if offsets.numel() == 2 and (length := int(offsets[1]) if num_tokens is None else num_tokens):
        # one row, as most requests are: nothing to sort
        one = (Rows(1, length),)
        return Layout(one, one, offsets, (offsets[:1],), torch.arange(length, device=offsets.device))
    lengths = offsets.diff()  # (B,)
    order = torch.argsort(lengths, stable=True)
    sorted_lengths = lengths[order]
    groups, tokens, members = [], [offsets[:0]], []
    for start, end in _group_bounds(sorted_lengths, max_groups):
        rows, longest = order[start:end], int(sorted_lengths[end - 1])
        steps = torch.arange(longest, device=offsets.device)
        real_mask = steps < lengths[rows, None]  # (b, s)
        index = offsets[rows, None] + torch.where(real_mask, steps, 0)  # (b, s)
        keep = real_mask.flatten().nonzero().squeeze(1)
        padded = bool(sorted_lengths[start] < longest)
        tokens.append(index.flatten()[keep])
        members.append(rows)
        groups.append(Rows(end - start, longest, 0, index, keep, lengths[rows] if padded else None))
    joined = torch.cat(tokens)
    restore = torch.empty_like(joined)
    restore[joined] = torch.arange(joined.numel(), device=offsets.device)
    return Layout(tuple(groups), tuple(groups), offsets, tuple(members), restore)


def _group_bounds(sorted_lengths: Tensor, max_groups: int) -> list[tuple[int, int]]:
    """Cuts of an ascending length list where the length doubles at least; empty rows belong to no group."""
    lengths = sorted_lengths.tolist()
    start = next((row for row, length in enumerate(lengths) if length > 0), len(lengths))
    if start == len(lengths):
        return []
    limit = -(-lengths[-1] // 2 ** (max_groups - 1))  # rounded up, or the longest would make a group too many
    bounds: list[tuple[int, int]] = []
    for row in range(start, len(lengths)):
        if lengths[row] > limit:
            if row > start:
                bounds.append((start, row))
            start = row
            while lengths[row] > limit:
                limit *= 2
    bounds.append((start, len(lengths)))
    return bounds


def sorted_layout(lengths: Sequence[int]) -> Layout:
    """Rows that read themselves and whose lengths are sorted (either way): groups are neighbours, nothing is moved."""
    groups: list[Rows] = []
    row, start = 0, 0
    while row < len(lengths):
        length, first = lengths[row], row
        while row < len(lengths) and lengths[row] == length:
            row += 1
        groups.append(Rows(row - first, length, start))
        start = groups[-1].end
    return Layout(tuple(groups), tuple(groups))


def _one_table(groups: Sequence[Rows], device: torch.device) -> Rows:
    """Groups of neighbours as one table, shorter rows padded at the end."""
    lengths = np.repeat([rows.length for rows in groups], [rows.num_rows for rows in groups])  # (b,)
    longest, starts = int(lengths.max()), np.cumsum(lengths) - lengths
    if int(lengths.min()) == longest:
        return Rows(len(lengths), longest, groups[0].start)
    steps = np.arange(longest)
    real_mask = steps < lengths[:, None]  # (b, s)
    index = groups[0].start + starts[:, None] + np.where(real_mask, steps, 0)
    tables = (index, real_mask.ravel().nonzero()[0], lengths)
    return Rows(len(lengths), longest, 0, *(torch.from_numpy(table).to(device) for table in tables))


def equal_layout(num_rows: int, length: int) -> Layout:
    """``num_rows`` rows of ``length`` tokens that read themselves."""
    rows = (Rows(num_rows, length),)
    return Layout(rows, rows)


def attention(
    query: Tensor | None,
    key_value: Tensor,
    layout: Layout,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    rate: float = 0.0,
) -> Tensor:
    """softmax(scale q k + bias) v inside each row; a query whose row has no keys gets zeros.

    query (Tq, H, E) and key_value (Tk, 2, H, E), or query None and key_value (T, 3, H, E) with the queries first ->
    (Tq, H, E). bias (H, S, S) is cut to each group's lengths; it may hold -inf. scale: E^-0.5 by default. rate: share
    of the weights that are dropped.
    """
    scale = key_value.shape[-1] ** -0.5 if scale is None else scale
    neighbours = layout.restore is None
    if neighbours and not key_value.is_cpu and layout.keys:
        return _fused(query, key_value, layout.padded(key_value.device), bias, causal, scale, rate)
    if neighbours and not causal:
        groups: Written = [
            (asked.start, rows.start, rows.num_rows, asked.length, rows.length)
            for asked, rows in zip(layout.queries, layout.keys, strict=True)
        ]
        return written_attention(query, key_value, bias, groups, scale, rate)
    if neighbours and query is None and bias is None and not rate and key_value.is_cpu and len(layout.keys) == 1:
        (rows,) = layout.keys
        if rows.length <= FEW_POSITIONS:
            return _pairs(rows.take(key_value), scale).flatten(0, 1)
    return _fused(query, key_value, layout, bias, causal, scale, rate)


def _fused(
    query: Tensor | None,
    key_value: Tensor,
    layout: Layout,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    rate: float,
) -> Tensor:
    """torch's kernels, group by group."""
    answers = []
    for asked, rows in zip(layout.queries, layout.keys, strict=True):
        parts = rows.take(key_value).permute(2, 0, 3, 1, 4)  # (2 or 3, b, H, s, E)
        q = parts[0] if query is None else asked.take(query).transpose(1, 2)  # (b, H, sq, E)
        mask = None if causal else rows.mask()  # (b, s) True = attend
        added = None if mask is None else mask[:, None, None]
        if bias is not None:
            added = bias[:, : asked.length, : rows.length].to(q.dtype)
            added = added if mask is None else added.masked_fill(~mask[:, None, None], float("-inf"))
        read = F.scaled_dot_product_attention(q, parts[-2], parts[-1], added, rate, causal, scale=scale)
        answers.append(asked.put(read.transpose(1, 2)))  # (t, H, E)
    if not answers:  # no row has keys
        return torch.zeros_like(key_value[:, 0] if query is None else query)
    if layout.missing:
        answers.append(torch.zeros_like(answers[0][:1]))
    joined = torch.cat(answers)
    return joined if layout.restore is None else joined.index_select(0, layout.restore)


def _pairs(qkv: Tensor, scale: float) -> Tensor:
    """Causal attention inside rows of a few positions: all pairs written out. (M, P, 3, H, E) -> (M, P, H, E)"""
    q, k, v = qkv.unbind(2)
    num_positions = q.shape[1]
    scores = (q[:, :, None] * k[:, None]).sum(-1) * scale + added(causal_mask(num_positions), q)[
        ..., None
    ]  # (M, P, P, H)
    weights = scores.softmax(2)
    return (weights[..., None] * v[:, None]).sum(2)


def looped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    offsets: Tensor,
    key_offsets: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The reference of all bodies: plain softmax attention, one row at a time.

    q (Tq, H, E), k and v (Tk, R, E), where each key head serves H / R neighbouring query heads -> (Tq, H, E).
    """
    out, key_offsets = torch.zeros_like(q), offsets if key_offsets is None else key_offsets
    scale, each = q.shape[-1] ** -0.5 if scale is None else scale, q.shape[1] // k.shape[1]
    for row in range(offsets.numel() - 1):
        asked = slice(int(offsets[row]), int(offsets[row + 1]))
        rows = slice(int(key_offsets[row]), int(key_offsets[row + 1]))
        keys, values = (part[rows].repeat_interleave(each, dim=1) for part in (k, v))
        if not len(keys):
            continue
        scores = torch.einsum("qhd,khd->hqk", q[asked], keys) * scale
        if bias is not None:
            scores = scores + bias[:, : scores.shape[1], : scores.shape[2]]
        if causal:
            scores = scores + added(causal_mask(*scores.shape[1:]), scores)
        out[asked] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return out
