"""The engine writes what it answered: exposures with versions and per-token log-probabilities, gathered into parts.

    with ExposureWriter(ExposureLog.open(folder, codebook_id=..., num_levels=...)) as writer:
        parts = Parts(exposures=writer)           # recommend() logs every answer of a request that names its user
        writer.follow({"request": [answer.request], "slot": [0], "click": [True]})

The probabilities are recorded when the answer is given: once weights or catalogue have moved, nobody can compute them
again. One Parquet part per answer would be a thousand files a second, so answers are gathered and written when many or
old enough: a crash loses at most what was gathered in the last seconds, never a part of a file.

Trap: an outcome may arrive while its exposure is still gathered. Both are written in one go, exposures first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sidera.catalog.catalog import Catalog
from sidera.store.exposures import ExposureLog, together

HELD = 100  # times max_rows: exposures kept for a disk that takes none
Columns = Mapping[str, Sequence[Any]]


class ExposureWriter:
    """An exposure log with a buffer in front of it. Any number of threads."""

    def __init__(self, log: ExposureLog, *, max_rows: int = 10_000, max_seconds: float = 5.0) -> None:
        """Written are ``max_rows`` gathered rows, or those of which the oldest is ``max_seconds`` old."""
        self.log, self.max_rows, self.max_seconds = log, max_rows, max_seconds
        self._shown: list[pa.Table] = []
        self._followed: list[pa.Table] = []
        self._since: float | None = None  # when the oldest of them came
        self.num_waiting = 0  # rows taken that are not on the disk yet
        self._failed: OSError | None = None  # of the last write
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._clock = threading.Thread(target=self._watch, name="exposure-log", daemon=True)
        self._clock.start()

    @property
    def problem(self) -> str:
        """Why the last write failed; "" when it did not. What it should have written is still held."""
        return "" if self._failed is None else str(self._failed)

    def shown(self, exposures: pa.Table | Columns) -> None:
        """Take exposures; InputError, with nothing taken, when the log would refuse them.

        A full disk stops no answer: OSError, with nothing taken, only when ``HELD`` times ``max_rows`` rows wait.
        """
        self._take(self._shown, self.log.checked(exposures), patience=HELD)

    def follow(self, outcomes: pa.Table | Columns) -> None:
        """Take what came of exposures; InputError, with nothing taken, when the log would refuse it.

        OSError, with nothing taken, while the disk takes nothing: send it again.
        """
        self._take(self._followed, self.log.checked_outcomes(outcomes), patience=0)

    def flush(self) -> None:
        """Everything taken is on the disk when this returns; OSError, with all of it still held, when it is not."""
        with self._lock:
            self._write()

    def close(self) -> None:
        self._closing.set()
        self._clock.join()
        self.flush()

    def __enter__(self) -> ExposureWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, where: list[pa.Table], table: pa.Table, patience: int) -> None:
        with self._lock:
            if self._failed is not None and self.num_waiting >= patience * self.max_rows:
                self._write()
            where.append(table)
            self.num_waiting += table.num_rows
            self._since = self._since or time.monotonic()
            if self.num_waiting >= self.max_rows:
                self._try()

    def _try(self) -> None:
        try:
            self._write()
        except OSError as error:
            self._failed = error

    def _write(self) -> None:
        if self._shown:
            self.num_waiting -= self.log.append(pa.concat_tables(self._shown))
            self._shown.clear()
        if self._followed:
            self.num_waiting -= self.log.follow(together(self._followed))
            self._followed.clear()
        self._since = self._failed = None

    def _watch(self) -> None:
        while not self._closing.wait(min(1.0, self.max_seconds / 4)):
            with self._lock:
                if self._since is None or time.monotonic() - self._since < self.max_seconds:
                    continue
                self._try()


def exposure_columns(
    catalog: Catalog,
    item_ids: Tensor,
    log_probs: Tensor,
    *,
    requests: Sequence[str],
    users: Sequence[str],
    times: Sequence[int],
    policies: Sequence[str],
) -> dict[str, list[Any]]:
    """What an ExposureLog takes of the answers ``item_ids`` (B, k; -1: empty slot) from the items of ``catalog``.

    ``log_probs`` (B, k, L) of each code of an item (``pipeline.Candidates``); null in the log where they are not
    finite: a scorer wrote no codes, no code of the policy reaches the item, or the history had no event and was
    answered by popularity. The propensity is null: what a search answers is no draw. ``policies``: what the log calls
    who gave each answer (the weights, and a reranker).
    """
    rows, slots = (part.cpu() for part in torch.nonzero(item_ids >= 0, as_tuple=True))
    shown, log_probs = item_ids.cpu()[rows, slots], log_probs.cpu()[rows, slots]
    known = log_probs.isfinite().all(1, keepdim=True).numpy()
    columns: dict[str, list[Any]] = {
        "request": [requests[row] for row in rows.tolist()],
        "slot": slots.tolist(),
        "user": [users[row] for row in rows.tolist()],
        "item": [str(key) for key in catalog.item_keys[shown.numpy()]],
        "time": [int(times[row]) for row in rows.tolist()],
        "policy": [policies[row] for row in rows.tolist()],
        "items_version": [catalog.items_version] * len(rows),
    }
    for level, values in enumerate(np.where(known, log_probs.numpy(), np.nan).T):
        columns[f"log_prob_{level}"] = [None if np.isnan(value) else min(0.0, value) for value in values.tolist()]
    return columns
