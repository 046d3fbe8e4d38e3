"""One vector per event and one per user, from all that the log knows: sparse features are kept, not thrown away.

OneRec technical report (2506.13695, 2.2): item (as id or as semantic ID), author, tag, time, play time, duration and
the set of actions are embedded and concatenated, then h = Dense(LeakyReLU(Dense(f))). Which of them exist says the
Catalog's ``data.features.FeatureSchema``; a log without feedback gives item and time alone.

Choices where the paper is silent: seconds enter as log(1 + s) and as the share watched, with a mark where they are
unknown; time as the age of the event at the request, in buckets of half octaves, and its place counted from the newest,
likewise. Vectors of one width are summed where the paper concatenates only ids (levels of a semantic ID).

The first Dense is taken apart, because a product with a concatenation is a sum of products: what belongs to an item is
multiplied once per different item, ages and places once per bucket, and only logged numbers once per event
(:meth:`EventFeatures.concatenated` is the plain form, which a test holds against it).

Shape legend: T events · B histories · D width · N items · U different items of the batch · L levels.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Items
from sidera.core import InputError
from sidera.nn.feature_inputs import FeatureInputs
from sidera.nn.item_embedding import ItemEmbedding
from sidera.nn.target_attention import half_octaves

ItemInput = Literal["id", "sid", "both"]
TIMELESS = 0.1  # share of training histories whose times are hidden
AGE_BUCKETS = 64  # half octaves of seconds reach beyond a century
PLACE_BUCKETS = 40  # half octaves of events reach a million


class ItemSource(Protocol):
    """What is read of a Catalog; this room stands below the catalogue's, so it names the shape and not the class."""

    @property
    def level_sizes(self) -> tuple[int, ...]: ...

    @property
    def num_items(self) -> int: ...

    @property
    def schema(self) -> Any: ...  # data.features.FeatureSchema


