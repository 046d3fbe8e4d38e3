"""The Recommender: one path from histories to items, for evaluation, the shell, Python and HTTP alike.

Life of a request (``requests.py``): keys become ids (unknown ones are named in the answer), or a user's history is
read from the behaviour store · the newest ``max_history`` events form a jagged Batch · a generator's context is
computed once and beam-searched in the Catalog's trie, a scorer's scores are ranked over all items · removed, excluded
and (when asked) seen items are left out · ids become keys and titles.

A history in which the catalogue knows nothing is answered by popularity, and the answer says so (``cold_start``).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sidera import artifacts
from sidera.batch import Batch, Reads
from sidera.bounds import read_json
from sidera.catalog.catalog import Catalog
from sidera.config import MAX_RECIPE_BYTES, MOST
from sidera.core import ArtifactError, InputError, Recommendation, Request
from sidera.data.dataset import Dataset
from sidera.data.reading import LogReading, Reading
from sidera.decode.beam import beam_search
from sidera.decode.dense import target_ties, top_items
from sidera.decode.free import free_beam
from sidera.decode.session import rank_by_lists
from sidera.engine.exposures import ExposureWriter, exposure_columns
from sidera.engine.histories import Behaviour, item_table, lifelong_of_events
from sidera.engine.quota import Quota
from sidera.engine.requests import ReadHistory, RequestReader, requests_of
from sidera.engine.reranker import Reranker
from sidera.engine.rollouts import RolloutMode, roll_out, sid_log_probs
from sidera.loading import open_artifact
from sidera.models.saved import saved_model
from sidera.ops.jagged import Jagged, jagged_rows
from sidera.ops.weights import check_weights
from sidera.roles import Generator, Rollout, Scorer, SessionGenerator
from sidera.store.log_events import LogRepresentatives

Exclusion = tuple[Tensor, Tensor]  # jagged item ids and offsets
DEFAULT_BEAM = 50  # beams of a generator that was not opened from a run folder
RUN_RECIPE = "recipe.json"  # the recipe that a run folder was made with
MAX_BATCH = 256  # histories answered in one pass; bounds memory, not results


@dataclass(frozen=True)
class Ranked:
    """Items of each history, most likely first; -1 (score -inf) behind the last that exists."""

    item_ids: Tensor  # (B, k) int64
    scores: Tensor  # (B, k) float32
    leaf_ids: Tensor | None  # (B, k) int64: equal for items that share a semantic ID; None for scorers and lists
    version: str = ""  # of the weights that found the items
    items_version: int = 0  # of the catalogue that they ranked
    reranker: str = ""  # version of the reranker that ordered them; "": none
    ties: tuple[Tensor, Tensor] | None = None  # of targets that were named: ``decode.dense.target_ties``

    @property
    def policy(self) -> str:
        """Names who answered: the weights, and the reranker behind a "+" where there was one. Never parsed."""
        return f"{self.version}+{self.reranker}" if self.reranker else self.version


@dataclass(frozen=True)
class _RankedRow:
    """One history's row of :class:`Ranked`."""

    item_ids: list[int]
    scores: list[float]
    policy: str
    items_version: int


