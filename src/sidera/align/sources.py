"""Batches of alignment: next tokens of what was worth recommending, and every exposure with its feedback.

The controls live here: ``long_view`` learns next tokens of long views only, ``rsft`` those of the better half by play
time (rejection sampling fine-tuning). A model that reads feedback keeps every exposure in its histories and only the
targets change; one that reads items alone gets histories of the same kind as its targets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from sidera.align.methods import Targets
from sidera.batch import Reads
from sidera.core import InputError
from sidera.data.batches import ExposureRows, RequestRows
from sidera.data.config import View
from sidera.data.features import LONG_VIEW
from sidera.data.items import ItemTable
from sidera.data.reading import Reading
from sidera.fit.loop import BatchSource
from sidera.roles import Generator, SessionGenerator

EXPOSURES = 128  # newest ones of a request that a reward may read where the policy reads positives alone


def next_tokens(
    model: nn.Module, view: View, items: ItemTable, batch_size: int, seed: int = 0, targets: Targets = "positive"
) -> BatchSource:
    """Training batches of the events that ``targets`` names; ``view`` holds every exposure."""
    mask, reading, feed = target_mask(view, targets), reading_of(model, view, items), feed_of(model)
    found: BatchSource
    if reading.reads.feedback:
        found = feed(reading.over(view.dataset), view.split, batch_size, seed, target_mask=mask)
    else:
        found = feed(reading.over(view.dataset.keep(mask)), view.split.keep(mask), batch_size, seed)
    return found


def requests(model: nn.Module, view: View, items: ItemTable, batch_size: int, seed: int = 0) -> BatchSource:
    """What a method rolls out for: requests whose histories hold every exposure, so that a reward can read them.

    A model that reads items alone is shown the positive ones (``step.read_requests``); requests with none are left out.
    """
    feed_of(model)
    reading = reading_of(model, view, items)
    if not view.schema.columns:
        return next_tokens(model, view, items, batch_size, seed)
    every = whole(reading)
    if reading.reads.feedback:
        return RequestRows(every.over(view.dataset), view.split, batch_size, seed)
    every = replace(every, reads=replace(every.reads, max_events=max(reading.reads.max_events, EXPOSURES)))
    rows = RequestRows(every.over(view.dataset), view.split, batch_size, seed)
    positive = np.concatenate([[0], np.cumsum(target_mask(view, "positive"))])
    return rows.kept(positive[rows.ends] > positive[rows.starts], "read")


def exposures(model: nn.Module, view: View, items: ItemTable, batch_size: int, seed: int = 0) -> ExposureRows:
    """Requests with everything that was shown: for learning from logged feedback."""
    reading = whole(reading_of(model, view, items)).over(view.dataset)
    return ExposureRows(reading, view.split, batch_size, seed)


def feed_of(model: nn.Module) -> Any:
    """What the model trains on; InputError unless it can be aligned."""
    feed = getattr(model, "feed", None)
    if feed is None or not isinstance(model, Generator) or isinstance(model, SessionGenerator):
        name = type(model).__name__
        raise InputError(f"{name} cannot be aligned", allowed="generators that write one item after a history")
    return feed


def whole(reading: Reading) -> Reading:
    """Every exposure of the newest events: a reward reads those too that the policy leaves out."""
    return replace(reading, reads=Reads(reading.reads.max_events, "all"))


def reading_of(model: nn.Module, view: View, items: ItemTable) -> Reading:
    """How the policy reads this log."""
    reads: Any = model.reads
    return Reading(view.schema, items, reads)


def target_mask(view: View, targets: Targets) -> np.ndarray:
    """(E,) bool: the events worth writing."""
    dataset, schema = view.dataset, view.schema
    known = np.ones(dataset.num_events, dtype=bool)
    positive = dataset.feedback[schema.positive].astype(bool) if schema.positive else known
    if targets == "positive":
        return positive
    column = LONG_VIEW if targets == "long_view" else "watch_time"
    if column not in dataset.feedback:
        raise InputError(f"targets {targets!r} need the feedback column {column!r}", fix="use a log that has it")
    if targets == "long_view":
        return np.asarray(dataset.feedback[LONG_VIEW], dtype=bool)
    watched = np.asarray(dataset.feedback["watch_time"], dtype=np.float32)
    trained = np.arange(dataset.num_events) < view.split.train_ends[dataset.event_users]
    return positive & (watched >= np.median(watched[positive & trained]))
