"""Representatives of the events of a user before any position of a data set's log: what training and evaluation read.

The tokens are those of a store that got the events before that position, one by one or all at once. They are equal, not
alike, because a :class:`LifelongHistory` with a ``chunk`` is a function of the events alone. A row costs no clustering:
a user's tree is grown once, its tokens are kept after every chunk (a *checkpoint*), and a row takes those of the last
checkpoint before it and the events from there on as they are. Rows lie all along a history, so representatives at the
split's cut would tell early rows their future.

Memory: 32 bytes a token and checkpoint; a user of 100,000 events with 2,000 representatives and a chunk of 250 has 400
checkpoints, 19 MB. Histories of which at most ``max_representatives - 2 * chunk`` events would be clustered are read
from the log and cost nothing.

Shape legend: N items · D width of their vectors · B rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sidera.batch import Lifelong
from sidera.config import digest
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.representatives import TOKEN, label_bits, lifelong_of
from sidera.store.events import COLUMNS, Events, packed_events
from sidera.store.lifelong import LifelongConfig, LifelongHistory
from sidera.store.splitting import Vectors


def read_whole(
    schema: FeatureSchema, vectors: Vectors, config: LifelongConfig, item_ids: ArrayLike, times: ArrayLike,
    feedback: Mapping[str, Any],
) -> NDArray[Any]:  # fmt: skip
    """Tokens of one history that is given whole, oldest event first."""
    history = LifelongHistory(vectors, config)
    history.append(packed_events(schema, item_ids, times, feedback))
    return history.representatives()


@dataclass(frozen=True)
class _Checkpoints:
    """Tokens of one user's clusters after every chunk from the first that has clusters on."""

    first: int  # chunks in the tree at the first of them
    tokens: list[NDArray[Any]]


class LogRepresentatives:
    """A :class:`sidera.data.representatives.Representatives` of users by id and moments by position of the log."""

    def __init__(self, dataset: Dataset, schema: FeatureSchema, vectors: Vectors, config: LifelongConfig) -> None:
        """``vectors`` (N, D) of the data set's items. InputError unless ``config`` has a chunk."""
        config.check_chunk()
        self.dataset, self.schema, self.config = dataset, schema, config
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)  # decoded once, not for every chunk
        self.log = np.zeros(dataset.num_events, dtype=TOKEN)  # every event for itself, in the log's order
        self.log["item_ids"], self.log["times"], self.log["counts"] = dataset.item_ids, dataset.times, 1
        bits = label_bits(schema, dataset.feedback)
        self.log["labels"] = 0 if bits is None else bits
        for name in ("watch_time", "duration"):
            self.log[name] = dataset.feedback[name] if name in schema.columns else np.nan
        self._of_user: dict[int, _Checkpoints] = {}
        self.identity = digest(["representatives", config, hashlib.sha256(self.vectors.tobytes()).hexdigest()])

    def __call__(self, user_ids: NDArray[np.int64], ends: NDArray[np.int64]) -> Lifelong:
        """Row b: of the events of ``user_ids[b]`` before position ``ends[b]`` of the log, and no others."""
        pairs = zip(user_ids.tolist(), ends.tolist(), strict=True)
        return lifelong_of(self.schema, [self.of(user, end) for user, end in pairs])

    def of(self, user: int, as_of: int) -> NDArray[Any]:
        """Tokens of the events of user id ``user`` before position ``as_of`` of the log."""
        start, config = int(self.dataset.offsets[user]), self.config
        first = config.first_token(as_of - start)
        if first is not None:
            return self.log[start + first : as_of]
        clustered, checkpoints = config.num_clustered(as_of - start), self._checkpoints(user)
        tokens = checkpoints.tokens[clustered // config.chunk - checkpoints.first]
        return np.concatenate([tokens, self.log[start + clustered : as_of]])

    def _checkpoints(self, user: int) -> _Checkpoints:
        if user not in self._of_user:
            start, end = self.dataset.offsets[user : user + 2].tolist()
            rows = self.log[start:end]
            events = Events.of(*(rows[name] if name != "times" else self.dataset.times[start:end] for name in COLUMNS),
                               may_lack_seconds=True)  # fmt: skip
            history, chunk = LifelongHistory(self.vectors, self.config), self.config.chunk
            first, tokens = 0, []
            for number in range(len(events) // chunk):  # of chunks in the tree when one more has come
                history.append(events.take(slice(number * chunk, (number + 1) * chunk)))
                if not history.clusters.is_flat:
                    first = first or number
                    tokens.append(history.clustered())
            self._of_user[user] = _Checkpoints(first, tokens)
        return self._of_user[user]
