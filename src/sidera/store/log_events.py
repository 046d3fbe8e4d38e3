"""A log's feedback columns as the store's events and back, and a log's histories as the representatives of any moment.

The store keeps of an event the item, the second, 31 labels as bits, watch time and duration; a model reads columns by
name. ``data.features.FeatureSchema`` says which: bit i is its i-th label. Columns beside these are not kept.

:class:`LogRepresentatives` is what training and evaluation read: for a user of a data set and a position in its log,
the tokens of a store that was told the events before that position, one by one or all at once. They are equal, not
alike, because a :class:`LifelongHistory` with a ``chunk`` is a function of the events alone. A row costs no
clustering: a user's tree is grown once, its tokens are kept after every chunk (a *checkpoint*), and a row takes
those of the last checkpoint before it and the events from there on as they are. Checkpoints, and not one cut for all,
because rows lie all along a history: representatives at the split's cut would tell early rows their future.

Memory: 28 bytes a token and checkpoint; a user of 100,000 events with 2,000 representatives and a chunk of 250 has 400
checkpoints, 16 MB. Histories of which at most ``max_representatives - 2 * chunk`` events would be clustered are read
from the log and cost nothing.

Shape legend: n events · R tokens of all rows · B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sidera.batch import Lifelong
from sidera.config import digest
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.store.events import Events, ItemTable
from sidera.store.lifelong import LifelongConfig, LifelongHistory, Representatives

MAX_LABEL_BITS = 31
TOKEN = np.dtype(
    [("item_ids", "i4"), ("counts", "i4"), ("times", "i8"), ("labels", "i4"), ("watch_time", "f4"), ("duration", "f4")]
)


def events_of(schema: FeatureSchema, item_ids: ArrayLike, times: ArrayLike, feedback: Mapping[str, Any]) -> Events:
    """Events with their columns, all that ``schema`` names (n,), as the store keeps them; InputError names bad ones."""
    seconds = {name: feedback[name] for name in ("watch_time", "duration") if name in schema.columns}
    nothing = np.full(np.size(np.asarray(item_ids)), np.nan)
    return Events.of(
        item_ids,
        times,
        label_bits(schema, feedback),
        seconds.get("watch_time", nothing),
        seconds.get("duration", nothing),
        may_lack_seconds=True,
    )


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
        here = (values > 0).astype(np.int32) << place
        bits = here if bits is None else bits | here
    return bits


def columns_of(
    schema: FeatureSchema, labels: NDArray[Any], watch_time: NDArray[Any], duration: NDArray[Any]
) -> dict[str, NDArray[np.float32]]:
    """column -> (n,) as models read them."""
    found = {name: ((labels >> place) & 1).astype(np.float32) for place, name in enumerate(schema.labels)}
    seconds = {"watch_time": watch_time, "duration": duration}
    return found | {name: seconds[name].astype(np.float32) for name in schema.columns[len(schema.labels) :]}


def positive_bits(schema: FeatureSchema) -> int | None:
    """The bits that make an event a positive one, None where the schema names no such label."""
    return 1 << schema.labels.index(schema.positive) if schema.positive else None


def tokens_of(events: Events | Representatives) -> NDArray[Any]:
    """(n,) of dtype TOKEN; an event counts for itself."""
    rows = np.zeros(len(events), dtype=TOKEN)
    for name in TOKEN.names or ():
        rows[name] = getattr(events, name, 1) if name == "counts" else getattr(events, name)
    return rows


def lifelong_of(schema: FeatureSchema, rows: Sequence[NDArray[Any]]) -> Lifelong:
    """Tokens (dtype TOKEN) of each history -> what a Batch carries of them, with dense ids for ``items``."""
    joined = np.concatenate([np.empty(0, dtype=TOKEN), *rows])
    columns = columns_of(schema, joined["labels"], joined["watch_time"], joined["duration"])
    return Lifelong(
        items=torch.from_numpy(joined["item_ids"].astype(np.int64)),
        offsets=torch.from_numpy(np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)),
        counts=torch.from_numpy(joined["counts"].astype(np.int64)),
        times=torch.from_numpy(joined["times"].copy()),
        feedback={name: torch.from_numpy(values) for name, values in columns.items()},
    )


def read_whole(
    schema: FeatureSchema, items: ItemTable, config: LifelongConfig, item_ids: ArrayLike, times: ArrayLike,
    feedback: Mapping[str, Any],
) -> NDArray[Any]:  # fmt: skip
    """Tokens of one history that is given whole, oldest event first."""
    history = LifelongHistory(items, config)
    history.append(events_of(schema, item_ids, times, feedback))
    return tokens_of(history.representatives())


@dataclass(frozen=True)
class _Checkpoints:
    """Tokens of one user's clusters after every chunk from the first that has clusters on."""

    first: int  # chunks in the tree at the first of them
    tokens: list[NDArray[Any]]


class LogRepresentatives:
    """Representatives of the events of a user before any position of a data set's log."""

    def __init__(self, dataset: Dataset, schema: FeatureSchema, items: ItemTable, config: LifelongConfig) -> None:
        """``items``: vectors of the data set's items. InputError unless ``config`` has a chunk."""
        if not config.chunk:
            raise InputError("[lifelong] chunk = 0", allowed="1 or more", fix="training needs whole chunks")
        self.dataset, self.schema, self.items, self.config = dataset, schema, items, config
        self.log = np.zeros(dataset.num_events, dtype=TOKEN)  # every event for itself, in the log's order
        self.log["item_ids"], self.log["times"], self.log["counts"] = dataset.item_ids, dataset.times, 1
        bits = label_bits(schema, dataset.feedback)
        self.log["labels"] = 0 if bits is None else bits
        for name in ("watch_time", "duration"):
            self.log[name] = dataset.feedback[name] if name in schema.columns else np.nan
        self._of_user: dict[int, _Checkpoints] = {}
        self.identity = digest(["representatives", config, items.digest(np.arange(items.num_items))])

    def __call__(self, user_ids: NDArray[np.int64], ends: NDArray[np.int64]) -> Lifelong:
        """Row b: of the events of ``user_ids[b]`` before position ``ends[b]`` of the log, and no others."""
        pairs = zip(user_ids.tolist(), ends.tolist(), strict=True)
        return lifelong_of(self.schema, [self._row(user, end) for user, end in pairs])

    def _row(self, user: int, end: int) -> NDArray[Any]:
        start, config = int(self.dataset.offsets[user]), self.config
        clustered = config.num_clustered(end - start)
        if min(clustered, config.max_events) <= config.max_clusters:
            return self.log[max(start, start + clustered - config.max_events) : end]
        found = self._checkpoints(user)
        tokens = found.tokens[clustered // config.chunk - found.first]
        return np.concatenate([tokens, self.log[start + clustered : end]])

    def _checkpoints(self, user: int) -> _Checkpoints:
        if user not in self._of_user:
            start, end = self.dataset.offsets[user : user + 2].tolist()
            mine = self.log[start:end]
            events = Events(**{name: mine[name] for name in ("item_ids", "times", "labels", "watch_time", "duration")})
            history, chunk = LifelongHistory(self.items, self.config), self.config.chunk
            first, tokens = 0, []
            for number in range(len(events) // chunk):  # of chunks in the tree when one more has come
                history.append(events.take(slice(number * chunk, (number + 1) * chunk)))
                if not history.clusters.is_flat:
                    first = first or number
                    tokens.append(tokens_of(history.clustered()))
            self._of_user[user] = _Checkpoints(first, tokens)
        return self._of_user[user]
