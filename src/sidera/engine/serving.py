"""How a run folder serves: alone, reranked by the network that it was rewarded by, with slots kept for new items, with
its users' histories in a store and its answers in a log.

    with sidera.load("runs/x", serve=ServeConfig(rerank=64, store="store", exposures="log")) as recommender:
        recommender.recommend([Request(user="ann")])

``sidera serve`` opens the same, with the same names as flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from sidera.artifacts import read_manifest
from sidera.catalog.catalog import Catalog
from sidera.config import parse_section
from sidera.core import ArtifactError, CatalogMismatch, InputError
from sidera.data.config import DataConfig, load_dataset
from sidera.decode.vector_index import IndexConfig, IndexKind
from sidera.engine.compiling import open_compiled
from sidera.engine.expert import FOLDER as EXPERT
from sidera.engine.expert import Expert
from sidera.engine.exposures import ExposureWriter, Retention
from sidera.engine.following import FollowedExpert
from sidera.engine.histories import Behaviour, open_behaviour
from sidera.engine.pipeline import Pipeline, Step
from sidera.engine.quota import Quota
from sidera.engine.reranker import FOLDER, Reranker, Source
from sidera.engine.run_folder import section_of_run
from sidera.engine.snapshot import Snapshot
from sidera.store.exposures import ExposureLog


@dataclass(frozen=True)
class ServeConfig:
    """What stands beside the model of a run folder when it serves; nothing by default."""

    rerank: int = 0  # candidates that the run's reward chooses among; 0: none does
    rerank_from: Source = "sample"  # candidates are drawn, or the search's best ("beam")
    cold_share: float = 0.0  # of the slots, kept for items that no log showed
    beam: int | None = None  # width of the search; None: the run's
    index: str = ""  # a retriever's items are searched by faiss: "flat", "ivf" or "hnsw"; "": all are compared
    index_recall: float = 0.95  # share of the exact top 10 that an approximate index must find
    expert: bool = True  # counts of item pairs beside the generator, where the run has an expert that helps
    store: str | Path | None = None  # folder of the behaviour store, made where there is none
    fill: str | Path | None = None  # data folder whose events a new store begins with
    category_index: str = ""  # feature of the items by which a user's events are found; "": the store's own, or none
    exposures: str | Path | None = None  # folder of the exposure log: answers to users
    exposures_days: float = 0.0  # older ones are let go; 0: none is
    exposures_mb: float = 0.0  # beyond so many MiB the oldest are; 0: none is
    compiled: bool = True  # what `sidera export` made of the run is used, where it is of this machine and these weights
    export_key: str | Path | None = None  # key that signed it; None: this machine's own

    def of(self, snapshot: Snapshot) -> Snapshot:
        """With the index, where one is asked for."""
        return snapshot.indexed(IndexConfig(cast(IndexKind, self.index), self.index_recall)) if self.index else snapshot

    @property
    def retention(self) -> Retention:
        return Retention(self.exposures_days, self.exposures_mb)

    def __post_init__(self) -> None:
        if (self.retention != Retention()) and not self.exposures:
            raise InputError(
                "exposures_days or exposures_mb without exposures", fix="name the log's folder (exposures, --exposures)"
            )
        if self.index:
            IndexConfig(cast(IndexKind, self.index), self.index_recall)  # checks them
        fix = "name the store's folder (store, --store)"
        if self.fill and not self.store:
            raise InputError(f"fill {self.fill} without a store", fix=fix)
        if self.category_index and not self.store:
            raise InputError(f"category_index {self.category_index!r} without a store", fix=fix)
        if self.exposures and not self.store:
            problem = f"exposures {self.exposures} without a store: logged answers are of requests that name a user"
            raise InputError(problem, fix=fix)


@dataclass(frozen=True)
class Parts:
    """What stands beside a Snapshot."""

    steps: tuple[Step, ...] = ()  # of the pipeline, behind the search
    behaviour: Behaviour | None = None  # histories of users that requests may name
    exposures: ExposureWriter | None = None  # answers to requests that name their user are logged
    also: tuple[ExposureWriter, ...] = ()  # logs of other codebooks: what followed on their answers goes there

    def close(self) -> None:
        """What was taken is on the disk when this returns, and the store's next start reads a snapshot."""
        with ExitStack() as closing:
            if self.behaviour is not None:
                closing.callback(self.behaviour.close)
                closing.callback(self.behaviour.snapshot)
            if self.exposures is not None:
                closing.callback(self.exposures.close)


