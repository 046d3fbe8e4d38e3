"""The Recommender: one path from histories to items, for evaluation, the shell, Python and HTTP alike.

It holds one reference that is replaced whole: the Snapshot (model, catalogue, versions) and the Parts beside it
(reranker, quota, behaviour store, exposure log), which are of one catalogue. A call takes it when it begins and
finishes with it.

Read on in ``snapshot.py``, ``pipeline.py`` (histories in, ids out), ``answerer.py`` (keys in, keys out), ``serving.py``
(what a run folder opens) and ``run_folder.py`` (files).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.core import InputError, Recommendation, Request
from sidera.data.dataset import Dataset
from sidera.data.reading import LogReading, Reading
from sidera.decode.eligible import Jagged
from sidera.decode.free import free_beam
from sidera.decode.ways import AUTO
from sidera.engine.answerer import Answerer
from sidera.engine.exposures import ExposureWriter
from sidera.engine.histories import Behaviour
from sidera.engine.pipeline import Candidates, Pipeline, Query
from sidera.engine.requests import requests_of
from sidera.engine.rollouts import RolloutMode, roll_out, sid_log_probs
from sidera.engine.routes import Route, Shadow
from sidera.engine.run_folder import beam_of_run, load_snapshot, save_model
from sidera.engine.serving import Parts, ServeConfig, Serving, open_parts, with_programs
from sidera.engine.snapshot import Snapshot
from sidera.ops import jagged
from sidera.roles import Rollout
from sidera.store.log_representatives import LogRepresentatives

DEFAULT_BEAM = 50  # beams of a generator that was not opened from a run folder
MAX_BATCH = 256  # histories answered in one pass; bounds memory, not results


class Recommender:
    """A model bound to a Catalog, and what stands beside it when it serves."""

    def __init__(
        self,
        model: torch.nn.Module,
        catalog: Catalog,
        *,
        model_section: dict[str, Any],
        beam: int = DEFAULT_BEAM,
        search: str = AUTO,
        device: str = "cpu",
        num_known: int | None = None,
        version: str = "unsaved",
        parts: Parts | None = None,
    ) -> None:
        """``num_known``: items that the model was built with, where the Catalog has grown since.

        ``version`` names the weights; answers and rollouts carry it.
        """
        snapshot = replace(Snapshot.of(model, catalog, model_section, version, num_known, device), search=search)
        self.serving = Serving(snapshot, parts or Parts(), beam)
        self.swapping = threading.RLock()  # held from reading ``serving`` to replacing it: no change is lost
        self.route: Route | None = None  # a second version, beside the one that answers
        self._shadow = Shadow()
        self.live: Any = None  # the ``engine.live.LiveRun`` that swaps versions and changes items, where there is one
        self.compiled_note = ""  # what became of programs that were exported
        self._log: LogReading | None = None  # of the data set asked for last

    # -- on tensors: what evaluation calls ------------------------------------------------------------------------

    @property
    def pipeline(self) -> Pipeline:
        return self.serving.pipeline

    def rank(
        self,
        batch: Batch,
        k: int,
        *,
        beam: int | None = None,
        filter_seen: bool = False,
        exclude: Jagged | None = None,
        target_ids: Tensor | None = None,
        log_probs: bool = False,
        alone: bool = False,
    ) -> Candidates:
        """The k best items of every history of ``batch`` (each with at least one event).

        The model reads the newest ``max_history`` events, and representatives of all of them where it asks for these:
        the batch's own, or those found here. ``filter_seen`` leaves out every item of the whole history.
        ``exclude`` (jagged item ids and offsets) leaves out others. ``beam`` defaults to the recommender's, and is
        never narrower than k. A model that writes lists answers by :func:`sidera.decode.session.rank_by_lists`.
        ``target_ids`` (B,): a scorer also says how many items it scores as it scores these (``ties``). ``log_probs``:
        a generator also says how likely it was to write each code. ``alone``: an expert also leaves what the generator
        alone would have answered (``searched``).
        """
        if k < 1:
            raise InputError(f"k = {k}", allowed="1 or more")
        serving = self.serving
        snapshot, pipeline = serving.snapshot, serving.pipeline
        batch = batch.to(snapshot.device)
        left_out = _left_out(batch, exclude, filter_seen)
        return pipeline(Query(snapshot, batch, k, left_out, beam, target_ids, log_probs, alone))

    @torch.inference_mode()
    def free_generation(self, batch: Batch, beam: int) -> Tensor:
        """(B, beam): 1 where a semantic ID is real though the trie did not hold the beam back, 0 where it is not.

        NaN where the generator's codes ran out of probability before the beam was full.
        """
        snapshot = self.snapshot
        generator, batch = snapshot.generator, snapshot.readable(batch)
        with snapshot.answering():
            context = generator.context(batch)
            found = free_beam(generator, context, snapshot.catalog.trie, width=beam, num_results=beam)
        return found.legal_mask.float().masked_fill(~found.valid_mask, float("nan"))

    @torch.inference_mode()
    def rollout(
        self, batch: Batch, count: int, mode: RolloutMode = "masked", temperature: float = 1.0, seed: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Rollout:  # fmt: skip
        """``count`` semantic IDs for every history, with the probability of each code and the versions that wrote them.

        ``masked`` draws in the trie, ``free`` over all codes (what is illegal shows), ``beam`` takes the most likely.
        ``part`` (r, n): the histories are every n-th of a larger batch, from the r-th on, and draw as inside it.
        """
        snapshot = self.snapshot
        generator, batch = snapshot.generator, snapshot.readable(batch)
        with snapshot.answering():
            context = generator.context(batch)
            return roll_out(
                generator, context, snapshot.catalog, count, mode, temperature, seed, snapshot.version, part
            )

    def sid_log_probs(
        self, batch: Batch, sids: Tensor, mode: RolloutMode = "masked", temperature: float = 1.0
    ) -> Tensor:
        """(B, G, L) semantic IDs -> (B, G, L): what these weights give each code, as a rollout of ``mode`` would."""
        snapshot = self.snapshot
        generator, batch = snapshot.generator, snapshot.readable(batch)
        with snapshot.answering():
            sids = sids.to(snapshot.device)
            return sid_log_probs(generator, batch, snapshot.catalog.trie, sids, mode, temperature)

    def read_log(self, dataset: Dataset) -> LogReading:
        """How the model reads this log, for batches of training and evaluation.

        Kept for the data set asked for last: representatives of long histories are found once.
        """
        if self._log is None or self._log.dataset is not dataset:
            catalog, config = self.catalog, self.reads.lifelong
            known = LogRepresentatives(dataset, catalog.schema, catalog.item_vectors, config) if config else None
            self._log = self.reading.over(dataset, known)
        return self._log

    # -- on item keys: what people call ---------------------------------------------------------------------------

    def recommend(
        self,
        histories: Sequence[Sequence[str | int] | Request],
        k: int = 10,
        *,
        filter_seen: bool | None = None,
        unknown: str = "report",
    ) -> list[Recommendation]:
        """Answer histories of item keys, oldest first; at most as many items as the catalogue holds.

        Whole numbers are keys too: 3 is the item "3". Anything else that is no text is refused.

        ``filter_seen``: whether items of the history are left out. None: they are where users of the training log
        hardly ever came back to one (:attr:`Catalog.filters_seen`); ``filtered_seen`` of the answer says which.
        ``unknown = "report"`` leaves unknown keys out and names them in the answer; ``"refuse"`` raises InputError.
        Items that came after the training are read by their fallback (``nn.item_embedding``); a model that only counts
        leaves them out, and they are named as ``unread``.
        A list of :class:`Request` carries its own k and filters. A request that names a ``user`` and no history is
        answered from the behaviour store; a user who is not known there by the most popular items, and the answer says
        so (``unknown_user``, ``cold_start``). Where there is an exposure log, answers to requests that name a user are
        logged, and ``request`` of the answer names them there.
        """
        if unknown not in ("report", "refuse"):
            raise InputError(f"unknown = {unknown!r}", allowed="'report' or 'refuse'")
        requests = requests_of(histories, k, filter_seen)
        if unknown == "refuse":
            requests = [replace(request, refuse_unknown=True) for request in requests]
        answers: list[Recommendation] = []
        for outcome in self.answers(requests):
            if isinstance(outcome, Exception):
                raise outcome
            answers.append(outcome)
        return answers

    def answers(self, requests: Sequence[Request], beam: int | None = None) -> list[Recommendation | Exception]:
        """Like :meth:`recommend`, where a request that cannot be answered has its error in place of an answer and fails
        no other. ``beam``: width of the search of this call, else the recommender's own."""
        outcomes: list[Recommendation | Exception] = []
        for start in range(0, len(requests), MAX_BATCH):
            outcomes += self._answer(requests[start : start + MAX_BATCH], beam)
        return outcomes

    def _answer(self, requests: Sequence[Request], beam: int | None) -> list[Recommendation | Exception]:
        """By the version that answers, or by a canary for its users; a shadow is asked behind it."""
        serving, route = self.serving, self.route
        parts, pipeline = serving.parts, serving.pipeline
        pipeline = pipeline if beam is None else replace(pipeline, beam=beam)
        answerer = Answerer(serving.snapshot, pipeline, parts.behaviour, parts.exposures)
        return answerer(requests) if route is None else self._shadow.answer(answerer, route, requests)

    def follow(self, outcomes: Any) -> None:
        """Log what came of answers, wherever they were logged."""
        parts = self.parts
        for writer in (parts.exposures, *parts.also):
            if writer is not None:
                writer.follow(outcomes)

    # -- other weights, another catalogue -------------------------------------------------------------------------

    def load_weights(self, state: Mapping[str, Tensor], version: str) -> None:
        """Answer with other weights from the next call on, without a restart; calls that run finish with the old ones.

        InputError, with the old weights in place, when a tensor is missing, unknown, of another shape or not finite.
        """
        with self.swapping:
            self.snapshot = self.snapshot.with_weights(state, version)

    def sign(self, version: str) -> None:
        """The same weights under another name, such as the digest that they are saved under."""
        with self.swapping:
            self.snapshot = replace(self.snapshot, version=version)

    def use_catalog(self, catalog: Catalog) -> None:
        """Answer from a catalogue whose items came and went, from the next call on; the behaviour store follows.

        CatalogMismatch, with the old one in place, when it is of another codebook.
        """
        with self.swapping:
            self.serving = self.serving.with_catalog(catalog)

    # -- on disk --------------------------------------------------------------------------------------------------

    def save_model(
        self, path: str | Path, *, digest: str, parents: dict[str, str], training: dict[str, Any] | None = None
    ) -> None:
        """Write the model artifact. ``training`` is kept beside it: what the training cost and reached."""
        save_model(self.snapshot, path, digest, parents, training or {})

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        catalog: Catalog | None = None,
        beam: int | None = None,
        serve: ServeConfig | None = None,
    ) -> Recommender:
        """Open a run folder (``catalog/`` and ``model/`` inside). A ``catalog`` given replaces the run's own.

        ``beam`` is a setting of decoding, so it comes from the run's recipe ([eval] beam), not from the model.
        ``serve`` opens a store, a log, a reranker and a quota beside it: close it then, or use it in a ``with``.
        """
        path, serve = Path(path), serve or ServeConfig()
        found = load_snapshot(path, device, catalog)
        beam = beam or serve.beam
        if beam is None:
            beam = beam_of_run(path) if found.generates else DEFAULT_BEAM  # a scorer searches nothing
        loaded = cls(
            found.trained, found.catalog, model_section=dict(found.section), beam=beam, search=found.search,
            device=device, num_known=found.num_known, version=found.version, parts=open_parts(path, serve, found),
        )  # fmt: skip
        snapshot = serve.of(loaded.snapshot)
        loaded.snapshot, loaded.compiled_note = with_programs(snapshot, path, serve, loaded.pipeline)
        return loaded

    def close(self) -> None:
        """Close the behaviour store and the exposure log."""
        self.parts.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- what answers now -----------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        return self.serving.snapshot

    @snapshot.setter
    def snapshot(self, snapshot: Snapshot) -> None:
        self.serving = replace(self.serving, snapshot=snapshot)

    @property
    def parts(self) -> Parts:
        return self.serving.parts

    @parts.setter
    def parts(self, parts: Parts) -> None:
        self.serving = replace(self.serving, parts=parts)

    @property
    def beam(self) -> int:
        return self.serving.beam

    @beam.setter
    def beam(self, beam: int) -> None:
        self.serving = replace(self.serving, beam=beam)

    @property
    def search(self) -> str:
        """How a generator is searched (``decode.ways``)."""
        return self.snapshot.search

    @search.setter
    def search(self, search: str) -> None:
        self.snapshot = replace(self.snapshot, search=search)

    @property
    def model(self) -> torch.nn.Module:
        return self.snapshot.model

    @property
    def catalog(self) -> Catalog:
        return self.snapshot.catalog

    @property
    def version(self) -> str:
        return self.snapshot.version

    @property
    def device(self) -> str:
        return self.snapshot.device

    @property
    def num_known(self) -> int:
        return self.snapshot.num_known

    @property
    def model_section(self) -> dict[str, Any]:
        return dict(self.snapshot.section)

    @property
    def kind(self) -> str:
        return "generator" if self.snapshot.generates else "scorer"

    @property
    def reads(self) -> Reads:
        return self.snapshot.reads

    @property
    def reading(self) -> Reading:
        return self.snapshot.reading

    @property
    def behaviour(self) -> Behaviour | None:
        return self.parts.behaviour

    @property
    def exposures(self) -> ExposureWriter | None:
        return self.parts.exposures


def _left_out(batch: Batch, exclude: Jagged | None, filter_seen: bool) -> Jagged | None:
    """What is not answered: ``exclude``, and in mode ``filter_seen`` every item of the whole histories, on their
    device."""
    device = batch.events.offsets.device
    if not filter_seen:
        return None if exclude is None else (exclude[0].to(device), exclude[1].to(device))
    seen = jagged.Jagged(batch.item_ids, batch.events.offsets)
    if exclude is not None:
        seen = jagged.Jagged(exclude[0].to(device), exclude[1].to(device)).join(seen)
    return seen.values, seen.offsets
