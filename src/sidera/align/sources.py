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
from sidera.core import Generator, InputError, SessionGenerator
from sidera.data.batches import RequestRows
from sidera.data.config import View
from sidera.data.features import LONG_VIEW
from sidera.fit.loop import BatchSource

TARGET = "align_target"  # column that marks what a source learns to write
EXPOSURES = 128  # newest ones of a request that a reward may read where the policy reads positives alone


def next_tokens(
    model: nn.Module, view: View, batch_size: int, seed: int = 0, targets: Targets = "positive"
) -> BatchSource:
    """Training batches of the events that ``targets`` names; ``view`` holds every exposure."""
    mask = target_mask(view, targets)
    feed: Any = getattr(model, "feed", None)
    if feed is None or not isinstance(model, Generator) or isinstance(model, SessionGenerator):
        name = type(model).__name__
        raise InputError(f"{name} cannot be aligned", allowed="generators that write one item after a history")
    if getattr(model, "reads_feedback", False):
        dataset = view.dataset.with_feedback(TARGET, mask)
        asked = View(dataset, view.split, replace(view.schema, positive=TARGET))
    else:
        asked = View(view.dataset.keep(mask), view.split.keep(mask), view.schema)
    found: BatchSource = feed.of(model, asked, batch_size, seed)
    return found


def requests(model: nn.Module, view: View, batch_size: int, seed: int = 0) -> BatchSource:
    """What a method rolls out for: requests whose histories hold every exposure, so that a reward can read them.

    A model that reads items alone is shown the positive ones (``reading.as_read``); requests with none are left out.
    """
    if getattr(model, "reads_feedback", False) or not view.schema.columns:
        return next_tokens(model, view, batch_size, seed)
    rows = RequestRows(view.dataset, view.split, view.schema, max(_history(model), EXPOSURES), batch_size, seed)
    positive = np.concatenate([[0], np.cumsum(target_mask(view, "positive"))])
    return rows.kept(positive[rows.ends] > positive[rows.starts], "read")


def exposures(model: nn.Module, view: View, batch_size: int, seed: int = 0) -> RequestRows:
    """Requests with everything that was shown: for learning from logged feedback."""
    return RequestRows(view.dataset, view.split, replace(view.schema, positive=""), _history(model), batch_size, seed)


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


def _history(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.max_history)
