"""The Pipeline: search → rerank → quota …, each step ``(query, candidates) -> candidates``.

A Query is what is asked of one Snapshot about the histories of a batch. It travels through all steps, so that a step
knows how many items are wanted and which are left out, and it keeps what was computed once: the encoded histories are
shared by the search, the draws of a reranker and the probabilities that are logged.

Shape legend: B histories · C candidates · L levels of a semantic ID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.core import ArtifactError, Filter, InputError
from sidera.decode.compiled import Asked
from sidera.decode.dense import target_ties, top_items
from sidera.decode.eligible import NEG_INF, Allowed, Eligible, Jagged
from sidera.decode.given import given_log_probs
from sidera.decode.hybrid import hybrid_search
from sidera.decode.listing import Listing
from sidera.decode.sample import masked_log_probs
from sidera.decode.select import best_first
from sidera.decode.session import rank_by_lists
from sidera.engine.filters import filter_table
from sidera.engine.snapshot import Snapshot
from sidera.ops.jagged import jagged_rows
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, HybridGenerator, Retriever, SessionGenerator


@dataclass(frozen=True, eq=False)
class Candidates:
    """Items of each history, best first; -1 (score -inf) behind the last that exists. Signed by who found them."""

    item_ids: Tensor  # (B, C) int64
    scores: Tensor  # (B, C) float32
    version: str  # of the weights that found the items
    items_version: int  # of the catalogue that they are of
    reranker: str = ""  # version of the reranker that ordered them; "": none
    expert: str = ""  # version of the transition expert that joined counts to them; "": none
    followed_events: int = 0  # that its counts took in since
    leaf_ids: Tensor | None = None  # (B, C) int64: equal for items that share a semantic ID; None for scorers and lists
    log_probs: Tensor | None = None  # (B, C, L) of each code, where the query asks; NaN where a code is out of reach
    ties: tuple[Tensor, Tensor] | None = None  # of targets that were named: ``decode.dense.target_ties``
    searched: Candidates | None = None  # in the search's own order, where an expert joined its counts and it was asked
    listing: Listing | None = None  # these are all items, in the order of the trie

    @property
    def expert_version(self) -> str:
        """Names the counts: their artifact, and how many events of the store they took in since."""
        return self.expert and f"{self.expert}+{self.followed_events}"

    @property
    def policy(self) -> str:
        """Names who answered in a log: the weights, and the expert and the reranker behind a "+" where there were some.
        Never parsed."""
        return "+".join(name for name in (self.version, self.expert, self.reranker) if name)


@dataclass(frozen=True, eq=False)
class Query:
    """The ``k`` best items for every history of a batch."""

    snapshot: Snapshot
    batch: Batch  # whole histories, on the snapshot's device
    k: int
    left_out: Jagged | None = None  # item ids of each history that are not answered, on the device
    beam: int | None = None  # width of the search; None: the pipeline's
    target_ids: Tensor | None = None  # (B,) of a scorer: how many items score as these do (``Candidates.ties``)
    log_probs: bool = False  # of the codes of what is answered
    alone: bool = False  # the search's own order too, where a step joins counts to it
    filters: Sequence[Filter | None] | None = None  # B: which items each history may be answered; None: all
    notes: dict[Any, Any] = field(default_factory=dict)  # what a step computed and reads again, by the step

    @cached_property
    def read(self) -> Batch:
        """What the model reads of the histories."""
        return self.snapshot.readable(self.batch)

    @cached_property
    def context(self) -> Context:
        """The encoded histories. Ask for them inside ``snapshot.answering()``."""
        return self.snapshot.context(self.read)

    @cached_property
    def allowed(self) -> Allowed | None:
        """The filters as masks of the snapshot's trie."""
        if self.filters is None or not any(self.filters):
            return None
        table = filter_table(self.snapshot.catalog)
        return Allowed([None if given is None else table.prefix_mask(given) for given in self.filters])

    @cached_property
    def allowed_items(self) -> Tensor | None:
        """(B, N) bool on the device: the filters, and what was removed; (N,) where only that bars items."""
        snapshot = self.snapshot
        if self.filters is None or not any(self.filters):
            return snapshot.alive_mask
        table = filter_table(snapshot.catalog)
        every = ~np.asarray(snapshot.catalog.removed)
        masks = [every if given is None else table.item_mask(given) for given in self.filters]
        return torch.from_numpy(np.stack(masks)).to(snapshot.device)

    def of_rows(self, rows: Tensor, k: int, snapshot: Snapshot) -> Query:
        """``k`` items for the histories ``rows`` (n,) alone, from another snapshot."""
        left_out = self.left_out
        if left_out is not None:
            positions, offsets = jagged_rows(left_out[1], rows)
            left_out = (left_out[0][positions], offsets)
        filters = None if self.filters is None else [self.filters[row] for row in rows.tolist()]
        return Query(snapshot, self.batch.rows(rows), k, left_out, self.beam, filters=filters)


