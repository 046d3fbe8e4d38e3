"""The engine writes what it answered, before the answer leaves: with versions and per-token log-probabilities.

    with ExposureWriter(ExposureLog.open(folder, codebook_id=..., num_levels=...)) as writer:
        parts = Parts(exposures=writer)           # recommend() logs every answer of a request that names its user
        writer.follow({"request": [answer.request], "slot": [0], "click": [True]})

The probabilities are recorded when the answer is given: once weights or catalogue have moved, nobody can compute them
again. The answers of one batch are one write, and batches of several threads share a sync. Many small parts are joined
by a thread of the writer's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.store.exposures import ExposureLog

HOUR, DAY = 3600, 86_400  # seconds
REST = 0.002  # seconds: to join a thousand parts at a stretch would slow each answer of a tenth of a second
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Retention:
    """What a log keeps; 0: everything."""

    days: float = 0.0  # exposures that are older go
    megabytes: float = 0.0  # MiB of the log's parts; beyond, the oldest go

    def __post_init__(self) -> None:
        if not (0 <= self.days < 1e6 and 0 <= self.megabytes < 1e9):
            raise InputError(
                f"the log is to keep {self.days:g} days and {self.megabytes:g} MiB", allowed="0 (everything) or more"
            )


class ExposureWriter:
    """An exposure log that is held open and compacted. Any number of threads."""

    def __init__(
        self, log: ExposureLog, *, max_parts: int = 1024, retention: Retention | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """Compacted after ``max_parts`` writes, and then what ``retention`` lets go, goes."""
        self.log, self.max_parts, self.retention, self.now = log.hold(), max_parts, retention or Retention(), now
        self._looked = 0.0  # when the age of the log was looked at
        self._failed: Exception | None = None  # of the last write
        self._parts = 0  # written since the log was compacted
        self._many = threading.Event()
        self._closing = False
        self._compacting = threading.Thread(target=self._compact, name="exposure-log", daemon=True)
        self._compacting.start()

    @property
    def problem(self) -> str:
        """Why the last write failed; "" when it did not."""
        return "" if self._failed is None else str(self._failed)

    def shown(self, exposures: pa.Table | Columns) -> None:
        """Write exposures; they are durable when this returns. InputError when the log refuses them, OSError when the
        disk does not take them: nothing is written, and the answers must not leave."""
        self._write(self.log.append, exposures)

    def follow(self, outcomes: pa.Table | Columns) -> None:
        """Write what came of exposures; InputError and OSError as for :meth:`shown`."""
        self._write(self.log.follow, outcomes)

    def close(self) -> None:
        self._closing = True
        self._many.set()
        self._compacting.join()
        self.log.close()

    def __enter__(self) -> ExposureWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, write: Callable[[pa.Table | Columns], int], table: pa.Table | Columns) -> None:
        try:
            write(table)
        except OSError as error:
            self._failed = error
            raise
        self._failed = None
        self._parts += 1
        if self._parts >= self.max_parts:
            self._many.set()

    def _compact(self) -> None:
        while True:
            self._many.wait()
            self._many.clear()
            self._parts, closing = 0, self._closing  # read first: the last round sees every write
            try:
                self.log.compact(0.0 if closing else REST)
                self._let_go()
            except (OSError, ValueError) as error:  # a full disk, a damaged part: what is written stays as it is
                self._failed = error
            if closing:
                return

    def _let_go(self) -> None:
        """What is too old, looked at once an hour, and what is too much."""
        since, most = None, self.retention.megabytes * 2**20
        if self.retention.days and not 0 <= self.now() - self._looked < HOUR:
            self._looked = self.now()
            since = int(self.now() - DAY * self.retention.days)
        if since is not None or most:
            self.log.retain(since, int(most) or None)


def exposure_columns(
    catalog: Catalog,
    item_ids: Tensor,
    log_probs: Tensor,
    *,
    requests: Sequence[str],
    users: Sequence[str],
    times: Sequence[int],
    policies: Sequence[str],
) -> dict[str, Any]:
    """What an ExposureLog takes of the answers ``item_ids`` (B, k; -1: empty slot) from the items of ``catalog``.

    ``log_probs`` (B, k, L) of each code of an item (``pipeline.Candidates``); null in the log where they are not
    finite: a scorer wrote no codes, no code of the policy reaches the item, or the history had no event and was
    answered by popularity. The propensity is null: what a search answers is no draw. ``policies``: what the log calls
    who gave each answer (the weights, and a reranker).
    """
    ids, found = item_ids.cpu().numpy(), log_probs.cpu().numpy()
    rows, slots = np.nonzero(ids >= 0)
    found, of_rows = found[rows, slots], rows.tolist()
    unknown = ~np.isfinite(found).all(1)
    columns: dict[str, Any] = {
        "request": [requests[row] for row in of_rows],
        "slot": slots.astype(np.int16),
        "user": [users[row] for row in of_rows],
        "item": list(map(str, catalog.item_keys.take(ids[rows, slots]))),
        "time": np.array([times[row] for row in of_rows], dtype=np.int64),
        "policy": [policies[row] for row in of_rows],
        "items_version": np.full(len(rows), catalog.items_version, dtype=np.int64),
    }
    for level, values in enumerate(np.minimum(found, 0, dtype=np.float32).T):
        columns[f"log_prob_{level}"] = pa.array(values, pa.float32(), mask=unknown)
    return columns