class Recommender:
    """A model bound to a Catalog."""

    def __init__(
        self,
        model: torch.nn.Module,
        catalog: Catalog,
        *,
        model_section: dict[str, Any],
        beam: int = DEFAULT_BEAM,
        device: str = "cpu",
        num_known: int | None = None,
        version: str = "unsaved",
        behaviour: Behaviour | None = None,
    ) -> None:
        """``num_known``: items that the model was built with, where the Catalog has grown since.

        ``version`` names the weights; answers and rollouts carry it. ``behaviour``: the histories of users that
        requests may name; it can be set later.
        """
        check_device(device)
        if isinstance(model, Generator):
            catalog.check_codebook(model.codebook_id)
        self.kind = "generator" if isinstance(model, Generator) else "scorer"
        self.writes_lists = isinstance(model, SessionGenerator)
        self.model = model.to(device).eval()
        self.catalog = catalog
        self.model_section = model_section
        self.beam = beam
        self.device = device
        self.num_known = catalog.num_items if num_known is None else num_known
        self.version = version
        self.behaviour = behaviour
        self.reranker: Reranker | None = None  # set: every answer is chosen by it among candidates
        self.exposures: ExposureWriter | None = None  # set: answers to requests that name their user are logged
        self.quota: Quota | None = None  # set: a share of the slots of every answer is kept for its items
        self._log: LogReading | None = None  # of the data set asked for last
        self._lock = threading.Lock()  # a model's inference caches are not made for two threads at once

    # -- on tensors: what evaluation calls ------------------------------------------------------------------------

    @torch.inference_mode()
    def rank(
        self,
        batch: Batch,
        k: int,
        *,
        beam: int | None = None,
        filter_seen: bool = False,
        exclude: tuple[Tensor, Tensor] | None = None,
        target_ids: Tensor | None = None,
    ) -> Ranked:
        """The k best items of every history of ``batch`` (each with at least one event).

        The model reads the newest ``max_history`` events, and representatives of all of them where it asks for these:
        the batch's own, or those found here. ``filter_seen`` leaves out every item of the whole history.
        ``exclude`` (jagged item ids and offsets) leaves out others. ``beam`` defaults to the recommender's, and is
        never narrower than k. A model that writes lists answers by :func:`sidera.decode.session.rank_by_lists`.
        Where there is a ``reranker`` it chooses among its candidates, and scores are its own; a ``quota`` then fills
        its slots. ``target_ids`` (B,): a scorer also says how many items it scores as it scores these (``ties``).
        """
        if k < 1:
            raise InputError(f"k = {k}", allowed="1 or more")
        batch = batch.to(self.device)
        reranker, quota, catalog = self.reranker, self.quota, self.catalog
        try:
            if reranker is None:
                asked = target_ids if quota is None else None
                found = self._rank(batch, k, catalog, beam, filter_seen, exclude, asked)
            else:
                found = self._reranked(reranker, batch, k, beam, filter_seen, exclude)
            return found if quota is None else self._with_quota(quota, found, batch, beam, filter_seen, exclude)
        except FloatingPointError as error:  # finite weights may be large enough for it
            problem = f"the weights {self.version} give scores that are no numbers"
            raise ArtifactError(problem, fix="train the model again, or load earlier weights") from error

    def _with_quota(
        self, quota: Quota, found: Ranked, batch: Batch, beam: int | None, filter_seen: bool,
        exclude: tuple[Tensor, Tensor] | None,
    ) -> Ranked:  # fmt: skip
        """``found`` with the quota's slots filled; only requests that give one are searched again."""
        quota.check(self.catalog)
        k = found.item_ids.shape[1]
        wanted = quota.num_slots(batch, k)
        rows = torch.nonzero(wanted > 0).squeeze(1)
        if not len(rows):
            return found
        if exclude is not None:
            places, offsets = jagged_rows(exclude[1], rows.to(exclude[1].device))
            exclude = (exclude[0][places], offsets)
        theirs = self._rank(batch.rows(rows), int(wanted.max()) + k, quota.own, beam, filter_seen, exclude)
        item_ids, scores = found.item_ids.clone(), found.scores.clone()
        item_ids[rows], scores[rows] = quota.fill(item_ids[rows], scores[rows], theirs.item_ids, wanted[rows])
        return replace(found, item_ids=item_ids, scores=scores, leaf_ids=None)

    def _reranked(
        self, reranker: Reranker, batch: Batch, k: int, beam: int | None, filter_seen: bool,
        exclude: tuple[Tensor, Tensor] | None,
    ) -> Ranked:  # fmt: skip
        """Candidates of the search, or draws beside the search's k best, in the reranker's order."""
        number = max(k, reranker.num_candidates if reranker.source == "beam" else 0)
        found = self._rank(batch, number, self.catalog, beam, filter_seen, exclude)
        candidates = found.item_ids
        if reranker.source == "sample":
            drawn = self.rollout(batch, reranker.num_candidates).item_ids
            left_out = _left_out(batch, exclude, filter_seen)
            candidates = without_repeats(torch.cat((candidates, drawn), dim=1), left_out)
        ids, scores = reranker.order(batch, candidates, k)
        return Ranked(ids, scores, None, found.version, found.items_version, reranker.version)

    def _rank(
        self, batch: Batch, k: int, catalog: Catalog, beam: int | None, filter_seen: bool,
        exclude: tuple[Tensor, Tensor] | None, target_ids: Tensor | None = None,
    ) -> Ranked:  # fmt: skip
        """What the model alone answers, from the items that ``catalog`` has not removed."""
        if batch.num_histories and int(batch.lengths.min()) == 0:  # the state before it is another history's last
            raise InputError("an empty history cannot be ranked", allowed="1 event or more", fix="answer by popularity")
        left_out = _left_out(batch, exclude, filter_seen)
        batch = self.reading.cut(batch)
        with self._lock:
            self._answering()
            if self.kind == "generator":
                generator = cast(Generator, self.model)
                width = max(beam or self.beam, k)
                if self.writes_lists:
                    lister = cast(SessionGenerator, generator)
                    ids, log_p = rank_by_lists(lister, batch, catalog.trie, k=k, beam=width, exclude=left_out)
                    return Ranked(ids, log_p, None, self.version, catalog.items_version)
                found = beam_search(generator, batch, catalog.trie, width=width, num_results=k, exclude=left_out)
                return Ranked(found.item_ids, found.scores, found.leaf_ids, self.version, catalog.items_version)
            scores, version = cast(Scorer, self.model).item_scores(batch).float(), self.version
        removed = catalog.removed[: scores.shape[1]]
        alive_mask = torch.from_numpy(~removed).to(self.device) if removed.any() else None
        item_ids, best_scores = top_items(scores, k, exclude=left_out, alive=alive_mask)
        ties = None if target_ids is None else target_ties(scores, target_ids, exclude=left_out, alive=alive_mask)
        return Ranked(item_ids, best_scores, None, version, catalog.items_version, ties=ties)

    @torch.inference_mode()
    def free_generation(self, batch: Batch, beam: int) -> Tensor:
        """(B, beam): 1 where a semantic ID is real though the trie did not hold the beam back, 0 where it is not.

        NaN where the generator's codes ran out of probability before the beam was full.
        """
        generator, batch = self._generator(), self.reading.cut(batch.to(self.device))
        with self._lock:
            self._answering()
            context = generator.context(batch)
            found = free_beam(generator, context, self.catalog.trie, width=beam, num_results=beam)
        return found.legal_mask.float().masked_fill(~found.valid_mask, float("nan"))

    def rollout(
        self, batch: Batch, count: int, mode: RolloutMode = "masked", temperature: float = 1.0, seed: int = 0
    ) -> Rollout:
        """``count`` semantic IDs for every history, with the probability of each code and the versions that wrote them.

        ``masked`` draws in the trie, ``free`` over all codes (what is illegal shows), ``beam`` takes the most likely.
        """
        generator, batch = self._generator(), self.reading.cut(batch.to(self.device))
        with self._lock:
            self._answering()
            return roll_out(generator, batch, self.catalog, count, mode, temperature, seed, self.version)

    def sid_log_probs(
        self, batch: Batch, sids: Tensor, mode: RolloutMode = "masked", temperature: float = 1.0
    ) -> Tensor:
        """(B, G, L) semantic IDs -> (B, G, L): what these weights give each code, as a rollout of ``mode`` would."""
        generator, batch = self._generator(), self.reading.cut(batch.to(self.device))
        with self._lock:
            self._answering()
            return sid_log_probs(generator, batch, self.catalog.trie, sids.to(self.device), mode, temperature)

    def load_weights(self, state: Mapping[str, Tensor], version: str) -> None:
        """Answer with other weights from the next call on, without a restart; calls that run finish with the old ones.

        InputError, with the old weights in place, when a tensor is missing, unknown, of another shape or not finite.
        """
        check_weights(self.model, state)
        with self._lock:
            self.model.load_state_dict(state)
            self.model.eval()  # drops what was laid out for answering with the old weights
            self.version = version

    def _generator(self) -> Generator:
        if self.kind != "generator":
            raise InputError("a scorer generates nothing; rollouts and legality are a generator's")
        return cast(Generator, self.model)

    @property
    def reads(self) -> Reads:
        return cast(Any, self.model).reads

    @property
    def reading(self) -> Reading:
        """How the model reads histories over this catalogue."""
        catalog, reads = self.catalog, self.reads
        compress = partial(lifelong_of_events, catalog=catalog, config=reads.lifelong) if reads.lifelong else None
        return Reading(catalog.schema, catalog.items, reads, compress)

    def read_log(self, dataset: Dataset) -> LogReading:
        """How the model reads this log, for batches of training and evaluation.

        Kept for the data set asked for last: representatives of long histories are found once.
        """
        if self._log is None or self._log.dataset is not dataset:
            reading, catalog = self.reading, self.catalog
            config = reading.reads.lifelong
            known = LogRepresentatives(dataset, catalog.schema, item_table(catalog), config) if config else None
            self._log = reading.over(dataset, known)
        return self._log

    def _answering(self) -> None:
        """Leave training mode. Not on every call: a change of mode drops what a model laid out for answering."""
        if self.model.training:
            self.model.eval()

    # -- on item keys: what people call ---------------------------------------------------------------------------

    def recommend(
        self,
        histories: Sequence[Sequence[str | int] | Request],
        k: int = 10,
        *,
        filter_seen: bool = False,
        unknown: str = "report",
    ) -> list[Recommendation]:
        """Answer histories of item keys, oldest first; at most as many items as the catalogue holds.

        Whole numbers are keys too: 3 is the item "3". Anything else that is no text is refused.

        ``unknown = "report"`` leaves unknown keys out and names them in the answer; ``"refuse"`` raises InputError.
        Items of the catalogue that came after the training are left out too, and named as ``unread``.
        A list of :class:`Request` carries its own k and filters. A request that names a ``user`` and no history is
        answered from the behaviour store; a user who is not known there by the most popular items, and the answer says
        so (``unknown_user``, ``cold_start``). Where ``exposures`` is set, answers to requests that name a user are
        logged, and ``request`` of the answer is what its outcomes are told under.
        """
        if unknown not in ("report", "refuse"):
            raise InputError(f"unknown = {unknown!r}", allowed="'report' or 'refuse'")
        requests = requests_of(histories, k, filter_seen)
        answers: list[Recommendation] = []
        for start in range(0, len(requests), MAX_BATCH):
            answers += self._answer(requests[start : start + MAX_BATCH], refuse=unknown == "refuse")
        return answers

    def _answer(self, requests: Sequence[Request], refuse: bool) -> list[Recommendation]:
        reader = RequestReader(self.catalog, self.num_known, self.reading, self.behaviour)
        histories: list[ReadHistory] = []
        left_out = []
        for request in requests:
            if request.k < 1:
                raise InputError(f"k = {request.k}", allowed="1 or more")
            history = reader.read(request)
            if history.unknown and refuse:
                raise InputError(
                    f"the catalogue holds no item {history.unknown[0]!r}",
                    allowed=f"one of its {self.catalog.num_items} item ids",
                )
            known = self.catalog.ids_by_key  # what the catalogue does not hold is not answered anyway
            left_out.append([known[key] for key in request.exclude if key in known] + history.seen_ids)
            histories.append(history)
        warm = [place for place, history in enumerate(histories) if len(history.item_ids)]
        groups: dict[int, list[int]] = {}  # by beam width: a large k must not change its neighbours' answers
        for place in warm:
            groups.setdefault(max(self.beam, requests[place].k), []).append(place)
        by_place: dict[int, _RankedRow] = {}
        names: dict[int, str] = {}  # of logged answers
        for places in groups.values():
            k = min(max(requests[place].k for place in places), self.catalog.num_items)
            batch = reader.batch([histories[place] for place in places])
            found = self.rank(batch, k, exclude=_exclusion([left_out[place] for place in places]))
            for place, item_ids, scores in zip(places, found.item_ids.tolist(), found.scores.tolist(), strict=True):
                by_place[place] = _RankedRow(item_ids, scores, found.policy, found.items_version)
            names |= self._log_answers(requests, places, batch, found)
        answers = [
            self._recommendation(request, by_place.get(place), left_out[place], histories[place])
            for place, request in enumerate(requests)
        ]
        for place in sorted(set(range(len(requests))) - by_place.keys()):  # answered by popularity
            answer, nothing = answers[place], self.reading.batch(np.zeros(0, np.int64), np.zeros(2, np.int64))
            shown = torch.tensor([answer.item_ids], dtype=torch.int64)
            by_popularity = Ranked(shown, shown.float(), None, answer.policy_version, answer.items_version)
            names |= self._log_answers(requests, [place], nothing, by_popularity)
        return [replace(answer, request=names.get(place, "")) for place, answer in enumerate(answers)]

    def _log_answers(self, requests: Sequence[Request], places: Sequence[int], batch: Batch, ranked: Ranked) -> dict[int, str]:
        """Write the answers of those of ``places`` (rows of ``batch``) whose request names a user; -> their names."""
        rows = [row for row, place in enumerate(places) if requests[place].user is not None]
        if self.exposures is None or not rows:
            return {}
        mine = [requests[places[row]] for row in rows]
        wanted = torch.tensor([request.k for request in mine])[:, None]
        shown = ranked.item_ids.cpu()[rows]
        shown = shown.masked_fill(torch.arange(shown.shape[1]) >= wanted, -1)
        names = {places[row]: uuid.uuid4().hex for row in rows}
        now = int(time.time())
        self.exposures.shown(
            exposure_columns(
                self, batch.rows(torch.tensor(rows)), shown, requests=list(names.values()),
                users=[str(request.user) for request in mine],
                times=[now if request.as_of is None else request.as_of for request in mine],
                weights=ranked.version, policy=ranked.policy, items_version=ranked.items_version,
            )
        )  # fmt: skip
        return names

    def _recommendation(
        self, request: Request, ranked: _RankedRow | None, left_out: list[int], history: ReadHistory
    ) -> Recommendation:
        if ranked is None:  # nothing to go by: the most popular items, said openly
            banned = set(left_out)
            order = (int(item) for item in self.catalog.serving_order)
            servable = (item for item in order if item not in banned and not self.catalog.removed[item])
            item_ids = list(islice(servable, request.k))
            scores = [float(self.catalog.popularity[item]) for item in item_ids]
        else:
            item_ids = [item for item in ranked.item_ids if item >= 0][: request.k]
            scores = ranked.scores[: len(item_ids)]
        return Recommendation(
            item_ids=tuple(item_ids),
            item_keys=tuple(str(self.catalog.item_keys[item]) for item in item_ids),
            scores=tuple(scores),
            titles=tuple(self.catalog.titles[item] for item in item_ids),
            cold_start=ranked is None,
            unknown=history.unknown,
            unread=history.unread,
            items_version=self.catalog.items_version if ranked is None else ranked.items_version,
            policy_version=self.version if ranked is None else ranked.policy,
            codebook_id=self.catalog.codebook_id,
            unknown_user=history.unknown_user,
        )

    # -- on disk --------------------------------------------------------------------------------------------------

    def save_model(
        self, path: str | Path, *, digest: str, parents: dict[str, str], training: dict[str, Any] | None = None
    ) -> None:
        """Write the model artifact (weights in shards small enough to move about); the Catalog is its own artifact.

        ``training`` is kept beside it: what the training cost and reached.
        """
        info = {
            "codebook_id": self.catalog.codebook_id,
            "num_items": self.num_known,
            "training": training or {},
        }
        manifest = artifacts.Manifest("model", digest, parents=parents, recipe={"model": self.model_section}, info=info)
        with artifacts.writing(path, manifest) as folder:
            artifacts.save_tensors(folder, self.model.state_dict())

    @classmethod
    def load(
        cls, path: str | Path, device: str = "cpu", catalog: Catalog | None = None, beam: int | None = None
    ) -> Recommender:
        """Open a run folder (``catalog/`` and ``model/`` inside). A ``catalog`` given replaces the run's own.

        ``beam`` is a setting of decoding, so it comes from the run's recipe ([eval] beam), not from the model.
        """
        path = Path(path)
        if not path.is_dir():
            raise ArtifactError(f"no run folder at {str(path)!r}", fix="give a folder that `sidera run` wrote")
        catalog = catalog or Catalog.load(path / "catalog")
        opened = open_artifact(path / "model", "model")
        model, section, num_known = saved_model(opened, catalog)
        if beam is None:
            beam = beam_of_run(path) if isinstance(model, Generator) else DEFAULT_BEAM  # a scorer searches nothing
        return cls(
            model, catalog, model_section=section, beam=beam, device=device, num_known=num_known,
            version=opened.manifest.digest,
        )  # fmt: skip