@dataclass(frozen=True)
class Serving:
    """What a call takes when it begins: a Snapshot, and Parts that are of its catalogue."""

    snapshot: Snapshot
    parts: Parts
    beam: int  # width of a generator's search

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.beam, self.parts.steps)

    @property
    def expert(self) -> Expert | None:
        """What joins counts to the search, where something does."""
        for step in self.parts.steps:
            if isinstance(step, Expert | FollowedExpert):
                return step if isinstance(step, Expert) else step.now()
        return None

    def with_catalog(self, catalog: Catalog) -> Serving:
        """The same over a catalogue whose items came and went. Calls that hold this one are not touched."""
        parts = self.parts
        if parts.behaviour is not None:
            behaviour = parts.behaviour.over(catalog)
            steps = tuple(step.over(behaviour) if isinstance(step, FollowedExpert) else step for step in parts.steps)
            parts = replace(parts, behaviour=behaviour, steps=steps)
        return replace(self, snapshot=self.snapshot.with_catalog(catalog), parts=parts)


def with_programs(snapshot: Snapshot, run: Path, config: ServeConfig, pipeline: Pipeline) -> tuple[Snapshot, str]:
    """The snapshot with the programs that `sidera export` made of it, and a note of what became of them."""
    if not (config.compiled and snapshot.generates):
        return snapshot, ""
    opened = open_compiled(run, snapshot, pipeline.asked(snapshot.catalog.trie), config.export_key)
    if isinstance(opened, str):
        return snapshot, opened and f"answers are computed step by step: {opened}"
    return replace(snapshot, compiled=opened), f"compiled: {', '.join(opened.programs)}"


def open_parts(run: Path, config: ServeConfig, snapshot: Snapshot) -> Parts:
    """ArtifactError when there is no ``reward/`` in the run to rerank with; InputError for a store or a log of another
    catalogue. What was opened is closed again where a later part fails."""
    catalog, steps = snapshot.catalog, open_steps(run, config, snapshot)
    with ExitStack() as opened:
        behaviour = writer = None
        if config.store:
            behaviour = opened.enter_context(open_behaviour(config.store, catalog))
            if config.category_index:
                behaviour.index_by(config.category_index)
            if config.fill and behaviour.unfilled:
                why, fix = "how its data folder is read", "run the recipe again, or send the events"
                section = section_of_run(run, "data", why, fix)
                behaviour.fill(load_dataset(config.fill, parse_section(DataConfig, section, "[data]")))
        if config.exposures:
            writer = open_exposures(config.exposures, catalog, config.retention)
        opened.pop_all()
        steps = followed(steps, behaviour)
        return Parts(steps, behaviour, writer)


def open_steps(run: Path, config: ServeConfig, snapshot: Snapshot) -> tuple[Step, ...]:
    """What stands behind the search. ArtifactError when there is no ``reward/`` in the run to rerank with, and when its
    ``expert/`` is of another model."""
    steps = list[Step]()
    if config.expert and (expert := open_expert(run, snapshot)) is not None:
        steps.append(expert)
    if config.rerank:
        reranker = Reranker.load(run / FOLDER, snapshot.catalog, config.rerank, config.rerank_from)
        reranker.network.to(snapshot.device)
        steps.append(reranker)
    if config.cold_share:
        steps.append(Quota.cold(config.cold_share).check(snapshot.catalog))
    return tuple(steps)


def followed(steps: Sequence[Step], behaviour: Behaviour | None) -> tuple[Step, ...]:
    """The steps, and counts of the store's events in those that count."""
    return tuple(FollowedExpert.of(step, behaviour) if isinstance(step, Expert) else step for step in steps)


def open_expert(run: Path, snapshot: Snapshot) -> Expert | None:
    """The transition expert of a run folder; None where it has none, or one that did not help."""
    if not (run / EXPERT).is_dir():
        return None
    expert, made_for = Expert.load(run / EXPERT, snapshot.catalog), read_manifest(run / EXPERT, EXPERT).parents
    if made_for.get("model") != snapshot.version:
        raise ArtifactError(
            f"the expert in {run} was made for the weights {made_for.get('model')}, the model has {snapshot.version}",
            fix="run the recipe again, or remove the folder",
        )
    return expert.to(snapshot.device) if expert.is_on else None


def open_exposures(path: str | Path, catalog: Catalog, retention: Retention | None = None) -> ExposureWriter:
    """The exposure log of this codebook: at ``path``, or beside it (``PATH-CODEBOOK``) where that one is of another.

    A model that was trained again may have other codes. The log of the old ones stays where it is, and is complete.
    """
    codebook_id, num_levels = catalog.codebook_id, catalog.num_levels
    try:
        log = ExposureLog.open(path, codebook_id=codebook_id, num_levels=num_levels)
    except CatalogMismatch:
        beside = f"{path}-{codebook_id}"
        log = ExposureLog.open(beside, codebook_id=codebook_id, num_levels=num_levels)
    return ExposureWriter(log, retention=retention)
