"""Representatives: few tokens that stand for the whole history of a user, and how feedback columns are packed in them.

A model that reads representatives (``[model] lifelong = "representatives"``) gets them through one protocol.
``store.log_representatives`` answers for any position of a log, for training and evaluation;
``store.store_representatives`` answers for the users of a history store, for serving. Both give equal tokens for equal
events.

A token is a row of dtype :data:`TOKEN`. Labels are bits: bit i is the i-th label of the schema.

Shape legend: n events · R tokens of one history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sidera.batch import Lifelong
from sidera.core import InputError
from sidera.data.features import FeatureSchema

MAX_LABEL_BITS = 31
TOKEN = np.dtype(
    [("item_ids", "i4"), ("counts", "i4"), ("times", "f8"), ("labels", "i4"), ("watch_time", "f4"), ("duration", "f4")]
)  # times and seconds are means over the events that a token stands for; item and labels are those of one of them
User = TypeVar("User", contravariant=True)
Moment = TypeVar("Moment", contravariant=True)


class Representatives(Protocol[User, Moment]):
    """Tokens of a user as of a moment. A log knows users by id and moments by position, a store by key and second."""

    def of(self, user: User, as_of: Moment) -> NDArray[Any]:
        """(R,) of dtype TOKEN, oldest mean time first: of the events before ``as_of`` and of no others."""


def label_bits(schema: FeatureSchema, feedback: Mapping[str, Any]) -> NDArray[np.int32] | None:
    """(n,) bit i where the i-th label of ``schema`` is set; None where it has no labels."""
    if len(schema.labels) > MAX_LABEL_BITS:
        raise InputError(
            f"the log has {len(schema.labels)} labels, the store keeps {MAX_LABEL_BITS}",
            fix="import the log without those that no model needs",
        )
    bits: NDArray[np.int32] | None = None
    for place, name in enumerate(schema.labels):
        values = np.asarray(feedback[name], dtype=np.float32)
        bad = np.flatnonzero((values != 0) & (values != 1))
        if len(bad):
            raise InputError(f"feedback {name!r} is {values[bad[0]]:g} in event {bad[0]}", allowed="0 or 1 (a label)")
        bit = (values > 0).astype(np.int32) << place
        bits = bit if bits is None else bits | bit
    return bits


def unpacked_columns(
    schema: FeatureSchema, labels: NDArray[Any], watch_time: NDArray[Any], duration: NDArray[Any]
) -> dict[str, NDArray[np.float32]]:
    """column -> (n,) as models read them, from label bits and seconds."""
    bits = np.arange(len(schema.labels), dtype=labels.dtype)[:, None]
    columns = dict(zip(schema.labels, ((labels >> bits) & 1).astype(np.float32), strict=True))
    seconds = {"watch_time": watch_time, "duration": duration}
    return columns | {name: seconds[name].astype(np.float32) for name in schema.columns[len(schema.labels) :]}


def lifelong_of(schema: FeatureSchema, rows: Sequence[NDArray[Any]]) -> Lifelong:
    """Tokens of each history -> what a Batch carries of them, with dense ids for ``items``."""
    joined = np.concatenate([np.empty(0, dtype=TOKEN), *rows])
    columns = unpacked_columns(schema, joined["labels"], joined["watch_time"], joined["duration"])
    return Lifelong(
        items=torch.from_numpy(joined["item_ids"].astype(np.int64)),
        offsets=torch.from_numpy(np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)),
        counts=torch.from_numpy(joined["counts"].astype(np.int64)),
        times=torch.from_numpy(joined["times"].astype(np.int64)),
        feedback={name: torch.from_numpy(values) for name, values in columns.items()},
    )