class Step(Protocol):
    """A part of the pipeline behind the search."""

    def needs(self, k: int, beam: int) -> int:
        """How many candidates it reads to leave ``k``, where the search is ``beam`` wide."""

    def __call__(self, query: Query, candidates: Candidates, number: int) -> Candidates:
        """``number`` of them, best first."""


@runtime_checkable
class SearchingStep(Step, Protocol):
    """A step that searches by itself, where it is the first."""

    def asked(self, trie: CodeTrie, beam: int) -> Asked:
        """What its searches ask for, where the pipeline's beam is so wide."""

    def searched(self, query: Query, number: int) -> Candidates:
        """What it reads, in place of :func:`search`."""


@dataclass(frozen=True)
class Pipeline:
    """A search, and steps that reorder or replace what it found."""

    beam: int  # of the search where the query names none
    steps: tuple[Step, ...] = ()

    @property
    def reads_feedback(self) -> bool:
        """Whether a step reads every event with what came of it, whatever the model reads."""
        return any(getattr(step, "reads_feedback", False) for step in self.steps)

    @property
    def searching(self) -> SearchingStep | None:
        """The first step, where it searches by itself."""
        first = self.steps[0] if self.steps else None
        return first if isinstance(first, SearchingStep) else None

    def asked(self, trie: CodeTrie) -> Asked:
        """What its searches ask for, of no more items than its beam finds."""
        searching = self.searching
        return searching.asked(trie, self.beam) if searching else Asked(self.beam, self.beam)

    def width(self, k: int) -> int:
        """Beams of a search for ``k`` items."""
        return max(self.beam, k)

    @torch.inference_mode()
    def __call__(self, query: Query) -> Candidates:
        """InputError for an empty history, ArtifactError where the scores are no numbers."""
        beam = query.beam or self.beam
        numbers = [query.k]  # that each step leaves, the last first; then what the search finds
        for step in reversed(self.steps):
            numbers.append(step.needs(numbers[-1], beam))
        searching, number = self.searching, numbers.pop()
        searched = searching.searched if searching else search
        # what the search says of codes is of use where nobody but its own step chooses
        said = query.log_probs and len(self.steps) == (0 if searching is None else 1)
        asked = replace(query, beam=beam, log_probs=said)
        try:
            candidates = searched(asked, number)
            for step in self.steps:
                candidates = step(asked, candidates, numbers.pop())
            if query.log_probs and candidates.log_probs is None:  # a step chose, or the search cannot say
                candidates = replace(candidates, log_probs=log_probs_of(asked, candidates.item_ids))
        except FloatingPointError as error:  # finite weights may be large enough for it
            problem = f"the weights {query.snapshot.version} give scores that are no numbers"
            raise ArtifactError(problem, fix="train the model again, or load earlier weights") from error
        return candidates


def search(query: Query, number: int, proposals: Tensor | None = None, width: int | None = None) -> Candidates:
    """The ``number`` items that the model alone prefers: found code by code by a generator, else by their scores.

    ``width``: beams on the way; None: what the query asks, and no fewer than ``number``. ``proposals`` (B, C) of items
    that a generator may answer, -1 for none: they are among the candidates too.
    """
    if width is None:
        width = max(query.beam or 1, number)
    if proposals is None or query.snapshot.takes_proposals:
        return _searched(query, number, width, proposals)
    candidates = _searched(query, number, max(width, number))
    known = (proposals[:, :, None] == candidates.item_ids[:, None]).any(2)
    others = proposals.masked_fill(known, -1)
    codes = query.snapshot.catalog.items.codes_of(others.clamp(min=0)).masked_fill((others < 0)[..., None], -1)
    with query.snapshot.answering():
        scores = given_log_probs(query.snapshot.generator, query.context, codes)  # (B, C)
    ids, scores = torch.cat((candidates.item_ids, others), dim=1), torch.cat((candidates.scores, scores), dim=1)
    order = best_first(scores, scores.shape[1])
    ids, scores = ids.gather(1, order), scores.gather(1, order)
    ids = ids.masked_fill(scores == NEG_INF, -1)
    return replace(candidates, item_ids=ids, scores=scores, leaf_ids=None, log_probs=None)


