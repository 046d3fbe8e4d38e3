"""The Answerer: requests of item keys in, answers of item keys out, and the log of what was shown.

Life of a request: keys become ids (unknown ones are named in the answer), or a user's history is read from the
behaviour store (``requests.py``) · what the model reads of them is one Batch · the pipeline answers it · ids become
keys and titles · answers to users are logged, signed and with the probability of every code.

A history in which the model can read nothing is answered by the most popular items, and the answer says so
(``cold_start``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from sidera.core import InputError, Recommendation, Request
from sidera.engine.exposures import ExposureWriter, exposure_columns
from sidera.engine.filters import filter_table
from sidera.engine.histories import Behaviour
from sidera.engine.pipeline import Candidates, Pipeline, Query
from sidera.engine.requests import ReadHistory, RequestReader
from sidera.engine.snapshot import Snapshot
from sidera.ops.jagged import Jagged


@dataclass(frozen=True)
class _Asked:
    """A request, what is read of it, and what must not be answered."""

    request: Request
    history: ReadHistory
    left_out: list[int]
    eligible: int | None = None  # items that pass its filter


@dataclass(frozen=True)
class _Row:
    """What one request is answered."""

    item_ids: list[int]
    scores: list[float]
    found: Candidates | None = None  # of its whole group; None: by popularity
    place: int = 0  # of the request in its group


@dataclass(frozen=True, eq=False)
class Answerer:
    """Answers from one snapshot."""

    snapshot: Snapshot
    pipeline: Pipeline
    behaviour: Behaviour | None = None
    exposures: ExposureWriter | None = None

    def __call__(self, requests: Sequence[Request], refuse: bool) -> list[Recommendation]:
        """InputError for a k below 1, and for an unknown item where these are refused."""
        catalog, asked = self.snapshot.catalog, [self._read(request, refuse) for request in requests]
        groups: dict[int, list[int]] = {}  # by beam width: a large k must not change its neighbours' answers
        rows: dict[int, _Row] = {}
        for place, one in enumerate(asked):
            if one.history.warm:
                groups.setdefault(self.pipeline.width(one.request.k), []).append(place)
            else:
                rows[place] = self._by_popularity(one)
        for places in groups.values():
            rows |= zip(places, self._ranked([asked[place] for place in places]), strict=True)
        names = self._log(asked, rows)
        answered = np.array([item for place in range(len(asked)) for item in rows[place].item_ids], dtype=np.int64)
        keys, titles = (iter(texts.take(answered)) for texts in (catalog.item_keys, catalog.titles))  # all at once
        return [
            self._recommendation(one, rows[place], names.get(place, ""), keys, titles)
            for place, one in enumerate(asked)
        ]

    @cached_property
    def reader(self) -> RequestReader:
        snapshot = self.snapshot
        whole = self.pipeline.reads_feedback
        return RequestReader(snapshot.catalog, snapshot.num_readable, snapshot.reading, self.behaviour, whole)

    def _read(self, request: Request, refuse: bool) -> _Asked:
        if request.k < 1:
            raise InputError(f"k = {request.k}", allowed="1 or more")
        catalog, history = self.snapshot.catalog, self.reader.read(request)
        if history.unknown and refuse:
            raise InputError(
                f"the catalogue holds no item {history.unknown[0]!r}",
                allowed=f"one of its {catalog.num_items} item ids",
            )
        excluded = catalog.find_ids(request.exclude).tolist() if request.exclude else []
        left_out = [item for item in excluded if item >= 0]  # what the catalogue does not hold is not answered anyway
        eligible = None if request.filter is None else filter_table(catalog).num_eligible(request.filter)
        return _Asked(request, history, left_out + history.seen_ids, eligible)

    def _ranked(self, asked: Sequence[_Asked]) -> Iterable[_Row]:
        """A group of requests through the pipeline."""
        snapshot = self.snapshot
        batch = self.reader.batch([one.history for one in asked]).to(snapshot.device)
        k = min(max(one.request.k for one in asked), snapshot.catalog.num_items)
        logged = any(self._is_logged(one) for one in asked)
        left_out = Jagged.of([one.left_out for one in asked]).to(snapshot.device)
        filters = [one.request.filter for one in asked]
        excluded = left_out.values, left_out.offsets
        found = self.pipeline(Query(snapshot, batch, k, excluded, log_probs=logged, filters=filters))
        for place, (ids, scores) in enumerate(zip(found.item_ids.tolist(), found.scores.tolist(), strict=True)):
            kept = [item for item in ids if item >= 0][: asked[place].request.k]
            yield _Row(kept, scores[: len(kept)], found, place)

    def _by_popularity(self, asked: _Asked) -> _Row:
        given, catalog = asked.request.filter, self.snapshot.catalog
        allowed = None if given is None else filter_table(catalog).item_mask(given)
        ids = self.snapshot.most_popular(asked.request.k, set(asked.left_out), allowed)
        return _Row(ids, [float(self.snapshot.catalog.popularity[item]) for item in ids])

    def _is_logged(self, asked: _Asked) -> bool:
        return self.exposures is not None and asked.request.user is not None

    def _log(self, asked: Sequence[_Asked], rows: dict[int, _Row]) -> dict[int, str]:
        """Write the answers to requests that name a user; -> place of the request -> name of its answer."""
        places = [place for place, one in enumerate(asked) if self._is_logged(one) and rows[place].item_ids]
        if self.exposures is None or not places:
            return {}
        names = {place: uuid.uuid4().hex for place in places}
        now, num_levels = int(time.time()), self.snapshot.catalog.num_levels
        nothing = torch.full((max(len(rows[place].item_ids) for place in places), num_levels), float("nan"))
        log_probs, shown = [], torch.full((len(places), len(nothing)), -1)
        for number, place in enumerate(places):
            row = rows[place]
            shown[number, : len(row.item_ids)] = torch.tensor(row.item_ids)
            log_probs.append(nothing.clone())
            if row.found is not None and row.found.log_probs is not None:
                log_probs[-1][: len(row.item_ids)] = row.found.log_probs[row.place, : len(row.item_ids)].cpu()
        self.exposures.shown(
            exposure_columns(
                self.snapshot.catalog, shown, torch.stack(log_probs), requests=list(names.values()),
                users=[str(asked[place].request.user) for place in places],
                times=[now if (moment := asked[place].request.as_of) is None else moment for place in places],
                policies=[self._policy(rows[place]) for place in places],
            )
        )  # fmt: skip
        return names

    def _policy(self, row: _Row) -> str:
        return self.snapshot.version if row.found is None else row.found.policy

    def _recommendation(
        self, asked: _Asked, row: _Row, name: str, keys: Iterator[str], titles: Iterator[str | None]
    ) -> Recommendation:
        """``keys`` and ``titles``: of this row's items and of those of the rows behind it."""
        catalog, history, number = self.snapshot.catalog, asked.history, len(row.item_ids)
        return Recommendation(
            item_ids=tuple(row.item_ids),
            item_keys=tuple(islice(keys, number)),
            scores=tuple(row.scores),
            titles=tuple(islice(titles, number)),
            cold_start=row.found is None,
            unknown=history.unknown,
            unread=history.unread,
            items_version=catalog.items_version,
            policy_version=self.snapshot.version,
            reranker_version="" if row.found is None else row.found.reranker,
            codebook_id=catalog.codebook_id,
            unknown_user=history.unknown_user,
            filtered_seen=self.reader.filters_seen(asked.request),
            request=name,
            eligible=asked.eligible,
        )
