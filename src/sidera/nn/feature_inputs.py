"""Declared features of one owner -> vectors: an embedding for each counted kind, one Dense for all that is measured.

The unknown value of a feature that training always knew starts as zero: it was never learned from, so it says nothing.

Shape legend: ... rows · S length of a list · W width of a vector · D width of what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.core import InputError


class FeatureLike(Protocol):
    """What is read of a ``data.feature.Feature``; this room stands below the data's."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...  # category | categories | tokens | number | vector

    @property
    def num_values(self) -> int: ...

    @property
    def width(self) -> int: ...  # W of a number or vector, else 0

    @property
    def row_shape(self) -> tuple[int, ...]: ...

    @property
    def has_missing(self) -> bool: ...

    @property
    def required(self) -> bool: ...


class FeatureInputs(nn.Module):
    """Columns of features -> ``num_parts`` tensors (..., D)."""

    def __init__(self, features: Sequence[FeatureLike], width: int) -> None:
        super().__init__()
        self.features, self.width = tuple(features), width
        self.counted = tuple(feature for feature in features if not feature.width)
        self.measured = tuple(feature for feature in features if feature.width)
        self.tables = nn.ModuleList(nn.Embedding(feature.num_values, width) for feature in self.counted)
        inputs = sum(feature.width + feature.has_missing for feature in self.measured)
        self.dense = nn.Linear(inputs, width, bias=False) if inputs else None

    @property
    def num_parts(self) -> int:
        return len(self.tables) + (self.dense is not None)

    def start(self, std: float) -> None:
        """Draw the embeddings; the row of a value that training does not meet is zero."""
        for feature, table in zip(self.counted, cast(Sequence[nn.Embedding], self.tables), strict=True):
            nn.init.normal_(table.weight, std=std)
            if not feature.has_missing:
                with torch.no_grad():
                    table.weight[0] = 0.0

    def forward(self, columns: Mapping[str, Tensor], rows: int | None = None) -> list[Tensor]:
        """InputError for a required feature that is not there; others are unknown then, in ``rows`` rows."""
        known = {feature.name: self._column(feature, columns, rows) for feature in self.features}
        parts = [
            self._mean(table, known[feature.name]) if feature.row_shape else table(known[feature.name])
            for feature, table in zip(self.counted, self.tables, strict=True)
        ]
        if self.dense is not None:
            parts.append(self.dense(torch.cat([self._inputs(each, known[each.name]) for each in self.measured], -1)))
        return parts

    def _column(self, feature: FeatureLike, columns: Mapping[str, Tensor], rows: int | None) -> Tensor:
        values = columns.get(feature.name)
        if values is not None:
            return values
        if feature.required or rows is None:
            raise InputError(
                f"the batch has no feature {feature.name!r}", fix="read the log through the Catalog's schema"
            )
        weight = next(self.parameters())
        shape = (rows, *feature.row_shape)
        if feature.width:
            return weight.new_full(shape, float("nan"))
        return torch.zeros(shape, dtype=torch.int64, device=weight.device)

    @staticmethod
    def _mean(table: nn.Module, ids: Tensor) -> Tensor:
        """(..., S) -> (..., D): the mean of the known values, and of a row without one what "unknown" says.

        On the CPU only known values are read: a catalogue of titles is mostly padding.
        """
        embed, known = cast(nn.Embedding, table), ids > 0
        known[..., 0] |= ~known.any(-1)  # row 0 stands once in an empty list
        counts = known.sum(-1)
        if not ids.is_cpu:
            weights = known.to(embed.weight.dtype) / counts[..., None]
            return (F.embedding(ids, embed.weight) * weights[..., None]).sum(-2)
        ends = counts.view(-1).cumsum(0)
        means = F.embedding_bag(ids[known], embed.weight, ends - counts.view(-1), mode="mean")
        return means.view(*ids.shape[:-1], -1)

    @staticmethod
    def _inputs(feature: FeatureLike, values: Tensor) -> Tensor:
        """(...,) or (..., W) -> (..., W + mark): 0 where unknown, and 1 in the mark of a row of which nothing is."""
        values = values if feature.row_shape else values[..., None]
        found = values.nan_to_num(0.0)
        if not feature.has_missing:
            return found
        return torch.cat((found, values.isnan().all(-1, keepdim=True).to(found.dtype)), -1)
