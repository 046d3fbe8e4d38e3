"""A log that grew: exposures of one's own policy behind the events that came before it.

    view = extended(view, data_config, as_dataset_events(exposure_log.read()))      # the reward learns from both

Items, users, vocabularies and what counts as a long view stay those of the first log: a model's catalogue was made with
them. Rows of users or items that the first log does not know teach nobody and are counted in ``notes``.

Trap: a request is numbered inside its user in both logs; without a shift, exposures of two requests would be one slate.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from sidera.core import InputError
from sidera.data.config import DataConfig, View, make_split
from sidera.data.dataset import Dataset, positions_of
from sidera.data.features import FeatureSchema, with_long_view

UNKNOWN = "exposures_of_unknown_users_or_items"  # in the notes


def extended(view: View, config: DataConfig, events: pa.Table) -> View:
    """The view with more events (columns ``user``, ``item``, ``time`` and feedback), split again as ``config`` says.

    InputError when a column that models read is missing or unknown in a row, or when nothing is left.
    """
    dataset = extended_dataset(view.dataset, events, view.schema)
    positive = view.schema.positive
    mask = dataset.feedback[positive].astype(bool) if positive else None
    return View(dataset, make_split(dataset, config, mask), view.schema)


def extended_dataset(dataset: Dataset, events: pa.Table, schema: FeatureSchema) -> Dataset:
    """The data set with these events in their places; ties stand behind what was there."""
    if dataset.time_kind != "seconds":
        raise InputError(f"data set {dataset.name!r} has an order and no times: exposures cannot be put behind it")
    derived = ("long_view",) if schema.long_view_seconds else ()
    for name in ("user", "item", "time", *(column for column in schema.columns if column not in derived)):
        if name not in events.column_names:
            raise InputError(
                f"the exposures have no column {name!r} (found: {', '.join(events.column_names)})",
                fix="write it with the outcomes that followed",
            )
    users, items = (
        positions_of(events[name], pa.array(keys, type=pa.string()))
        for name, keys in (("user", dataset.user_keys), ("item", dataset.item_keys))
    )
    known = (users >= 0) & (items >= 0)
    if not known.any():
        raise InputError(f"none of {events.num_rows} exposures is of a user and an item of {dataset.name!r}")
    users, items, events = users[known], items[known], events.filter(pa.array(known))
    columns = {
        name: _column(name, events, len(users), values.dtype, name in schema.columns)
        for name, values in dataset.feedback.items()
        if name not in derived
    }
    if "request" in columns:
        columns["request"] = columns["request"] + int(dataset.feedback["request"].max()) + 1
    whose = np.concatenate([dataset.event_users, users])
    times = np.concatenate([dataset.times, events["time"].to_numpy().astype(np.int64)])
    order = np.lexsort((times, whose))  # stable
    feedback = {name: np.concatenate([dataset.feedback[name], more])[order] for name, more in columns.items()}
    grown = replace(
        dataset,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(whose, minlength=dataset.num_users))]).astype(np.int64),
        item_ids=np.concatenate([dataset.item_ids, items])[order],
        times=times[order],
        feedback=feedback,
        notes={**dataset.notes, **({UNKNOWN: int((~known).sum())} if not known.all() else {})},
        source="",
    )
    return with_long_view(grown, schema) if derived else grown


def _column(name: str, events: pa.Table, number: int, kind: np.dtype, is_read: bool) -> np.ndarray:
    """(number,) values of one feedback column; what no model reads may be missing: unknown numbers are NaN, marks 0."""
    if name not in events.column_names:
        return np.full(number, np.nan, kind) if kind.kind == "f" else np.zeros(number, kind)
    column = events[name]
    if column.null_count and (is_read or kind.kind != "f"):
        raise InputError(
            f"{column.null_count} of {number} exposures have no {name!r}",
            fix="leave rows of which nothing followed out",
        )
    return column.to_numpy().astype(kind)