def without_repeats(candidates: Tensor, left_out: tuple[Tensor, Tensor] | None) -> Tensor:
    """(B, C) candidates with -1 where an item stands further to the left already, or is left out (jagged)."""
    earlier_mask = torch.ones(candidates.shape[1:] * 2, dtype=torch.bool, device=candidates.device).tril(-1)
    repeats = ((candidates[:, :, None] == candidates[:, None]) & earlier_mask).any(2)
    if left_out is not None:
        values, offsets = left_out[0].to(candidates.device), left_out[1].to(candidates.device)
        for row in range(len(candidates)):
            repeats[row] |= torch.isin(candidates[row], values[offsets[row] : offsets[row + 1]])
    return candidates.masked_fill(repeats, -1)


def beam_of_run(path: Path) -> int:
    """The beam that the run's evaluation used: what is measured is what is served. ArtifactError where none is said."""
    file = path / RUN_RECIPE
    try:
        beam = read_json(file, MAX_RECIPE_BYTES)["eval"]["beam"]
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} has no {RUN_RECIPE}, which says how wide its beam was when it was measured",
            fix=f"put {RUN_RECIPE} of the run beside model/ and catalog/, or give beam to Recommender.load",
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        beam = None
    most = MOST["beam"]
    if type(beam) is not int or not 1 <= beam <= most:
        raise ArtifactError(f"{file} is damaged: no [eval] beam from 1 to {most:,}", fix="run the recipe again")
    return beam


def check_device(device: str) -> None:
    """InputError unless this machine has the device."""
    try:
        named = torch.device(device)
    except RuntimeError:
        named = torch.device("meta")
    if named.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not known", allowed="cpu, cuda, cuda:0, ...")
    if named.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: this machine or this build of torch has no CUDA", fix="use cpu")
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not here", allowed=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")


def _left_out(batch: Batch, exclude: Exclusion | None, filter_seen: bool) -> Exclusion | None:
    """What is not answered: ``exclude``, and in mode ``filter_seen`` every item of the whole histories, on their
    device."""
    device = batch.events.offsets.device
    if not filter_seen:
        return None if exclude is None else (exclude[0].to(device), exclude[1].to(device))
    seen = Jagged(batch.item_ids, batch.events.offsets)
    if exclude is not None:
        seen = Jagged(exclude[0].to(device), exclude[1].to(device)).join(seen)
    return seen.values, seen.offsets


def _exclusion(lists: list[list[int]]) -> Exclusion:
    found = Jagged.of(lists)
    return found.values, found.offsets