class EventFeatures(nn.Module):
    """(T,) events of a Batch -> (T, D)."""

    def __init__(
        self,
        catalog: ItemSource,
        width: int,
        item_input: ItemInput = "both",
        side_width: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        schema = catalog.schema
        self.labels, self.has_watch_time, self.has_duration = (
            schema.labels, schema.has_watch_time, schema.has_duration,
        )  # fmt: skip
        self.columns = schema.columns
        self.item = ItemEmbedding(catalog.num_items, width) if item_input != "sid" else None
        self.code = (
            nn.ModuleList(nn.Embedding(size, width) for size in catalog.level_sizes) if item_input != "id" else None
        )
        self.of_items = FeatureInputs(schema.batched, side_width)
        self.age, self.place = nn.Embedding(AGE_BUCKETS, side_width), nn.Embedding(PLACE_BUCKETS, side_width)
        self.of_events = FeatureInputs(schema.owned("event"), side_width)
        num_numbers = len(self.labels) + 2 * (self.has_watch_time + self.has_duration)
        num_numbers += int(self.has_watch_time and self.has_duration)  # the share watched
        num_numbers += side_width * self.of_events.num_parts
        self.num_numbers = num_numbers
        total = width + side_width * (self.of_items.num_parts + 2) + num_numbers
        self.mix = nn.Sequential(nn.Linear(total, 2 * width), nn.LeakyReLU(inplace=True), nn.Linear(2 * width, width))
        own = {*self.of_items.tables, *self.of_events.tables}
        for module in self.modules():
            if isinstance(module, FeatureInputs):
                module.start(side_width**-0.5)
            elif isinstance(module, nn.Embedding) and module not in own:
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def item_vectors(self, items: Items) -> Tensor:
        """(U, D) of the items alone."""
        parts = [] if self.item is None else [self.item(items.ids)]
        if self.code is not None:
            parts += [table(items.codes[:, level]) for level, table in enumerate(self.code)]
        return torch.stack(parts).sum(0)

    def forward(self, batch: Batch, places: Tensor | None = None) -> Tensor:
        """(T, D); InputError names a feedback column that the model was trained with and the batch lacks.

        ``places`` (T,): events that came after each, where it is not the number of those behind it in its history.
        """
        self._check(batch)
        first, activation, second = cast(tuple[nn.Linear, nn.Module, nn.Module], tuple(self.mix))
        ages, places, numbers = self._per_event(batch, places)
        of_items = torch.cat(self._item_parts(batch.items), dim=-1)  # (U, F)
        sizes = (of_items.shape[1], self.age.embedding_dim, self.place.embedding_dim, self.num_numbers)
        by_item, by_age, by_place, by_number = first.weight.split(sizes, dim=1)
        hidden = F.embedding(batch.events.items, F.linear(of_items, by_item, first.bias))  # (T, 2D)
        hidden += F.embedding(ages, F.linear(self.age.weight, by_age))
        hidden += F.embedding(places, F.linear(self.place.weight, by_place))
        if numbers is not None:
            hidden += F.linear(numbers, by_number)
        vectors: Tensor = second(activation(hidden))
        return vectors

    def flops(self, batch: Batch) -> float:
        """FLOPs of the products of :meth:`forward`: the first Dense is paid per different item and per bucket."""
        first, _, second = cast(tuple[nn.Linear, nn.Module, nn.Linear], tuple(self.mix))
        buckets = self.age.weight.numel() + self.place.weight.numel()
        of_items = first.in_features - self.num_numbers - self.age.embedding_dim - self.place.embedding_dim
        num_items, num_events = batch.items.num_items, batch.events.num_values
        inputs = num_items * of_items + buckets + num_events * (self.num_numbers + second.out_features)
        return 2.0 * first.out_features * inputs

    def concatenated(self, batch: Batch, places: Tensor | None = None) -> Tensor:
        """The reference of :meth:`forward`: every feature of every event side by side, then the MLP."""
        self._check(batch)
        ages, places, numbers = self._per_event(batch, places)
        of_items = [part[batch.events.items] for part in self._item_parts(batch.items)]
        parts = [*of_items, self.age(ages), self.place(places)]
        return self.mix(torch.cat(parts if numbers is None else [*parts, numbers], dim=-1))

    def _item_parts(self, items: Items) -> list[Tensor]:
        """(U, F_i) each: the items' own vectors and those of their features."""
        return [self.item_vectors(items), *self.of_items(items.features, items.num_items)]

    def _per_event(self, batch: Batch, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(T,) bucket of the age, (T,) of the place, (T, numbers) of what was logged."""
        buckets = half_octaves(batch.events.from_end if places is None else places, PLACE_BUCKETS)
        return self._ages(batch), buckets, self._numbers(batch)

    def _check(self, batch: Batch) -> None:
        missing = [name for name in self.columns if name not in batch.events.feedback]
        if missing:
            raise InputError(
                f"the batch has no feedback column {missing[0]!r}", fix="read the log through the Catalog's schema"
            )

    def _ages(self, batch: Batch) -> Tensor:
        """(T,) bucket of the seconds between an event and the request; 0 where times are unknown.

        In training every tenth history is read without its times, so that histories that come without are no surprise.
        """
        times, as_of, rows = batch.events.times, batch.requests.as_of, batch.events.row_ids
        if times is None or as_of is None:
            return torch.zeros_like(batch.events.items)
        ages = 1 + half_octaves((as_of[rows] - times).clamp(min=0), AGE_BUCKETS - 1)
        if self.training:
            hidden_mask = torch.rand(batch.num_histories, device=ages.device) < TIMELESS
            ages = ages.masked_fill(hidden_mask[rows], 0)
        return ages

    def _numbers(self, batch: Batch) -> Tensor | None:
        """(T, numbers) labels, log seconds, marks of unknown seconds, the share watched, features of the events."""
        feedback = batch.events.feedback
        found = [feedback[name] for name in self.labels]
        seconds = {}
        for name, there in (("watch_time", self.has_watch_time), ("duration", self.has_duration)):
            if there:
                values = feedback[name]
                unknown = values.isnan()
                seconds[name] = values.masked_fill(unknown, 0.0)
                found += [seconds[name].clamp(min=0).log1p() / 4, unknown.float()]
        if len(seconds) == 2:
            found.append((seconds["watch_time"] / seconds["duration"].clamp(min=1.0)).clamp(0, 2))
        parts = [torch.stack(found, dim=-1).float()] if found else []
        parts += self.of_events(batch.events.features, batch.num_events)
        return torch.cat(parts, dim=-1) if parts else None


class UserFeatures(nn.Module):
    """The static pathway: (B,) requests -> (B, D), one token of the user and the request, also where nothing is known.

    Without ``use_profile`` features of the user are not read.
    """

    def __init__(self, catalog: ItemSource, width: int, field_width: int = 32, use_profile: bool = True) -> None:
        super().__init__()
        owners = ("user", "request") if use_profile else ("request",)
        self.features = FeatureInputs(catalog.schema.owned(*owners), field_width)
        self.nobody = nn.Parameter(torch.zeros(1))  # the one input of a log without profiles
        self.mix = nn.Sequential(
            nn.Linear(1 + field_width * self.features.num_parts, 2 * width), nn.LeakyReLU(), nn.Linear(2 * width, width)
        )
        self.features.start(field_width**-0.5)

    def forward(self, batch: Batch) -> Tensor:
        """(B, D)"""
        rows = batch.num_histories
        parts = [self.nobody.expand(rows, 1), *self.features(batch.requests.features, rows)]
        return self.mix(torch.cat(parts, dim=-1))


def padded(values: Tensor, offsets: Tensor, front: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Jagged (T, D) and ``front`` (B, D), one more token of each history -> (B, S, D), mask (B, S) True = token.

    Padding is zero. Written by place rather than gathered, so that the gradient is a gather and not a sum.
    """
    lengths = offsets.diff()
    total, width = values.shape
    shift = int(front is not None)
    if len(lengths) == 1:
        longest = total + shift
    else:
        longest = (int(lengths.max()) if lengths.numel() else 0) + shift
    steps = torch.arange(longest, device=offsets.device)
    mask = steps < lengths[:, None] + shift  # (B, S)
    rows = torch.arange(len(lengths), device=offsets.device) * longest  # (B,) where each history begins
    begins = torch.repeat_interleave(rows + shift - offsets[:-1], lengths, output_size=total)
    places = begins + torch.arange(total, device=offsets.device)
    table = values.new_zeros(len(lengths) * longest, width).index_copy(0, places, values)
    if front is not None:
        table = table.index_copy(0, rows, front.to(table.dtype))
    return table.view(len(lengths), longest, width), mask
