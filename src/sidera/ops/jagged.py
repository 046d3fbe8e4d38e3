"""Rows of different lengths, one after another, without padding in between. Attention over them: ``ops/attention.py``.

:class:`Jagged` is one column of such rows. :class:`Columns` and :class:`JaggedColumns` give the same operations to any
frozen dataclass of columns: a group of a Batch names its columns, and cutting, picking and moving them is written here.

Shape legend: T values of all rows · B rows · S longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor


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
        kept = mask.nonzero()[:, 0]  # once for all columns
        part = self._changed(lambda column: column.index_select(0, kept), skip="offsets")
        return replace(part, offsets=torch.searchsorted(kept, self.offsets))  # type: ignore[type-var]

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


def with_copies(table: Tensor, more: int) -> Tensor:
    """(B, ...) -> (B + more, ...): so many copies of the first row behind the others, in memory of its own."""
    return torch.cat((table, table[:1].expand(more, *table.shape[1:])))


def runs_of_rows(starts: Tensor, counts: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Runs of ``counts[b, i]`` numbers from ``starts[b, i]`` on, one after another: i of each, and the numbers.

    starts, counts (B, W) -> (B, P) twice, P = ``size``, or what the longest row holds and at least 1. Behind a row's
    last run: i = W, the number 0.
    """
    ends = counts.cumsum(1)  # (B, W)
    (num_rows, width), totals = counts.shape, ends[:, -1:]
    if size is None:
        size = max(1, int(totals.max()) if num_rows else 0)
    first = F.pad(starts - ends + counts, (0, 1), value=-size)  # (B, W+1): a run's number at place 0
    lengths = torch.cat((counts, size - totals), dim=1).view(-1)  # the last is padding
    index = torch.repeat_interleave(lengths, output_size=num_rows * size).view(num_rows, size)
    if num_rows > 1:
        index = index - torch.arange(0, num_rows * (width + 1), width + 1, device=index.device)[:, None]
    numbers = first.gather(1, index).add_(torch.arange(size, device=index.device))
    return index, numbers.clamp_(min=0)
