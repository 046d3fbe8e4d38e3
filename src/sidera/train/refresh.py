"""Yesterday's model and today's events: a new version that is better or at least no worse, or the old one and why.

    sidera refresh runs/shop --data data/shop

1. The catalogue of the current version takes in the items that came since; its codes stay what they are.
2. The weights of the current version, with rows for the new items, are trained on the events that came since, and on
   as many older ones. The newest part of the log is held back. Small and large steps are tried: a larger one is taken
   where it is clearly better on that part, for a log that stands still loses by large steps what one that moves gains.
3. The gate asks both models what came next there (``gate.py``).
4. The same training goes on with the newest part, and the result becomes the next version, and current.

Where the gate says no, the old version stays and the reason is kept. What is done lies below ``versions/.work`` and is
reused: a refresh that was killed, wherever, goes on when it is called again, and the old version answers meanwhile.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidera import artifacts
from sidera.bounds import read_json
from sidera.catalog.catalog import Catalog
from sidera.catalog.newcomers import TextNeighbours, met_beside, newcomer_places
from sidera.config import check_value, digest
from sidera.core import InputError
from sidera.data.config import View, load_dataset
from sidera.data.dataset import Dataset
from sidera.data.newest import NewPart, in_order, neutral_rows, new_part, rows_since
from sidera.data.split import train_sequences
from sidera.engine import versions
from sidera.engine.expert import FOLDER as EXPERT
from sidera.engine.expert import Expert
from sidera.engine.living import catalog_now
from sidera.engine.recommender import Recommender
from sidera.engine.run_folder import RUN_RECIPE
from sidera.engine.serving import Parts, open_expert
from sidera.engine.versions import Version
from sidera.eval.bootstrap import paired_test
from sidera.eval.ranking import sample_rows
from sidera.fit.loop import fit
from sidera.loading import open_artifact
from sidera.models import RANKING, build_model, fit_once, role_of, saved
from sidera.nn.item_embedding import grown
from sidera.ops.columns import Column
from sidera.stage import stage
from sidera.train.gate import Answers, Gates, Verdict, answers_of, judge, size_of
from sidera.train.notes import Say, say_once
from sidera.train.recipe import Recipe
from sidera.train.run_lock import run_lock
from sidera.train.stages import Prepared, batch_source

WORK = ".work"  # below versions/


@dataclass(frozen=True)
class RefreshConfig:
    """How a model goes on. Learning rates and epochs are for few events and weights that know much already."""

    epochs: int = 2  # over the new part, and over the newest part afterwards
    lr_ratio: tuple[float, ...] = (0.02, 0.2, 1.0)  # learning rates / that of the recipe; of several, one is chosen
    replay: float = 1.0  # older rows for each new one
    gate_share: float = 0.3  # of the new positive events, the newest: what the gate measures on, at most a day of them
    since: int | None = None  # second from which events are new; None: where the current version's training ended
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        check_value("refresh", "epochs", self.epochs, self.epochs >= 1, "1 or more")
        several = isinstance(self.lr_ratio, (tuple, list)) and len(self.lr_ratio) > 0
        check_value("refresh", "lr_ratio", self.lr_ratio, several, "one number or several, as in (0.02, 0.2)")
        for ratio in self.lr_ratio:
            check_value("refresh", "lr_ratio", ratio, 0 < ratio <= 10, "above 0, at most 10")
        object.__setattr__(self, "lr_ratio", tuple(sorted(set(self.lr_ratio))))
        check_value("refresh", "replay", self.replay, 0 <= self.replay <= 1000, "0 to 1000")
        check_value("refresh", "gate_share", self.gate_share, 0 < self.gate_share < 1, "a share inside 0..1")


@dataclass(frozen=True)
class Step:
    """Which learning rate was taken."""

    lr_ratio: float
    tried: tuple[tuple[float, float], ...] = ()  # (ratio, NDCG@10 on the newest part) of each, where several were


@dataclass(frozen=True)
class Refreshed:
    """What came of a refresh."""

    version: int  # that is current now
    published: bool
    why: str
    gate: dict[str, Any] = field(default_factory=dict)
    cpu_seconds: float = 0.0


def refresh(
    run: str | Path, data: str | Path, config: RefreshConfig | None = None, *, device: str = "cpu", say: Say = say_once
) -> Refreshed:
    """The next version of ``run`` from the events of ``data``. InputError when these are no continuation."""
    run, begun = Path(run), time.process_time()
    with run_lock(run):
        work = _Refresh(run, data, config or RefreshConfig(), device, say)
        done = work.go()
    say(f"{run}: {done.why}")
    return replace(done, cpu_seconds=round(time.process_time() - begun, 2))


class _Refresh:
    """One call."""

    def __init__(self, run: Path, data: str | Path, config: RefreshConfig, device: str, say: Say) -> None:
        self.run, self.config, self.device, self.say = run, config, device, say
        self.base = versions.read_version(run, versions.current_number(run))
        self.folder = versions.folder_of(run, self.base.number)
        self.recipe = Recipe.of_run(self.folder)
        if role_of(self.recipe.model_name) in RANKING:
            raise InputError(
                f"{run} holds {self.recipe.model_name!r}, which answers no lists", fix="train it again: sidera run"
            )
        self.base_catalog, self.messages = catalog_now(run, self.base.number)
        self.dataset = in_order(load_dataset(data, self.recipe.data, say), self.base_catalog.item_keys.tolist())
        inputs = [
            self.base.model, self.base_catalog.content_digest(), self.dataset.digest, asdict(config),
            self.recipe.fit.identity(),
        ]  # fmt: skip
        self.inputs = digest(inputs)
        self.work = run / versions.FOLDER / WORK

    def go(self) -> Refreshed:
        if (made := self._made_before()) is not None:
            return made
        part = self._part()
        if part is None:
            return Refreshed(self.base.number, False, f"kept version {self.base.number}: nothing new in the data")
        self.part = part
        self._begin()
        candidate, step, answers = self._choose()
        verdict = self._gate(candidate, step, answers)
        if not verdict["passed"]:
            return self._keep(verdict)
        final = stage(
            self.work / "final", "model", [self.inputs, "final", step.lr_ratio],
            lambda wanted: self._final(candidate, wanted, step.lr_ratio), lambda: self._open("final"),
        )  # fmt: skip
        return self._publish(final, verdict)

    # -- what is new ---------------------------------------------------------------------------------------------

    def _part(self) -> NewPart | None:
        since = self.base.seen_until if self.config.since is None else self.config.since
        if since is None:
            raise InputError(
                f"version {self.base.number} of {self.run} does not say until when it was trained",
                fix="say from which second events are new: --since SECOND",
            )
        reads_all = bool(self.recipe.model_config.reads.feedback)
        schema = self.base_catalog.schema
        return new_part(self.dataset, schema, since, reads_all=reads_all, gate_share=self.config.gate_share)

    def _made_before(self) -> Refreshed | None:
        """A version of the same inputs: one that a kill left unpublished becomes current; one that was taken back
        stays so."""
        for number in reversed(versions.numbers(self.run)):
            if number and versions.read_version(self.run, number).inputs == self.inputs:
                if any(line["what"] == "current" and line["version"] == number for line in versions.history(self.run)):
                    why = f"kept version {self.base.number}: version {number} was made of the same, and was taken back"
                    return Refreshed(self.base.number, False, f"{why} (sidera rollback {self.run} {number} brings it)")
                return self._make_current(number, dict(versions.read_version(self.run, number).gate))
        return None

    # -- stages --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Work that other inputs left is cleared away."""
        mark = self.work / "inputs.json"
        try:
            same = read_json(mark)["inputs"] == self.inputs
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            shutil.rmtree(self.work, ignore_errors=True)
            artifacts.write_text(mark, json.dumps({"inputs": self.inputs}) + "\n")

    @cached_property
    def catalog(self) -> Catalog:
        path = self.work / "catalog"
        return stage(path, "catalog", [self.inputs, "catalog"], self._grow, lambda: Catalog.load(path))

    def _grow(self, wanted: str) -> Catalog:
        """The base's catalogue and the items that only the data names, with the popularity of now."""
        catalog, dataset = self.base_catalog, self.dataset
        first = catalog.num_items
        if dataset.num_items > first:
            table = dataset.items.slice(first)
            texts = _texts(dataset, catalog)
            positive = self.part.view(self.part.cut).dataset
            placed = newcomer_places(
                catalog, texts[first:], TextNeighbours(texts[:first]), catalog.schema.categories_of(table),
                met_beside(positive.item_ids, positive.offsets, first, dataset.num_items),
            )  # fmt: skip
            titles = table["title"].to_pylist() if "title" in table.column_names else None
            catalog = catalog.with_items(table["key"].to_pylist(), placed.vectors, titles, table)
            self.say(f"catalog: {catalog.num_items - first:,} new items on codes that were free")
        positive = self.part.everything.item_ids[self.part.positive_mask]
        counts = np.bincount(positive, minlength=catalog.num_items).astype(np.int64)
        catalog = replace(catalog, popularity=Column.of(counts))
        catalog.save(self.work / "catalog", artifact_digest=wanted, parents={"data": dataset.digest})
        return Catalog.load(self.work / "catalog")

    @cached_property
    def old(self) -> Recommender:
        opened = open_artifact(self.folder / "model", "model")
        model, section, known = saved.saved_model(opened, self.catalog)
        old = self._recommender(model, section, opened.manifest.digest, known)
        if (expert := open_expert(self.folder, old.snapshot)) is not None:
            old.parts = Parts((expert,))
        return old

    def _recommender(self, model: torch.nn.Module, section: dict[str, Any], version: str, known: int) -> Recommender:
        return Recommender(
            model, self.catalog, model_section=section, beam=self.recipe.eval.beam, device=self.device,
            num_known=known, version=version,
        )  # fmt: skip

    def _choose(self) -> tuple[Recommender, Step, Answers | None]:
        """The candidate of the smallest steps, or of larger ones that are clearly better on the newest part; and its
        answers there, where it was asked."""
        view, ratios = self.part.view(self.part.cut), self.config.lr_ratio
        rows, neutral = neutral_rows(view)
        if len(ratios) > 1 and not neutral and "slot" in view.dataset.feedback:
            # larger steps towards what a model showed look better on what it showed, whatever they are
            self.say("steps: the newest part answers the model's own lists, so the smallest are taken unseen")
            ratios = ratios[:1]
        best, step = self._made(ratios[0]), Step(ratios[0])
        if len(ratios) == 1 or not len(rows):
            return best, step, None
        rows = sample_rows(rows, self.config.gates.rows, self.recipe.eval.seed)
        asked = partial(answers_of, dataset=view.dataset, rows=rows, filter_seen=self.filter_seen)
        answers = asked(best)
        tried = [(ratios[0], round(float(answers[0].mean()), 5))]
        for ratio in ratios[1:]:
            one = self._made(ratio)
            its = asked(one)
            tried.append((ratio, round(float(its[0].mean()), 5)))
            if paired_test(its[0], answers[0], rows.user_ids, seed=self.recipe.eval.seed).low > 0:
                best, answers, step = one, its, Step(ratio)
        self.say("steps: " + ", ".join(f"{ratio:g} x the recipe's {ndcg:.4f}" for ratio, ndcg in tried)
                 + f"; taken {step.lr_ratio:g}")  # fmt: skip
        return best, replace(step, tried=tuple(tried)), answers

    def _made(self, ratio: float) -> Recommender:
        name = f"candidate-{ratio:g}"
        return stage(
            self.work / name, "model", [self.inputs, "candidate", ratio],
            lambda wanted: self._candidate(wanted, ratio, name), lambda: self._open(name),
        )  # fmt: skip

    def _candidate(self, wanted: str, ratio: float, name: str) -> Recommender:
        """The old weights, trained on the new part up to the cut."""
        old = self.old
        model = build_model(self.recipe.model_name, self.recipe.model_config, self.catalog, self.recipe.fit.seed)
        if hasattr(model, "feed"):
            model.load_state_dict(grown(old.snapshot.trained, self.catalog.items).state_dict())
        new = self._recommender(model, old.model_section, wanted, self.catalog.num_items)
        self._learn(new, self.part.view(self.part.cut), self.part.since, ratio, f"fit-{ratio:g}")
        return self._save(new, name, wanted, old.serving.expert, self.part.cut)

    def _final(self, candidate: Recommender, wanted: str, ratio: float) -> Recommender:
        """The candidate, trained on the newest part too."""
        candidate.sign(wanted)
        self._learn(candidate, self.part.view(self.part.end), self.part.cut, ratio, "fit-final")
        return self._save(candidate, "final", wanted, candidate.serving.expert, self.part.end)

    def _learn(self, new: Recommender, view: View, since: int, ratio: float, name: str) -> None:
        model, config = new.snapshot.trained, self.recipe.fit
        fit_once(model, view)
        prepared = Prepared(view.dataset, view.split, view.schema, view)
        source = batch_source(self.recipe, prepared, model, new.read_log(view.dataset))
        if source is None:
            return
        rows = rows_since(source, since, self.config.replay, config.seed)
        settings = replace(
            config, epochs=self.config.epochs, lr=ratio * config.lr, min_steps=0, max_steps=None,
            warmup_steps=min(config.warmup_steps, 10), max_minutes=None, patience=0, schedule="linear",
        )  # fmt: skip
        fit(model, rows, settings, self.work / name, device=self.device, identity={"refresh": self.inputs})
        model.eval()

    def _save(self, new: Recommender, name: str, wanted: str, expert: Expert | None, before: int) -> Recommender:
        """The model, and beside it the expert's weights over counts of the positive events before a second."""
        parents = {"model": self.base.model, "data": self.dataset.digest}
        if expert is not None:
            view = replace(self.part, reads_all=False).view(before)
            counted = expert.recounted(*train_sequences(view.dataset, view.split), self.catalog.num_items, wanted)
            counted = replace(counted, info={**(counted.info or {}), "counted_until": before - 1})
            counted.save(self._expert(name), digest=wanted, parents={"model": wanted, "data": self.dataset.digest})
        new.save_model(
            self.work / name, digest=wanted, parents=parents, training={"seen_until": self.part.end, "refreshed": True}
        )
        return self._open(name)

    def _expert(self, name: str) -> Path:
        return self.work / f"{name}-expert"

    def _open(self, name: str) -> Recommender:
        opened = open_artifact(self.work / name, "model")
        made = self._recommender(*saved.saved_model(opened, self.catalog)[:2], opened.manifest.digest,
                                 self.catalog.num_items)  # fmt: skip
        if self._expert(name).is_dir():
            made.parts = Parts((Expert.load(self._expert(name), self.catalog).to(self.device),))
        return made

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def filter_seen(self) -> bool:
        return "filter" in self.recipe.fit.monitor

    def _gate(self, candidate: Recommender, step: Step, answers: Answers | None) -> dict[str, Any]:
        file = self.work / "gate.json"
        try:
            return dict(read_json(file))
        except (OSError, ValueError):
            pass
        view = self.part.view(self.part.cut)
        rows, neutral = neutral_rows(view)
        sizes = (
            size_of(self.folder / "model", self.folder / "catalog"),
            size_of(self.work / f"candidate-{step.lr_ratio:g}", self.work / "catalog"),
        )
        verdict: Verdict = judge(
            self.old, candidate, view.dataset, rows, self.config.gates, sizes=sizes, neutral=neutral,
            seed=self.recipe.eval.seed, filter_seen=self.filter_seen, answers=answers,
        )  # fmt: skip
        self.say(f"gate: {verdict.line()}")
        found = {**verdict.to_json(), **asdict(step)}
        artifacts.write_text(file, json.dumps(found) + "\n")
        return found

    def _keep(self, verdict: dict[str, Any]) -> Refreshed:
        why = f"kept version {self.base.number}: " + "; ".join(verdict["against"])
        told = [line for line in versions.history(self.run) if line.get("inputs") == self.inputs]
        if not told:
            versions.note(self.run, "kept", self.base.number, why, inputs=self.inputs, gate=verdict)
        return Refreshed(self.base.number, False, why, verdict)

    def _publish(self, final: Recommender, verdict: dict[str, Any]) -> Refreshed:
        number = versions.next_number(self.run)
        with versions.adding(self.run, number) as folder:
            for name, part in (("catalog", "catalog"), ("final", "model")):
                shutil.copytree(self.work / name, folder / part)
            if self._expert("final").is_dir():
                shutil.copytree(self._expert("final"), folder / EXPERT)
            if (self.folder / "reward").is_dir():
                shutil.copytree(self.folder / "reward", folder / "reward")
            shutil.copyfile(self.folder / RUN_RECIPE, folder / RUN_RECIPE)
            versions.write_record(
                folder,
                Version(
                    number, final.version, self.catalog.num_items, self.base.number, self.inputs, self.part.end,
                    self.messages, verdict, int(time.time()),
                ),
            )  # fmt: skip
        return self._make_current(number, verdict)

    def _make_current(self, number: int, verdict: dict[str, Any]) -> Refreshed:
        why = f"published version {number}, made of version {self.base.number}"
        versions.make_current(self.run, number, why)
        shutil.rmtree(self.work, ignore_errors=True)
        return Refreshed(number, True, why, verdict)


def _texts(dataset: Dataset, catalog: Catalog) -> list[str | None]:
    """(N,) what is known of every item in words."""
    texts: list[str | None] = [None] * dataset.num_items
    for name in ("text", "title"):
        if name in dataset.items.column_names:
            texts = [a or b for a, b in zip(texts, dataset.items[name].to_pylist(), strict=True)]
    titles = catalog.titles.tolist()
    return [text or (titles[place] if place < len(titles) else None) for place, text in enumerate(texts)]
