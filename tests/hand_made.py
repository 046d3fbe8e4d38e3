"""Batches written down by hand, for tests that need no log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from sidera.batch import Batch, Lifelong, Reads, Requests, TargetKind
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import LogReading, Reading, Wanted


def read_log(
    dataset: Dataset, max_events: int, schema: FeatureSchema | None = None, items: ItemTable | None = None
) -> LogReading:
    """With a schema: every event with its feedback. Without: the item ids."""
    reads = Reads(max_events, "positive" if schema is None else "all")
    table = items or ItemTable.plain(dataset.num_items)
    return Reading(schema or FeatureSchema(), table, reads).over(dataset)


def finder(ids: Mapping[str, int]) -> Callable[[Sequence[str]], np.ndarray]:
    """As ``Catalog.find_ids``."""
    return lambda keys: np.array([ids.get(key, -1) for key in keys], dtype=np.int64)


def table_of(catalog: Any) -> ItemTable:
    """Of as much of a Catalog as tests make."""
    return ItemTable(catalog.codes, getattr(catalog, "features", {}))


def hand_made(
    item_ids: Tensor,
    offsets: Tensor,
    target_ids: Tensor | None = None,
    *,
    items: Any = None,
    kind: TargetKind | None = None,
    target_offsets: Tensor | None = None,
    times: Tensor | None = None,
    feedback: Mapping[str, Tensor] | None = None,
    target_feedback: Mapping[str, Tensor] | None = None,
    user_ids: Tensor | None = None,
    as_of: Tensor | None = None,
    profiles: Mapping[str, Tensor] | None = None,
    lifelong: Lifelong | None = None,
    global_count: int | None = None,
) -> Batch:
    """``items``: the table whose rows the ids are, or its catalogue; by default nothing is known of the items.

    ``kind`` of the targets: by default "request" with ``target_offsets``, "history" for one a history, else "event".
    """
    wanted = None
    if target_ids is not None:
        if kind is None:
            one = len(target_ids) == len(offsets) - 1
            kind = "request" if target_offsets is not None else "history" if one else "event"
        bounds = target_offsets if target_offsets is not None else offsets if kind == "event" else None
        wanted = Wanted(
            kind, target_ids.numpy(), None if bounds is None else bounds.numpy(),
            {name: values.numpy() for name, values in (target_feedback or {}).items()},
        )  # fmt: skip
    named = [part.numel() and int(part.max()) for part in (item_ids, target_ids) if part is not None]
    table = (
        ItemTable.plain(1 + max(named)) if items is None else items if isinstance(items, ItemTable) else table_of(items)
    )
    batch = Reading(FeatureSchema(), table, Reads(1)).batch(
        item_ids.numpy(), offsets.numpy(), times=None if times is None else times.numpy(),
        requests=Requests(user_ids, as_of, profiles or {}), wanted=wanted, lifelong=lifelong,
        global_count=global_count, whole=True,
    )  # fmt: skip
    return replace(batch, events=replace(batch.events, feedback=feedback or {}))


def changed(batch: Batch, items: Any = None, **changes: Any) -> Batch:
    """The batch with other columns, named as in :func:`hand_made`. ``items``: needed where other items are named."""
    events, requests, targets, lifelong = batch.events, batch.requests, batch.targets, batch.lifelong
    given: dict[str, Any] = {
        "item_ids": batch.item_ids, "offsets": events.offsets, "times": events.times, "feedback": events.feedback,
        "user_ids": requests.user_ids, "as_of": requests.as_of, "profiles": requests.features,
        "lifelong": lifelong and replace(lifelong, items=batch.items.ids[lifelong.items]),
        "global_count": batch.global_count,
    }  # fmt: skip
    if targets is not None and changes.get("target_ids", targets) is not None:
        given |= {
            "target_ids": batch.target_ids, "kind": targets.kind, "target_feedback": targets.feedback,
            "target_offsets": targets.offsets if targets.kind not in ("event", "history") else None,
        }  # fmt: skip
    if items is None:
        rows = int(batch.items.ids.max()) + 1
        codes = np.zeros((rows, batch.items.codes.shape[1]), dtype=np.int64)
        codes[batch.items.ids] = batch.items.codes
        features = {name: np.zeros(rows, dtype=np.int64) for name in batch.items.features}
        for name, values in batch.items.features.items():
            features[name][batch.items.ids] = values
        items = ItemTable(codes, features)
    return hand_made(items=items, **(given | changes))
