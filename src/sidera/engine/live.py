"""A run that answers and changes meanwhile: other versions of its model, and items that come and go.

    with LiveRun.open("runs/shop", serve=ServeConfig(store="store")) as live:
        live.recommender.recommend(...)
        live.change_items(Delta(removed=("cup-3",)))
        live.swap(4)                                     # or swap(): what `runs/shop/current` names

A swap loads the version beside the one that answers, checks it, answers some requests with it, and replaces one
reference. Whatever fails before that leaves the old version answering. Calls that have begun finish with what they
began with. The behaviour store goes by item keys, so a version with other codes reads the same histories.

Several processes may serve one run: each follows the log of items and the pointer (:meth:`LiveRun.follow`), which
``sidera serve --watch SECONDS`` does all the time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidera import console
from sidera.catalog.catalog import Catalog
from sidera.catalog.newcomers import TextNeighbours
from sidera.core import ArtifactError, InputError, Recommendation, Request
from sidera.engine import versions
from sidera.engine.answerer import Answerer
from sidera.engine.export import export_events, read_exposures
from sidera.engine.exposures import ExposureWriter
from sidera.engine.items_log import ITEMS, MODEL, NAME, ItemsLog, Record
from sidera.engine.living import Applied, Delta, catalog_now, recorded, replayed
from sidera.engine.pipeline import Pipeline
from sidera.engine.recommender import DEFAULT_BEAM, Recommender
from sidera.engine.routes import Route, Side
from sidera.engine.run_folder import beam_of_run, load_snapshot
from sidera.engine.serving import ServeConfig, Serving, followed, open_exposures, open_steps, with_programs
from sidera.engine.version_catalogs import VersionCatalogs, digest_of

DAY = 86_400  # seconds
LONGEST_REST = 0.02  # seconds between two of them
WARM_REQUESTS = 8  # histories that a new version answers before anybody asks it


class LiveRun:
    """A Recommender, the run folder that it is of, and what changes it. Any number of threads."""

    def __init__(
        self, recommender: Recommender, run: Path | None = None, number: int = 0, serve: ServeConfig | None = None
    ) -> None:
        """``run`` None: a recommender without a run folder; its items change in memory alone."""
        self.recommender, self.run, self.number, self.config = recommender, run, number, serve or ServeConfig()
        self.log = ItemsLog.of_run(run)
        self.place = self.log.last() if run is not None else 0  # record up to which the catalogue has taken in all
        self.problem = ""  # why the last swap that the pointer asked for failed
        self._loading = threading.Lock()  # one version is loaded at a time
        self._catalogs = VersionCatalogs()
        self._digest = "" if run is None else digest_of(run, number)  # of the catalogue artifact that answers
        self._writers: dict[str, ExposureWriter] = {}  # by codebook, where versions of several have answered
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        recommender.live = self

    @classmethod
    def open(cls, run: str | Path, device: str = "cpu", serve: ServeConfig | None = None) -> LiveRun:
        """The current version of a run folder, with all changes of items."""
        run = Path(run)
        if not (run / "model").is_dir():
            raise ArtifactError(f"no run folder at {str(run)!r}", fix="give a folder that `sidera run` wrote")
        number = versions.current_number(run)
        catalog, place = catalog_now(run, number)
        recommender = Recommender.load(versions.folder_of(run, number), device, catalog, serve=serve)
        live = cls(recommender, run, number, serve)
        live.place = place
        with recommender.swapping:
            live._register(number)
            live.follow()
        return live

    @classmethod
    def of(cls, recommender: Recommender) -> LiveRun:
        """Of a recommender that was opened without its run folder, too."""
        with recommender.swapping:
            return recommender.live or cls(recommender)

    # -- items ---------------------------------------------------------------------------------------------------

    def change_items(self, delta: Delta) -> Applied:
        """Apply one message: all of it is in the next answer and in the log, or InputError and nothing happened.

        A message that was applied already changes nothing. Conflict for one that contradicts what was applied;
        OSError when the disk does not take it.
        """
        with self.recommender.swapping:
            with self.log.writing():
                self._take_in()
                now = self.recommender.serving.snapshot.catalog
                done, catalog, place = recorded(self.log, now, delta, self._index)
                if not done.new:
                    return done
                prepared = self._over(catalog, self.log.after(place - 1)) if done.changes else None
            self.place = place
            if prepared is not None:  # only now: the disk has it
                self.recommender.serving, self.recommender.route = prepared
        return done

    def _take_in(self) -> None:
        """Messages that other processes wrote."""
        records = self.log.after(self.place)
        if not records:
            return
        self.recommender.serving, self.recommender.route = self._over(
            replayed(self.recommender.catalog, records), records
        )
        self.place = records[-1].number

    def _over(self, catalog: Catalog, records: Sequence[Record]) -> tuple[Serving, Route | None]:
        """What answers over the next catalogue; and a canary or shadow over its own, after the same messages."""
        serving, route = self.recommender.serving.with_catalog(catalog), self.recommender.route
        if route is None:
            return serving, None
        before, texts = route.serving.snapshot.catalog, None
        if before.codebook_id != catalog.codebook_id:  # it places new items itself
            texts = self._catalogs.index(digest_of(self._folder(), route.number), before, self.place)
        side = replayed(before, records, texts)
        return serving, replace(route, serving=route.serving.with_catalog(side))

    def _index(self, catalog: Catalog) -> TextNeighbours:
        return self._catalogs.index(self._digest, catalog, self.place)

    # -- versions ------------------------------------------------------------------------------------------------

    def swap(self, number: int | None = None) -> dict[str, Any]:
        """Answer with a version, by default the one that ``current`` names; one that is given becomes current.

        InputError, with the old version answering, when it cannot be loaded, does not fit the store or answers wrongly.
        """
        run = self._folder()
        wanted = versions.current_number(run) if number is None else number
        begun = time.perf_counter()
        with self._loading:
            prepared = self._prepare(wanted)
            loaded = time.perf_counter()
            with self.recommender.swapping, self.log.writing():
                self._register(wanted, locked=True)
                self._take_in()
                catalog = self._catalog(wanted)
                newest = max(self.log.items_version(), catalog.items_version)
                prepared = self._beside(prepared.with_catalog(catalog.at_version(newest)))
                self._catalogs.keep(self._digest, self.recommender.serving.snapshot.catalog, self.place)
                self._digest = digest_of(run, wanted)
                before, self.number, self.place = self.number, wanted, self.log.last()
                self.recommender.serving, self.recommender.route = prepared, None
            if number is not None and versions.current_number(run) != number:
                versions.make_current(run, number, "swapped by the server")
        self.problem = ""
        return {
            "version": wanted, "before": before, "policy_version": prepared.snapshot.version,
            "codebook_id": prepared.snapshot.catalog.codebook_id, "items_version": newest,
            "seconds": round(time.perf_counter() - begun, 3), "held_seconds": round(time.perf_counter() - loaded, 4),
        }  # fmt: skip

    def _prepare(self, number: int) -> Serving:
        """A version with the items of now, loaded, checked and warm."""
        run = self._folder()
        folder, now = versions.folder_of(run, number), self.recommender.serving
        versions.read_version(run, number)
        catalog = self._catalog(number)
        snapshot = self.config.of(load_snapshot(folder, now.snapshot.device, catalog))
        beam = self.config.beam or (beam_of_run(folder) if snapshot.generates else DEFAULT_BEAM)
        steps = open_steps(folder, self.config, snapshot)
        pipeline = Pipeline(beam, steps)
        snapshot, self.recommender.compiled_note = with_programs(snapshot, folder, self.config, pipeline)
        behaviour = None if now.parts.behaviour is None else now.parts.behaviour.over(snapshot.catalog)
        steps = followed(steps, behaviour)
        prepared = Serving(snapshot, replace(now.parts, steps=steps, behaviour=behaviour, exposures=None), beam)
        self._check(prepared, number)
        return prepared

    def _catalog(self, number: int) -> Catalog:
        """A version's items of now."""
        with self.recommender.swapping:  # what is answered with is of now
            wanted, route = digest_of(self._folder(), number), self.recommender.route
            if wanted == self._digest:
                return self.recommender.serving.snapshot.catalog
            if route is not None and wanted == digest_of(self._folder(), route.number):
                return route.serving.snapshot.catalog
        return self._catalogs.of(self._folder(), number, self.log)

    def _beside(self, prepared: Serving) -> Serving:
        """With the exposure log of the version's codebook; what followed on an answer goes into the logs of all."""
        now = self.recommender.serving
        if now.parts.exposures is None or self.config.exposures is None:
            return replace(prepared, parts=replace(prepared.parts, exposures=now.parts.exposures))
        self._writers.setdefault(now.snapshot.catalog.codebook_id, now.parts.exposures)
        catalog = prepared.snapshot.catalog
        if catalog.codebook_id not in self._writers:
            self._writers[catalog.codebook_id] = open_exposures(self.config.exposures, catalog, self.config.retention)
        mine = self._writers[catalog.codebook_id]
        self.recommender.parts = replace(now.parts, also=self._others(now.parts.exposures))
        return replace(prepared, parts=replace(prepared.parts, exposures=mine, also=self._others(mine)))

    def _others(self, mine: ExposureWriter) -> tuple[ExposureWriter, ...]:
        return tuple(writer for writer in self._writers.values() if writer is not mine)

    def _check(self, serving: Serving, number: int) -> None:
        """Answers of a version that nobody sees: each item there, once, with a number as its score."""
        catalog = serving.snapshot.catalog
        popular = [str(catalog.item_keys[item]) for item in serving.snapshot.most_popular(WARM_REQUESTS, set())]
        requests = [Request(tuple(popular[:end])) for end in range(1, len(popular) + 1)]
        if serving.parts.behaviour is not None:
            requests += [Request(user=user) for user in serving.parts.behaviour.store.users(limit=WARM_REQUESTS)]
        answerer = Answerer(serving.snapshot, serving.pipeline, serving.parts.behaviour)
        answers = list[Recommendation | Exception]()
        for some in [*([one] for one in requests[:-2]), requests[-2:]]:  # alone, and last two together
            begun = time.perf_counter()
            answers += answerer(some)
            time.sleep(min(LONGEST_REST, time.perf_counter() - begun))  # who asks the old version goes first
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            ids = np.array(answer.item_ids)
            problem = (
                "no item" if not len(ids)
                else "an item twice" if len(set(answer.item_ids)) < len(ids)
                else "an item that is removed" if catalog.removed[ids].any()
                else "a score that is no number" if not np.isfinite(answer.scores).all()
                else ""
            )  # fmt: skip
            if problem:
                raise InputError(
                    f"version {number} answers {problem}", fix="train it again; the old version answers on"
                )

    def _register(self, number: int, locked: bool = False) -> None:
        """Another version answers: items_version moves on, in every process that serves the run."""
        if self.log.model() == number:
            return
        if not locked:
            with self.log.writing():
                return self._register(number, locked=True)
        newest = max(self.log.items_version(), self.recommender.catalog.items_version) + 1
        self.log.append(MODEL, number, newest, {}, "")

    # -- canary and shadow ---------------------------------------------------------------------------------------

    def try_out(self, number: int, share: float, side: Side) -> None:
        """Let a version answer a ``share`` of the users ("canary"), or be compared behind their answers ("shadow").

        Which users is decided by a hash of their key and the version's number.
        """
        with self._loading:
            prepared = self._prepare(number)
            with self.recommender.swapping:
                catalog = self._catalog(number)
                catalog = catalog.at_version(max(catalog.items_version, self.recommender.catalog.items_version))
                prepared = self._beside(prepared.with_catalog(catalog))
                self.recommender.route = Route(prepared, number, share, side)

    def stop_trial(self) -> None:
        with self.recommender.swapping:
            self.recommender.route = None

    # -- what others changed ---------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Take in what other processes changed: messages, and the version that ``current`` names.

        A version that fails its check is not tried again until the pointer moves; ``problem`` says why.
        """
        if self.log.last() > self.place:
            with self.recommender.swapping:
                self._take_in()
        if self.run is None:
            return
        wanted = versions.current_number(self.run)
        if wanted != self.number and not self.problem.startswith(f"version {wanted}: "):
            try:
                done = self.swap()
                console.say(f"version {done['version']} answers since now ({done['policy_version']})")
            except (InputError, OSError) as error:
                self.problem = f"version {wanted}: {error}"
                console.warn(f"WARNING: {self.problem}; version {self.number} answers on")

    def watch(self, seconds: float) -> None:
        """Follow every so many seconds, on a thread of its own, until :meth:`close`."""

        def look() -> None:
            while not self._stop.wait(seconds):
                try:
                    self.follow()
                except (InputError, OSError) as error:
                    self.problem = str(error)

        self._watcher = threading.Thread(target=look, name="versions", daemon=True)
        self._watcher.start()

    def export(self, name: str, since: int | None = None, until: int | None = None) -> tuple[Path, dict[str, Any]]:
        """Write the open store's events, with the exposures, to ``exports/NAME`` of the run (``engine.export``)."""
        parts, folder = self.recommender.parts, self._folder() / "exports" / name
        if parts.behaviour is None:
            raise InputError("no behaviour store is open", fix="serve with --store FOLDER")
        exposures = None
        if parts.exposures is not None and self.config.exposures is not None:
            exposures = read_exposures(self.config.exposures)
        schema = parts.behaviour.catalog.schema
        done = export_events(
            parts.behaviour.store, schema.columns, schema.labels, folder, exposures=exposures, since=since, until=until
        )
        return folder, asdict(done)

    def status(self) -> dict[str, Any]:
        """Which versions there are, and which answer whom."""
        run, route, serving = self.run, self.recommender.route, self.recommender.serving
        return {
            "answering": self.number,
            "policy_version": serving.snapshot.version,
            "codebook_id": serving.snapshot.catalog.codebook_id,
            "items_version": serving.snapshot.catalog.items_version,
            "current": 0 if run is None else versions.current_number(run),
            "versions": [] if run is None else versions.numbers(run),
            "trial": None if route is None else route.status(),
            "problem": self.problem,
        }

    def churn(self, now: Callable[[], float] = time.time) -> dict[str, Any]:
        """How the items changed since the model was trained, and in the last day."""
        serving = self.recommender.serving
        catalog, known = serving.snapshot.catalog, serving.snapshot.num_known
        records = [record for record in self.log.after(0) if record.kind == ITEMS]
        recent = [record for record in records if record.second >= now() - DAY]
        return {
            "items": int(catalog.num_items - catalog.removed.sum()),
            "removed": int(catalog.removed.sum()),
            "newer_than_the_model": int((~np.asarray(catalog.removed))[known:].sum()),
            "items_version": catalog.items_version,
            "last_message": self.log.last_message(),
            "messages": len(records),
            "last_day": {
                "messages": len(recent),
                "items_named": sum(len(record.body["upserts"]) for record in recent),
                "removals_named": sum(len(record.body["removed"]) for record in recent),
            },
        }

    def close(self) -> None:
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
        self.recommender.close()
        for writer in self._others(self.recommender.exposures) if self.recommender.exposures else ():
            writer.close()
        self.log.close()

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _folder(self) -> Path:
        if self.run is None:
            raise InputError("this server was opened without a run folder: it has one version", fix="sidera serve RUN")
        return self.run


def open_current(run: str | Path, device: str = "cpu", serve: ServeConfig | None = None) -> Recommender:
    """The version of a run folder that answers, with all changes of items: what ``sidera serve`` would answer with."""
    if not Path(run).is_dir():
        return Recommender.load(run, device)  # says what is wrong
    number = versions.current_number(run)
    changed = (Path(run) / NAME).exists()
    catalog = catalog_now(run, number)[0] if changed else None
    return Recommender.load(versions.folder_of(run, number), device, catalog, serve=serve)
