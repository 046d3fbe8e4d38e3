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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from sidera.core import InputError, Recommendation, Request
from sidera.engine.exposures import ExposureWriter, exposure_columns
from sidera.engine.filters import filter_table
from sidera.engine.histories import Behaviour
from sidera.engine.pipeline import Candidates, Pipeline, Query
from sidera.engine.requests import ReadHistory, RequestReader
from sidera.engine.snapshot import Snapshot
from sidera.engine.timeline import step
from sidera.ops.jagged import Jagged

Result = TypeVar("Result")


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
    log_probs: np.ndarray | None = None  # (number of items, L) of their codes, where they are logged
    beam: int = 0  # width of its search; 0: none was made


@dataclass(frozen=True, eq=False)
class Answerer:
    """Answers from one snapshot."""

    snapshot: Snapshot
    pipeline: Pipeline
    behaviour: Behaviour | None = None
    exposures: ExposureWriter | None = None

    def __call__(self, requests: Sequence[Request]) -> list[Recommendation | Exception]:
        """An answer or what is wrong, for each: InputError for a k below 1, for an unknown item where these are
        refused. A request that cannot be answered fails alone."""
        catalog, asked = self.snapshot.catalog, dict[int, _Asked]()
        outcomes: dict[int, Recommendation | Exception] = {}
        with step("read"):
            for place, request in enumerate(requests):
                try:
                    asked[place] = self._read(request)
                except Exception as error:
                    outcomes[place] = error
        groups: dict[int, list[int]] = {}  # by beam width: a large k must not change its neighbours' answers
        rows: dict[int, _Row] = {}
        for place, one in asked.items():
            if one.history.warm:
                groups.setdefault(self.pipeline.width(one.request.k), []).append(place)
            else:
                rows[place] = self._by_popularity(one)
        for places in groups.values():
            for place, row in _isolated(lambda some: self._ranked(asked, some), places).items():
                if isinstance(row, Exception):
                    outcomes[place] = row
                else:
                    rows[place] = row
        logged = [place for place in rows if self._is_logged(asked[place]) and rows[place].item_ids]
        with step("exposure log"):
            names = _isolated(lambda some: self._log(asked, rows, some), logged) if logged else {}
        outcomes |= {place: name for place, name in names.items() if isinstance(name, Exception)}
        rows = {place: row for place, row in rows.items() if place not in outcomes}
        answered = np.array([item for row in rows.values() for item in row.item_ids], dtype=np.int64)
        keys, titles = (iter(texts.take(answered)) for texts in (catalog.item_keys, catalog.titles))  # all at once
        for place, row in rows.items():
            outcomes[place] = self._recommendation(asked[place], row, str(names.get(place, "")), keys, titles)
        return [outcomes[place] for place in range(len(requests))]

    @cached_property
    def reader(self) -> RequestReader:
        snapshot = self.snapshot
        whole = self.pipeline.reads_feedback
        return RequestReader(snapshot.catalog, snapshot.num_readable, snapshot.reading, self.behaviour, whole)

    def _read(self, request: Request) -> _Asked:
        if request.k < 1:
            raise InputError(f"k = {request.k}", allowed="1 or more")
        catalog, history = self.snapshot.catalog, self.reader.read(request)
        if history.unknown and request.refuse_unknown:
            raise InputError(
                f"the catalogue holds no item {history.unknown[0]!r}",
                allowed=f"one of its {catalog.num_items} item ids",
            )
        excluded = catalog.find_ids(request.exclude).tolist() if request.exclude else []
        left_out = [item for item in excluded if item >= 0]  # what the catalogue does not hold is not answered anyway
        eligible = None if request.filter is None else filter_table(catalog).num_eligible(request.filter)
        return _Asked(request, history, left_out + history.seen_ids, eligible)

    def _ranked(self, all_asked: Mapping[int, _Asked], places: Sequence[int]) -> dict[int, _Row]:
        """A group of requests through the pipeline; -> by place of the request."""
        snapshot, asked = self.snapshot, [all_asked[place] for place in places]
        batch = self.reader.batch([one.history for one in asked]).to(snapshot.device)
        k = min(max(one.request.k for one in asked), snapshot.catalog.num_items)
        logged = any(self._is_logged(one) for one in asked)
        left_out = Jagged.of([one.left_out for one in asked]).to(snapshot.device)
        filters = [one.request.filter for one in asked]
        excluded = left_out.values, left_out.offsets
        with step("search"):
            found = self.pipeline(Query(snapshot, batch, k, excluded, log_probs=logged, filters=filters))
        beam = self.pipeline.width(asked[0].request.k) if snapshot.generates else 0
        log_probs = None if found.log_probs is None else found.log_probs.cpu().numpy()
        rows: dict[int, _Row] = {}
        for number, (ids, scores) in enumerate(zip(found.item_ids.tolist(), found.scores.tolist(), strict=True)):
            kept = [item for item in ids if item >= 0][: asked[number].request.k]
            of_codes = None if log_probs is None else log_probs[number, : len(kept)]
            rows[places[number]] = _Row(kept, scores[: len(kept)], found, of_codes, beam)
        return rows

    def _by_popularity(self, asked: _Asked) -> _Row:
        given, catalog = asked.request.filter, self.snapshot.catalog
        allowed = None if given is None else filter_table(catalog).item_mask(given)
        ids = self.snapshot.most_popular(asked.request.k, set(asked.left_out), allowed)
        return _Row(ids, [float(self.snapshot.catalog.popularity[item]) for item in ids])

    def _is_logged(self, asked: _Asked) -> bool:
        return self.exposures is not None and asked.request.user is not None

    def _log(self, asked: Mapping[int, _Asked], rows: Mapping[int, _Row], places: Sequence[int]) -> dict[int, str]:
        """Write the answers to requests that name a user; -> place of the request -> name of its answer."""
        if self.exposures is None:
            return {}
        names = {place: uuid.uuid4().hex for place in places}
        now, num_levels = int(time.time()), self.snapshot.catalog.num_levels
        shown = np.full((len(places), max(len(rows[place].item_ids) for place in places)), -1, dtype=np.int64)
        log_probs = np.full((*shown.shape, num_levels), np.nan, dtype=np.float32)
        for number, place in enumerate(places):
            row = rows[place]
            shown[number, : len(row.item_ids)] = row.item_ids
            if row.log_probs is not None:
                log_probs[number, : len(row.item_ids)] = row.log_probs
        answered = torch.from_numpy(shown), torch.from_numpy(log_probs)
        self.exposures.shown(
            exposure_columns(
                self.snapshot.catalog, *answered, requests=list(names.values()),
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
            unseen=history.unseen,
            items_version=catalog.items_version,
            policy_version=self.snapshot.version,
            expert_version="" if row.found is None else row.found.expert_version,
            reranker_version="" if row.found is None else row.found.reranker,
            codebook_id=catalog.codebook_id,
            unknown_user=history.unknown_user,
            filtered_seen=self.reader.filters_seen(asked.request),
            request=name,
            beam=row.beam,
            eligible=asked.eligible,
        )


def _isolated(
    work: Callable[[Sequence[int]], dict[int, Result]], places: Sequence[int]
) -> dict[int, Result | Exception]:
    """Work on all places at once; where that fails, on each half alone: an error stays with the request that has it.

    A disk that takes nothing takes no half either."""
    try:
        return dict(work(places))
    except Exception as error:
        if len(places) == 1 or isinstance(error, OSError):
            return dict.fromkeys(places, error)
        middle = len(places) // 2
        return _isolated(work, places[:middle]) | _isolated(work, places[middle:])
