"""One vector per event and one per user, from all that the log knows: sparse features are kept, not thrown away.

OneRec technical report (2506.13695, 2.2): item (as id or as semantic ID), author, tag, time, play time, duration and
the set of actions are embedded and concatenated, then h = Dense(LeakyReLU(Dense(f))). Which of them exist says the
Catalog's :class:`~sidera.data.features.FeatureSchema`; a log without feedback gives item and time alone.

Choices where the paper is silent: seconds enter as log(1 + s) and as the share watched, with a mark where they are
unknown; time as the age of the event at the request, in buckets of half octaves, and its place counted from the newest,
likewise. Vectors of one width are summed where the paper concatenates only ids (levels of a semantic ID).

Shape legend: T events · B histories · D width · N items · L levels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.catalog.catalog import Catalog
from sidera.core import Batch, InputError

ItemInput = Literal["id", "sid", "both"]
TIMELESS = 0.1  # share of training histories whose times are hidden
AGE_BUCKETS = 64  # half octaves of seconds reach beyond a century
PLACE_BUCKETS = 40  # half octaves of events reach a million


class EventFeatures(nn.Module):
    """(T,) events of a Batch -> (T, D)."""

    def __init__(
        self, catalog: Catalog, width: int, item_input: ItemInput = "both", side_width: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        schema = catalog.schema
        self.labels, self.has_watch_time, self.has_duration = (
            schema.labels, schema.has_watch_time, schema.has_duration,
        )  # fmt: skip
        self.columns = schema.columns
        codes = torch.from_numpy(np.asarray(catalog.codes, dtype=np.int64))
        self.register_buffer("codes", codes, persistent=False)  # (N, L)
        self.codes: Tensor
        self.item = nn.Embedding(catalog.num_items, width) if item_input != "sid" else None
        self.code = (
            nn.ModuleList(nn.Embedding(size, width) for size in catalog.level_sizes) if item_input != "id" else None
        )
        self.fields = tuple(catalog.categories)
        for name in self.fields:
            values = torch.from_numpy(np.asarray(catalog.categories[name], dtype=np.int64))
            self.register_buffer(f"category_{name}", values, persistent=False)  # (N,)
        self.side = nn.ModuleDict(
            {name: nn.Embedding(len(schema.item_fields[name]) + 1, side_width) for name in self.fields}
        )
        self.age, self.place = nn.Embedding(AGE_BUCKETS, side_width), nn.Embedding(PLACE_BUCKETS, side_width)
        num_numbers = len(self.labels) + 2 * (self.has_watch_time + self.has_duration)
        num_numbers += int(self.has_watch_time and self.has_duration)  # the share watched
        total = width + side_width * (len(self.fields) + 2) + num_numbers
        self.mix = nn.Sequential(nn.Linear(total, 2 * width), nn.LeakyReLU(), nn.Linear(2 * width, width))
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def item_vectors(self, item_ids: Tensor) -> Tensor:
        """(T, D) of the items alone."""
        parts = [] if self.item is None else [self.item(item_ids)]
        if self.code is not None:
            parts += [table(self.codes[item_ids, level]) for level, table in enumerate(self.code)]
        return torch.stack(parts).sum(0)

    def forward(self, batch: Batch) -> Tensor:
        """(T, D); InputError names a feedback column that the model was trained with and the batch lacks."""
        missing = [name for name in self.columns if name not in batch.feedback]
        if missing:
            raise InputError(
                f"the batch has no feedback column {missing[0]!r}", fix="read the log through the Catalog's schema"
            )
        lengths = batch.lengths
        parts = [self.item_vectors(batch.item_ids)]
        parts += [table(getattr(self, f"category_{name}")[batch.item_ids]) for name, table in self.side.items()]
        parts.append(self.age(self._ages(batch, lengths)))
        parts.append(self.place(_half_octaves(_places(batch, lengths), PLACE_BUCKETS)))
        numbers = self._numbers(batch)
        if numbers is not None:
            parts.append(numbers.to(parts[0].dtype))
        return self.mix(torch.cat(parts, dim=-1))

    def _ages(self, batch: Batch, lengths: Tensor) -> Tensor:
        """(T,) bucket of the seconds between an event and the request; 0 where times are unknown.

        In training every tenth history is read without its times, so that histories that come without are no surprise.
        """
        if batch.times is None or batch.as_of is None:
            return torch.zeros_like(batch.item_ids)
        total = batch.item_ids.numel()
        moment = torch.repeat_interleave(batch.as_of, lengths, output_size=total)
        ages = 1 + _half_octaves((moment - batch.times).clamp(min=0), AGE_BUCKETS - 1)
        if self.training:
            hidden_mask = torch.rand(len(lengths), device=ages.device) < TIMELESS
            ages = ages.masked_fill(torch.repeat_interleave(hidden_mask, lengths, output_size=total), 0)
        return ages

    def _numbers(self, batch: Batch) -> Tensor | None:
        """(T, numbers) labels, log seconds, marks of unknown seconds, the share watched."""
        found = [batch.feedback[name] for name in self.labels]
        seconds = {}
        for name, there in (("watch_time", self.has_watch_time), ("duration", self.has_duration)):
            if there:
                values = batch.feedback[name]
                unknown = values.isnan()
                seconds[name] = values.masked_fill(unknown, 0.0)
                found += [seconds[name].clamp(min=0).log1p() / 4, unknown.float()]
        if len(seconds) == 2:
            found.append((seconds["watch_time"] / seconds["duration"].clamp(min=1.0)).clamp(0, 2))
        return torch.stack(found, dim=-1).float() if found else None


class UserFeatures(nn.Module):
    """The static pathway: (B,) profiles -> (B, D), one token per user, also for users of whom nothing is known."""

    def __init__(self, catalog: Catalog, width: int, field_width: int = 32) -> None:
        super().__init__()
        fields = catalog.schema.profile_fields
        self.fields = nn.ModuleDict(
            {name: nn.Embedding(len(vocabulary) + 1, field_width) for name, vocabulary in fields.items()}
        )
        self.nobody = nn.Parameter(torch.zeros(1))  # the one input of a log without profiles
        self.mix = nn.Sequential(
            nn.Linear(1 + field_width * len(fields), 2 * width), nn.LeakyReLU(), nn.Linear(2 * width, width)
        )
        for module in self.fields.values():
            nn.init.normal_(module.weight, std=field_width**-0.5)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Tensor:
        """(B, D)"""
        parts = [self.nobody.expand(batch.num_histories, 1)]
        for name, table in self.fields.items():
            values = batch.profiles.get(name)
            ids = torch.zeros(batch.num_histories, dtype=torch.int64, device=self.nobody.device)
            parts.append(table(ids if values is None else values))
        return self.mix(torch.cat(parts, dim=-1))


def _places(batch: Batch, lengths: Tensor) -> Tensor:
    """(T,) 0 for the newest event of a history."""
    total = batch.item_ids.numel()
    ends = torch.repeat_interleave(batch.offsets[1:], lengths, output_size=total)
    return ends - 1 - torch.arange(total, device=ends.device)


def _half_octaves(values: Tensor, limit: int) -> Tensor:
    """floor(2 log2(1 + x)), below ``limit``."""
    return (2 * (values.float() + 1).log2()).floor().long().clamp(0, limit - 1)


def padded(values: Tensor, offsets: Tensor, front: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Jagged (T, D) and ``front`` (B, D), one more token of each history -> (B, S, D), mask (B, S) True = token."""
    lengths = offsets.diff()
    longest = int(lengths.max()) if lengths.numel() else 0
    steps = torch.arange(longest, device=offsets.device)
    mask = steps < lengths[:, None]  # (B, S)
    places = (offsets[:-1, None] + steps).clamp(max=max(values.shape[0] - 1, 0))
    if values.shape[0]:
        table = values[places.flatten()].view(*places.shape, values.shape[1])
    else:
        table = values.new_zeros(*places.shape, values.shape[1])
    if front is not None:
        table = torch.cat((front[:, None], table), dim=1)
        mask = F.pad(mask, (1, 0), value=True)
    return table, mask
