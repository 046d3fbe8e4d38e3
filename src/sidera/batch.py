"""What a model reads: groups of columns, jagged where lengths differ.

A Batch carries a sub-table of the *distinct* items that it speaks of (``items``; all items, where they are fewer than
the places that name one), and events, targets and representatives point into it. So a model looks an item up once
however often it occurs, reads codes and features of items that came after its training, and owns no row of the
catalogue.

``data.reading.Reading`` builds batches. A model never cuts a history: it declares what it ``Reads``.

Shape legend: T events of all histories · B histories (requests) · U distinct items · L levels of a semantic ID ·
G targets of all histories · R representatives of all histories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sidera.core import InputError
from sidera.ops.jagged import Columns, JaggedColumns

TargetKind = Literal["event", "history", "request", "list", "exposure"]


@dataclass(frozen=True)
class Reads:
    """What a model reads of a history; ``data.reading.Reading`` obeys it."""

    max_events: int  # newest ones
    events: Literal["positive", "all"] = (
        "positive"  # all: with feedback, times, and features of users, requests, events
    )
    recent: int | None = None  # of these events, so many newest are read whatever they are, older ones when positive
    lifelong: Any | None = None  # a ``store.lifelong.LifelongConfig``: representatives of the whole history too

    def __post_init__(self) -> None:
        if self.max_events < 1:
            raise InputError(f"max_history = {self.max_events}", allowed="1 or more")

    @property
    def untouched(self) -> int:
        """The longest history of which every event is read."""
        return self.max_events if self.recent is None else min(self.recent, self.max_events)

    @property
    def feedback(self) -> bool:
        """Whether batches carry what came of every event, and features of users, requests and events."""
        return self.events == "all"


@dataclass(frozen=True)
class Items(Columns):
    """The items of a batch, each once."""

    ids: Tensor  # (U,) int64 ascending: dense ids, rows of the ItemTable
    codes: Tensor  # (U, L) int64 semantic IDs; L = 0 where the catalogue has none
    features: Mapping[str, Tensor] = field(default_factory=dict)  # feature -> (U, ...), as ``data.feature`` encodes it

    @property
    def num_items(self) -> int:
        return self.ids.numel()


@dataclass(frozen=True)
class Events(JaggedColumns):
    """Histories, oldest event first."""

    items: Tensor  # (T,) int64 positions in ``Batch.items``
    offsets: Tensor  # (B+1,) int64
    times: Tensor | None = None  # (T,) int64, unix seconds
    feedback: Mapping[str, Tensor] = field(default_factory=dict)  # column -> (T,) float32
    features: Mapping[str, Tensor] = field(default_factory=dict)  # feature of events -> (T, ...)


@dataclass(frozen=True)
class Requests(Columns):
    """What is known of each request."""

    user_ids: Tensor | None = None  # (B,) int64
    as_of: Tensor | None = None  # (B,) int64, unix seconds: the moment of the request
    features: Mapping[str, Tensor] = field(default_factory=dict)  # feature of the user or the request -> (B, ...)


@dataclass(frozen=True)
class Targets(JaggedColumns):
    """What should follow.

    ``kind`` says what a row's targets are: "event" one after every event, "history" one after the history, "request"
    those of one request that count, "list" a list in its order, "exposure" all that a request showed, which
    ``feedback`` tells apart.
    """

    kind: TargetKind
    items: Tensor  # (G,) int64 positions in ``Batch.items``
    offsets: Tensor  # (B+1,) int64
    feedback: Mapping[str, Tensor] = field(default_factory=dict)  # column -> (G,) float32


@dataclass(frozen=True)
class Lifelong(JaggedColumns):
    """Whole histories as a few representatives each, jagged, oldest first; see ``store.lifelong``.

    A representative is an event that stands for others like it: the item and labels of the one nearest to their centre,
    their mean time and seconds. In a history short enough every event stands for itself.
    """

    items: Tensor  # (R,) int64 positions in ``Batch.items``
    offsets: Tensor  # (B+1,) int64
    counts: Tensor  # (R,) int64, events that each stands for
    times: Tensor  # (R,) int64, unix seconds
    feedback: Mapping[str, Tensor] = field(default_factory=dict)  # column -> (R,) float32


@dataclass(frozen=True)
class Batch:
    """Histories, what is asked of them, the items they speak of and, in training, what should follow."""

    events: Events
    items: Items
    requests: Requests = field(default_factory=Requests)
    targets: Targets | None = None  # None when answering
    lifelong: Lifelong | None = None  # for models that read representatives; ``events`` are the end of the history
    global_count: int | None = None  # targets over all ranks: a loss divided by it does not depend on the cut

    @property
    def num_events(self) -> int:
        return self.events.num_values

    @property
    def num_histories(self) -> int:
        return self.events.num_rows

    @property
    def lengths(self) -> Tensor:
        """(B,) events per history."""
        return self.events.lengths

    @property
    def item_ids(self) -> Tensor:
        """(T,) dense ids of the events' items."""
        return self.items.ids[self.events.items]

    def targets_of(self, *kinds: TargetKind) -> Targets:
        """The targets; InputError unless they are of one of these kinds (none named: of any)."""
        if self.targets is None or (kinds and self.targets.kind not in kinds):
            found = "no targets" if self.targets is None else f"targets of kind {self.targets.kind!r}"
            allowed = f"targets of kind {' or '.join(kinds)}" if kinds else "a batch with targets"
            raise InputError(f"the batch has {found}", allowed=allowed, fix="train on batches of the model's own feed")
        return self.targets

    def target_ids_of(self, *kinds: TargetKind) -> Tensor:
        """(G,) dense ids of the targets, as :meth:`targets_of`."""
        return self.items.ids[self.targets_of(*kinds).items]

    @property
    def target_ids(self) -> Tensor:
        """(G,) dense ids of the targets, of whatever kind."""
        return self.target_ids_of()

    def cut(self, low: int, high: int) -> Batch:
        """The histories ``low`` to ``high - 1`` with all that belongs to them."""
        return replace(
            self,
            events=self.events.cut(low, high),
            requests=self.requests.take(slice(low, high)),
            targets=None if self.targets is None else self.targets.cut(low, high),
            lifelong=None if self.lifelong is None else self.lifelong.cut(low, high),
        )

    def rows(self, rows: Tensor) -> Batch:
        """The histories ``rows`` (n,) for answering: their targets stay behind."""
        lifelong = None if self.lifelong is None else self.lifelong.rows(rows)
        return Batch(self.events.rows(rows), self.items, self.requests.take(rows), lifelong=lifelong)

    def newest(self, count: int) -> Batch:
        """Whole histories cut to their newest ``count`` events; what should have followed stays behind."""
        events = self.events.newest(count)
        return self if events is self.events else replace(self, events=events, targets=None)

    def keep(self, mask: Tensor) -> Batch:
        """The same histories with only the events that a mask (T,) names; targets belong to histories and stay."""
        return replace(self, events=self.events.keep(mask))

    def to(self, device: torch.device | str) -> Batch:
        if self.events.offsets.device == torch.device(device):
            return self
        moved: dict[str, Any] = {
            name: group.to(device, non_blocking=True)
            for name, group in vars(self).items()
            if isinstance(group, Columns)
        }
        return replace(self, **moved)