def listed(query: Query) -> Candidates:
    """All items in the order of the trie, with what the generator gives them: where it takes proposals."""
    _check_events(query.batch)
    snapshot = query.snapshot
    with snapshot.answering():
        listing = snapshot.listing(query.context, query.log_probs)
    scores, trie = listing.scores, snapshot.catalog.trie
    Eligible(trie, len(scores), scores.device, query.left_out, query.allowed).close_all(scores)
    ids = listing.item_ids.expand_as(scores)
    return Candidates(ids, scores, snapshot.version, snapshot.catalog.items_version, listing=listing)


def _check_events(batch: Batch) -> None:
    """InputError for an empty history: the state before it is another history's last."""
    if batch.num_histories and int(batch.lengths.min()) == 0:
        raise InputError("an empty history cannot be ranked", allowed="1 event or more", fix="answer by popularity")


def _searched(query: Query, number: int, width: int, proposals: Tensor | None = None) -> Candidates:
    _check_events(query.batch)
    snapshot, left_out = query.snapshot, query.left_out
    signed: dict[str, Any] = {"version": snapshot.version, "items_version": snapshot.catalog.items_version}
    if not snapshot.generates:
        if snapshot.index is not None and query.target_ids is None:
            with snapshot.answering():
                users = cast(Retriever, snapshot.model).user_vectors(query.read)
            ids, best = snapshot.index.search(users, number, exclude=left_out, alive=query.allowed_items)
            return Candidates(ids, best, **signed)
        with snapshot.answering():
            scores = snapshot.scorer.item_scores(query.read).float()
        alive = query.allowed_items
        alive = None if alive is None else alive[..., : scores.shape[1]]
        ids, best = top_items(scores, number, exclude=left_out, alive=alive)
        targets = query.target_ids
        ties = None if targets is None else target_ties(scores, targets, exclude=left_out, alive=alive)
        return Candidates(ids, best, ties=ties, **signed)
    generator, trie = snapshot.generator, snapshot.catalog.trie
    limits: dict[str, Any] = {"exclude": left_out, "allowed": query.allowed}
    with snapshot.answering():
        if snapshot.writes_lists:
            writer = cast(SessionGenerator, generator)
            ids, scores = rank_by_lists(writer, query.context, trie, k=number, beam=width, **limits)
            return Candidates(ids, scores, **signed)
        if snapshot.is_hybrid:
            hybrid = cast(HybridGenerator, generator)
            cold_ids = snapshot.cold_ids if hybrid.joins_cold else None
            ids, scores = hybrid_search(
                hybrid, query.context, trie, width=width, num_results=number, cold_ids=cold_ids, **limits
            )
            return Candidates(ids, scores, **signed)
        limits["proposals"] = proposals
        found = snapshot.beams(query.context, width=width, num_results=number, log_probs=query.log_probs, **limits)
    return Candidates(found.item_ids, found.scores, leaf_ids=found.leaf_ids, log_probs=found.log_probs, **signed)


def log_probs_of(query: Query, item_ids: Tensor) -> Tensor:
    """(B, C) items -> (B, C, L): what the model gives each of their codes, renormalised inside the trie like a masked
    rollout; NaN for empty slots, scorers, and items that no code of the model reaches."""
    snapshot = query.snapshot
    if not snapshot.generates:
        return torch.full((*item_ids.shape, snapshot.catalog.num_levels), float("nan"))
    codes = snapshot.catalog.items.codes_of(item_ids.clamp(min=0))  # (B, C, L)
    with snapshot.answering():
        found = masked_log_probs(snapshot.generator, query.context, codes, snapshot.catalog.trie).float()
    reached = found.isfinite().all(-1) & (item_ids >= 0)
    return found.masked_fill(~reached[..., None], float("nan"))
