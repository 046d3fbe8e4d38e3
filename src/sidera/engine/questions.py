"""What else people ask of a recommender: score these items, order this list, what is like this, what goes with a cart,
what is popular.

    ask = Questions(recommender)
    ask.score(["cup-3", "cup-6"], ["cup-9", "cup-4"])         # how likely is each of these after this history?
    ask.similar("cup-3", k=10)                                # nearest by vectors
    ask.related(["cup-3", "tea-1"], k=10)                     # nearest to a cart as a whole
    ask.popular(k=10, since=now - 7 * 86400)                  # of the behaviour store; log=: of a data folder

Scores of given items are those of a search that finds them, without the search: a generator multiplies the
probabilities of an item's own codes (``decode.given``), a hybrid fuses them with what vectors say. A
model that writes lists has no such search: its lists are scored as a whole. Every answer is of one snapshot, taken when
the question comes.

Shape legend: N items · D dims · C items of a question · L levels of a semantic ID.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sidera.core import ArtifactError, Filter, InputError, Request
from sidera.data.dataset import Dataset
from sidera.decode.given import given_log_probs
from sidera.decode.hybrid import hybrid_scores
from sidera.decode.select import best_first
from sidera.engine.expert import Expert
from sidera.engine.filters import filter_table
from sidera.engine.pipeline import Query
from sidera.engine.recommender import Recommender
from sidera.engine.requests import RequestReader, keys_of_items, requests_of
from sidera.engine.snapshot import Snapshot
from sidera.roles import HybridGenerator, Retriever

CHUNK = 1 << 16  # items whose vectors are held at a time
MAX_SECOND = 2**40
NEVER = float("-inf")  # the score of an item that the model cannot give


@dataclass(frozen=True)
class ItemScore:
    """One item of an answer."""

    item: str  # its key
    score: float
    title: str | None = None


class Questions:
    """Questions to one Recommender beside :meth:`Recommender.recommend`."""

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender

    # -- given items ----------------------------------------------------------------------------------------------

    def score(self, history: Sequence[str | int] | Request, items: Sequence[str | int]) -> list[ItemScore]:
        """How likely each of these items is after the history, in their order.

        A generator gives the log-probability of the item, with an expert beside it the score that joins both, a scorer
        its score; all are -inf for an item that was removed, or that the model cannot give. InputError for an item that
        the catalogue does not hold, for none at all, and for a history in which the model can read nothing.
        """
        snapshot, keys = self.recommender.snapshot, keys_of_items(items, "list")
        ids = self._ids(snapshot, keys)
        query = self._query(snapshot, history, len(ids))
        wanted = torch.from_numpy(ids)[None].to(snapshot.device)
        scores = given_scores(query, wanted, self.recommender.serving.expert)[0]
        return _answers(snapshot, ids.tolist(), scores.tolist())

    def rerank(self, history: Sequence[str | int] | Request, items: Sequence[str | int]) -> list[ItemScore]:
        """The same items, the most likely first. Equal scores keep the order of the list."""
        scored = self.score(history, items)
        return sorted(scored, key=lambda one: -one.score)

    # -- neighbours -----------------------------------------------------------------------------------------------

    def similar(self, item: str | int, k: int = 10) -> list[ItemScore]:
        """The ``k`` items nearest to one, by the cosine of their vectors; never the item itself or a removed one."""
        return self.related([item], k)

    def related(self, cart: Sequence[str | int], k: int = 10) -> list[ItemScore]:
        """What goes with the items of a cart as a whole: the mean cosine to each of them. Their order says nothing.

        The vectors are the catalogue's (:attr:`Catalog.item_vectors`), or a retriever's own where that has none.
        """
        if k < 1:
            raise InputError(f"k = {k}", allowed="1 or more")
        snapshot, keys = self.recommender.snapshot, keys_of_items(cart, "cart")
        ids = self._ids(snapshot, list(dict.fromkeys(keys)))
        scores = torch.cat(list(_likeness(snapshot, ids)))
        scores[torch.from_numpy(ids)] = NEVER
        scores[torch.from_numpy(np.asarray(snapshot.catalog.removed))[: len(scores)]] = NEVER
        return _best(snapshot, scores, k)

    # -- what most people take --------------------------------------------------------------------------------------

    def popular(
        self, k: int = 10, *, category: tuple[str, str] | None = None, since: int | None = None,
        until: int | None = None, events: Sequence[str] = (), log: Dataset | None = None,
    ) -> list[ItemScore]:  # fmt: skip
        """The ``k`` items with the most events, as :meth:`popular_since` finds them."""
        return self.popular_since(k, category=category, since=since, until=until, events=events, log=log)[0]

    def popular_since(
        self, k: int = 10, *, category: tuple[str, str] | None = None, since: int | None = None,
        until: int | None = None, events: Sequence[str] = (), log: Dataset | None = None,
    ) -> tuple[list[ItemScore], int | None]:  # fmt: skip
        """The ``k`` items with the most events, and the second from which on these are counted (None: from the first).

        Events are those of the training log, those of ``log``, or, with ``since``, ``until`` or ``events`` and without
        a log, those of the behaviour store. ``until`` is not in the window. ``category``: a field of the items and its
        value. ``events``: names of feedback columns such as "click"; an event counts that has one of them (none: what
        the model calls positive in a store, every event in a log). Items without an event are not answered.
        InputError for a window without a log or a store, an unknown field, value or event.
        """
        if k < 1:
            raise InputError(f"k = {k}", allowed="1 or more")
        catalog, behaviour = self.recommender.snapshot.catalog, self.recommender.behaviour
        asked, begin = since is not None or until is not None or bool(events), None
        if log is not None:
            if log.time_kind == "order" and (since is not None or until is not None):
                raise InputError(f"the times of {log.name!r} are only an order", fix="leave the window out")
            counts, begin = _counts(self.recommender.snapshot, log, since, until, events), since
        elif not asked:
            counts = np.asarray(catalog.popularity).astype(np.float64)
        elif behaviour is None:
            raise InputError(
                "a window or an event without a log",
                fix="open a behaviour store (serve with --store), or name the data folder whose events are counted",
            )
        else:
            end = MAX_SECOND if until is None else until
            counts, begin = behaviour.counts(since or 0, end, events)
        allowed_mask = (counts > 0) & ~np.asarray(catalog.removed)
        if category is not None:
            field, value = category
            fits_mask = filter_table(catalog).item_mask(Filter.of({field: value}))
            if not fits_mask.any():
                raise InputError(f"no item has {field} = {value!r}", allowed="a value that items have")
            allowed_mask &= fits_mask
        scores = torch.from_numpy(np.where(allowed_mask, counts, NEVER)).float()
        return _best(self.recommender.snapshot, scores, k), begin

    # -- inside -----------------------------------------------------------------------------------------------------

    def _ids(self, snapshot: Snapshot, keys: Sequence[str]) -> np.ndarray:
        if not keys:
            raise InputError("no item is named", allowed="1 or more")
        return snapshot.catalog.ids_of(keys)

    def _query(self, snapshot: Snapshot, history: Sequence[str | int] | Request, number: int) -> Query:
        (request,) = requests_of([history], k=1, filter_seen=False)
        recommender = self.recommender
        reader = RequestReader(snapshot.catalog, snapshot.num_readable, snapshot.reading, recommender.behaviour)
        read = reader.read(request)
        if not read.warm:
            raise InputError(
                "the model can read nothing of the history", fix="give a history with a known item, or use popular"
            )
        return Query(snapshot, reader.batch([read]).to(snapshot.device), number)


@torch.inference_mode()
def given_scores(query: Query, item_ids: Tensor, expert: Expert | None = None) -> Tensor:
    """(B, C) items -> (B, C) float32: log-probabilities of a generator, what an ``expert`` makes of these, scores of a
    scorer; -inf where there is none."""
    snapshot = query.snapshot
    if snapshot.generates:
        codes = snapshot.catalog.items.codes_of(item_ids)  # (B, C, L)
        with snapshot.answering():
            if snapshot.is_hybrid:
                scores = hybrid_scores(cast(HybridGenerator, snapshot.generator), query.context, item_ids, codes)
            else:  # -inf where no code of the model reaches an item
                scores = given_log_probs(snapshot.generator, query.context, codes)
        if expert is not None:
            scores = expert.given(query, item_ids, scores)
    else:
        with snapshot.answering():
            whole = snapshot.scorer.item_scores(query.read).float()  # (B, N known)
        late_mask = item_ids >= whole.shape[1]
        scores = whole.gather(1, item_ids.masked_fill(late_mask, 0)).masked_fill(late_mask, NEVER)
    if scores.isnan().any():
        problem = f"the weights {snapshot.version} give scores that are no numbers"
        raise ArtifactError(problem, fix="train the model again, or load earlier weights")
    alive = snapshot.alive_mask
    return scores if alive is None else scores.masked_fill(~alive[item_ids], NEVER)


def _likeness(snapshot: Snapshot, ids: np.ndarray) -> Iterator[Tensor]:
    """Chunks of (N,): the mean cosine of every item to these (n,)."""
    vectors = snapshot.catalog.item_vectors
    own = snapshot.model
    if snapshot.catalog.has_codes:
        num_items = snapshot.catalog.num_items

        def rows(which: np.ndarray) -> Tensor:
            return torch.from_numpy(np.asarray(vectors[which]))
    elif isinstance(own, Retriever):
        with torch.inference_mode(), snapshot.answering():
            table = cast(Retriever, own).item_vectors().float().cpu()
        num_items = len(table)

        def rows(which: np.ndarray) -> Tensor:
            return table[torch.from_numpy(which)]
    else:
        raise InputError(
            "neither the catalogue nor the model has vectors of the items",
            fix="build the catalogue with codes, or ask a model that has item vectors",
        )
    if (ids >= num_items).any():
        late = snapshot.catalog.item_keys[int(ids[ids >= num_items][0])]
        raise InputError(f"item {late!r} came after the training, and the model has no vector of it")
    centre = torch.nn.functional.normalize(rows(ids), dim=-1).mean(0)  # (D,): the mean of cosines is one product
    for start in range(0, num_items, CHUNK):
        chunk = rows(np.arange(start, min(start + CHUNK, num_items)))
        yield torch.nn.functional.normalize(chunk, dim=-1) @ centre


def _counts(
    snapshot: Snapshot, log: Dataset, since: int | None, until: int | None, events: Sequence[str]
) -> np.ndarray:
    """(N,) events of each item of the catalogue in a window of a log whose items go by their keys."""
    others = [name for name in events if name not in log.feedback]
    if others:
        raise InputError(f"the log has no events {others[0]!r}", allowed=", ".join(log.feedback) or "none")
    inside_mask = np.full(log.num_events, not events)
    for name in events:
        inside_mask |= np.nan_to_num(log.feedback[name]) > 0
    if since is not None:
        inside_mask &= log.times >= since
    if until is not None:
        inside_mask &= log.times < until
    of_log = np.bincount(log.item_ids[inside_mask], minlength=log.num_items)
    ids = snapshot.catalog.find_ids(log.item_keys.tolist())
    counts = np.zeros(snapshot.catalog.num_items)
    counts[ids[ids >= 0]] = of_log[ids >= 0]
    return counts


def _best(snapshot: Snapshot, scores: Tensor, k: int) -> list[ItemScore]:
    """The best of all items (N,), -inf left out; equal scores go to the lower id."""
    ids = best_first(scores[None], min(k, len(scores)))[0]
    best = scores[ids]
    real = best > NEVER
    return _answers(snapshot, ids[real].tolist(), best[real].tolist())


def _answers(snapshot: Snapshot, ids: Sequence[int], scores: Sequence[float]) -> list[ItemScore]:
    positions = np.array(ids, dtype=np.int64)
    keys, titles = snapshot.catalog.item_keys.take(positions), snapshot.catalog.titles.take(positions)
    return [ItemScore(key, score, title) for key, score, title in zip(keys, scores, titles, strict=True)]
