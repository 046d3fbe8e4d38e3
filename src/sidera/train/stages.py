"""The stages of a run: catalog, train, evaluate. Each leaves an artifact and is skipped when its digest is there.

A stage's digest covers the content of its inputs and the recipe sections it reads, never paths or dates, so a run
folder can be moved, and changing [eval] does not train again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sidera import artifacts
from sidera.catalog.build import build_catalog, catalog_digest
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.config import digest, written
from sidera.core import InputError
from sidera.data.config import AUTO, View, load_dataset, make_views
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.reading import LogReading
from sidera.data.split import Split, fitted_split
from sidera.engine.ranking import Ranking
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.eval.evaluate import evaluate
from sidera.eval.evaluation import KIND as EVALUATION
from sidera.eval.evaluation import Evaluation, load_evaluation, save_evaluation
from sidera.eval.naming import evaluation_path
from sidera.eval.ranker_evaluation import KIND as RANKER_EVALUATION
from sidera.eval.ranker_evaluation import RankerEvaluation, evaluate_ranker
from sidera.fit import distributed
from sidera.fit.checkpoint import FOLDER
from sidera.fit.log import mean_mfu
from sidera.fit.loop import BatchSource, fit
from sidera.fit.protocols import Objective, model_loss
from sidera.loading import open_artifact
from sidera.models import RANKING, build_model, fit_once, reads_codes, role_of
from sidera.ops.allocator import release_memory
from sidera.ops.processor import emulates_bf16
from sidera.ops.threads import given_threads, num_threads, usable_threads
from sidera.stage import stage
from sidera.train.baselines import NOT_MEASURED, baselines, beside_expert, check_baselines, say_verdicts
from sidera.train.budget import spent_seconds
from sidera.train.distill import distilled
from sidera.train.expert import expert_of, expert_stage, recount_stage
from sidera.train.notes import Say, rows_bar, say_once
from sidera.train.ranker import validation as ranker_validation
from sidera.train.recipe import Recipe
from sidera.train.record import ModelIdentity, refit_record, seen_until, training_line, training_record
from sidera.train.refit import REFIT, check_choice, first_config, refit_config
from sidera.train.run_lock import one_writer
from sidera.train.validation import FILE as VALIDATION
from sidera.train.validation import Validation, watches_filter

Trained = Recommender | Ranking  # what answers lists, and what ranks candidates


@dataclass(frozen=True)
class Prepared:
    """Data as the recipe wants it: what the model reads, and the positive events that catalogues are made from.

    The two are one unless the model reads every exposure with its feedback and ``[data] positive`` names a label.
    """

    dataset: Dataset
    split: Split
    schema: FeatureSchema
    positives: View

    @property
    def view(self) -> View:
        """What the model reads."""
        return View(self.dataset, self.split, self.schema)

    @property
    def digest(self) -> str:
        """Of the events and of where they are cut: two temporal splits of one log are two data sets."""
        cuts = (self.split.train_ends, self.split.valid.ends, self.split.test.ends)
        return digest([self.dataset.digest, self.split.name, *(array.tolist() for array in cuts)])


def prepare(recipe: Recipe, data: str | Path, say: Say = say_once) -> Prepared:
    """Read and split; LeakError when the split could leak."""
    check_baselines(recipe.eval)
    everything, positives = make_views(load_dataset(data, recipe.data, say), recipe.data)
    view = everything if recipe.model_config.reads.feedback else positives
    dataset, split = view.dataset, view.split
    unasked = sum(split.num_without_history)
    say(
        f"data: {dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items,"
        f" {dataset.num_events:,} events; {split.name},"
        f" {len(split.valid):,} validation and {len(split.test):,} test rows"
        + (f" ({unasked:,} first events of users make none)" if unasked else "")
    )
    if recipe.data.positive == AUTO:
        say(f"  positive events: {view.schema.positive or 'all'}")
    return Prepared(dataset, split, view.schema, positives)


@one_writer
def catalog_stage(recipe: Recipe, prepared: Prepared, out: Path, say: Say = say_once) -> Catalog:
    """The dataset's items, with semantic IDs where the model reads them -> ``out/catalog``."""
    view, config = prepared.positives, recipe.catalog.for_model(reads_codes(recipe.model_name))
    path, wanted = out / "catalog", catalog_digest(view.dataset, view.split, config, view.schema)
    if distributed.rank() > 0:  # one process of a torchrun builds it, the others read it
        distributed.barrier()
        return Catalog.load(path)
    catalog = stage(
        path, "catalog", wanted, lambda wanted: _catalog(config, prepared, path, wanted, say),
        lambda: Catalog.load(path), reused=lambda: say(f"catalog: reused ({path})"),
    )  # fmt: skip
    distributed.barrier()
    return catalog


def _catalog(config: CatalogConfig, prepared: Prepared, path: Path, wanted: str, say: Say) -> Catalog:
    view, begun = prepared.positives, (time.perf_counter(), time.process_time())
    with num_threads(given_threads(usable_threads())):
        catalog, report = build_catalog(
            view.dataset, view.split, config, view.schema, encoder_path=path.parent / "item_encoder"
        )
    passed = time.perf_counter() - begun[0], time.process_time() - begun[1]
    report["build_seconds"] = {"wall": round(passed[0], 2), "cpu": round(passed[1], 2)}  # [fit] max_minutes counts them
    replace(catalog, report=report).save(
        path,
        artifact_digest=wanted,
        parents={"data": prepared.digest},
        recipe={"catalog": asdict(config)},
    )
    if catalog.has_codes:
        say(f"catalog: {catalog.num_items:,} items on {' x '.join(map(str, catalog.level_sizes))} codes, {path}")
        say(f"  made from {' + '.join(report['vector_blocks'])}")
    else:
        say(f"catalog: {catalog.num_items:,} items, no codes: the model reads none, {path}")
    for name in ("collision_rate", "neighbour_overlap@10"):
        if name in report:
            say(f"  {name} = {report[name]:.3f}")
    return Catalog.load(path)


@one_writer
def train_stage(
    recipe: Recipe, prepared: Prepared, catalog: Catalog, out: Path, *, device: str = "cpu", say: Say = say_once
) -> Trained | None:
    """Train the recipe's model -> ``out/model``; None when this call's time was up and the training is unfinished."""
    catalog_id = artifacts.read_manifest(out / "catalog", "catalog").digest
    # The catalogue's digest covers the training events. Two temporal splits may share these and differ in the window
    # that chooses the best weights, which must not reach into the other's test.
    inputs = [catalog_id, prepared.digest] if prepared.split.cut_times else [catalog_id]
    taught_by = getattr(recipe.model_config, "inputs", ())  # digests of what a model learns from beside the data
    identity = ModelIdentity((*inputs, *taught_by), {"catalog": catalog_id, "data": prepared.digest})

    def make(wanted: str) -> Trained | None:
        if recipe.fit.refit:
            return _refitted(recipe, prepared, catalog, out, identity, device, say)
        trained = _untrained(recipe, catalog, device, wanted)
        training = distilled(
            recipe, trained, lambda one: _untrained(one, catalog, device, ""),
            lambda one, model, folder, objective: _fitted(one, prepared, model, inputs, folder, say, objective),
            out / "fit", say,
        )  # fmt: skip
        if training is None:
            say("training is unfinished: give the same command again to go on")
            return None
        _save_trained(trained, out, identity, recipe, training)
        return trained

    def load() -> Trained:
        return open_trained(recipe, out, device, expert=False)  # its stage opens it, or makes another

    path = out / "model"
    return stage(path, "model", identity.digest(recipe), make, load, reused=lambda: say(f"train: reused ({path})"))


def _untrained(recipe: Recipe, catalog: Catalog, device: str, version: str) -> Trained:
    model = build_model(recipe.model_name, recipe.model_config, catalog, recipe.fit.seed)
    section, beam, search = recipe.model_section, recipe.eval.beam, recipe.eval.search
    if role_of(recipe.model_name) in RANKING:
        return Ranking(model, catalog, section, device, version=version)
    return Recommender(model, catalog, model_section=section, beam=beam, search=search, device=device, version=version)


def _save_trained(
    trained: Trained, out: Path, identity: ModelIdentity, recipe: Recipe, training: dict[str, Any]
) -> None:
    trained.model.eval()
    if distributed.rank() == 0:
        trained.save_model(out / "model", digest=identity.digest(recipe), parents=identity.parents, training=training)
        (out / "fit" / VALIDATION).unlink(missing_ok=True)
        for folder in (out / "fit" / FOLDER, out / "fit" / REFIT, *(out / "fit").glob("teacher-*")):
            shutil.rmtree(folder, ignore_errors=True)  # or the next recipe here would be refused
    distributed.barrier()


def _refitted(
    recipe: Recipe, prepared: Prepared, catalog: Catalog, out: Path, identity: ModelIdentity, device: str, say: Say
) -> Trained | None:
    """The model that validation chose, trained on with the validation events; None when it is unfinished.

    Until that is done the chosen model lies in ``out/model``; one that is there already, of the same recipe without a
    refit, is not trained again. What learns from the *answers* of validation rows has to learn them with that one.
    """
    fitted = replace(prepared, split=fitted_split(prepared.dataset, prepared.split, "train+valid"))
    spent = spent_seconds(catalog, recipe.fit, lambda _: None)
    first = replace(recipe, fit=replace(recipe.fit, refit=False))
    if not artifacts.is_current(out / "model", "model", identity.digest(first)):
        first = replace(recipe, fit=first_config(recipe.fit, spent))
    chosen = train_stage(first, prepared, catalog, out, device=device, say=say)
    if chosen is None:
        return None
    manifest = artifacts.read_manifest(out / "model", "model")
    training: dict[str, Any] = dict(manifest.info["training"])
    trained = _untrained(recipe, catalog, device, identity.digest(recipe))
    fit_once(trained.model, prepared.view, "train+valid")
    source = batch_source(recipe, fitted, trained.model, trained.read_log(prepared.dataset))
    if source is not None:
        trained.model.load_state_dict(chosen.model.state_dict())
        result = fit(
            trained.model, source, refit_config(recipe.fit, spent, training), out / "fit" / REFIT, device=device,
            identity={"chosen": manifest.digest}, say=say,
        )  # fmt: skip
        say(training_line(result, None))
        if not result.finished:
            say("training is unfinished: give the same command again to go on")
            return None
        training |= refit_record(training, result)
    recount_stage(recipe, prepared.view, prepared.positives, prepared.digest, chosen, trained.version, out, say)
    training |= {"fit": "train+valid", "seen_until": seen_until(fitted.view)}
    _save_trained(trained, out, identity, recipe, training)
    return trained


def _fitted(
    recipe: Recipe,
    prepared: Prepared,
    trained: Trained,
    inputs: list[str],
    folder: Path,
    say: Say,
    objective: Objective = model_loss,
) -> dict[str, Any] | None:
    """Train the network of ``trained`` -> what that cost and reached; None when it is unfinished."""
    model, device = trained.model, str(trained.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"train: {recipe.model_name}, {num_parameters:,} parameters")
    if recipe.fit.precision == "bf16" and emulates_bf16(device):
        say("train: this device has no bf16 arithmetic and emulates it, several times slower; --set fit.precision=auto")
    training: dict[str, Any] = {"parameters": num_parameters, "fit": "train", "seen_until": seen_until(prepared.view)}
    fit_once(model, prepared.view)
    if (source := batch_source(recipe, prepared, model, trained.read_log(prepared.dataset))) is None:
        return training
    identity = digest([*inputs, recipe.model_section, recipe.fit.resumable()])
    result = fit(
        model,
        source,
        recipe.fit,
        folder,
        objective=objective,
        evaluate=_validation(recipe, prepared, trained, folder, identity, say),
        device=device,
        identity=dict(zip(("catalog", "split"), inputs, strict=False)),
        say=say,
        spent_seconds=spent_seconds(trained.catalog, recipe.fit, say),
    )
    mfu = mean_mfu(folder)
    say(training_line(result, mfu))
    if not result.finished:
        return None
    return training | training_record(result, mfu)


def open_trained(recipe: Recipe, run: str | Path, device: str = "cpu", *, expert: bool = True) -> Trained:
    """The run's model as its role is used: it answers lists, with its ``expert`` if it has one, or ranks candidates."""
    if role_of(recipe.model_name) in RANKING:
        return Ranking.load(run, device=device)
    return Recommender.load(run, device=device, serve=ServeConfig(expert=expert))


def _validation(
    recipe: Recipe, prepared: Prepared, trained: Trained, folder: Path, identity: str, say: Say
) -> Callable[[Any], Mapping[str, float]]:
    """The figures that choose the best weights."""
    if isinstance(trained, Ranking):
        return ranker_validation(trained, prepared.view, recipe.eval)
    return Validation(
        trained, prepared.dataset, prepared.split.valid, recipe.eval, folder=folder, say=say,
        filter_too=watches_filter(recipe.fit.monitor), identity=identity,
    )  # fmt: skip


@one_writer
def evaluate_stage(
    recipe: Recipe, prepared: Prepared, trained: Trained, out: Path, which: Literal["valid", "test"] = "test",
    say: Say = say_once, *, name: str = "",
) -> Evaluation | RankerEvaluation:  # fmt: skip
    """Measure on the rows of ``which`` -> ``out/evaluation`` (test) or ``out/evaluation-valid``, or under a name.

    ``name`` puts it into ``out/evaluation-NAME``. ``out/evaluation`` is the official one, of the recipe's own settings.
    InputError when the model was trained on other data or another split: it may have seen what it would be asked.
    """
    if name == "valid" and which != "valid":
        raise InputError("the name 'valid' is that of the validation rows' evaluation", fix="give another --name")
    path = evaluation_path(out, name or ("" if which == "test" else which))
    opened = open_artifact(out / "model", "model")
    model_digest, seen = opened.manifest.digest, opened.manifest.parents.get("data")
    if seen is None:
        problem = f"the model in {out} does not say which data it was trained on: it may know the answers"
        raise InputError(problem, fix="train or align it again, into a new folder")
    fit_name = opened.info("training", dict).get("fit", "train")
    check_choice(which, fit_name)
    if seen != prepared.digest:
        raise InputError(
            f"the model in {out} was trained on other data or another split than {prepared.dataset.name}"
            f" ({prepared.split.name}): it may know the answers",
            fix="evaluate with its own data folder and [data] section, or train on this one",
        )
    items = [trained.catalog.codebook_id, trained.catalog.items_version]  # what may be answered may have changed
    items += [expert.version] if (expert := expert_of(trained)) else []
    measured = {key: value for key, value in written(recipe.eval).items() if key not in NOT_MEASURED}

    def make(wanted: str) -> Evaluation | RankerEvaluation:
        if name and path.exists():
            say(f"evaluate: {path.name} was made of another model or with other settings and is made again")
        info = {"seed": recipe.fit.seed, "model": recipe.model_section, "training": opened.info("training", dict)}
        release_memory()
        if isinstance(trained, Ranking):
            result = evaluate_ranker(trained, prepared.view, which, recipe.eval, name=recipe.model_name, info=info)
            result.save(path, digest=wanted, parents={"model": model_digest})
            return result
        asked = copy(trained)
        asked.search = recipe.eval.search
        with rows_bar("evaluate") as progress:
            lists = evaluate(
                asked, prepared.dataset, prepared.split, which, recipe.eval, name=recipe.model_name, info=info,
                fit=fit_name, progress=progress,
            )  # fmt: skip
        save_evaluation(lists, path, digest=wanted, parents={"model": model_digest})
        beside_expert(lists.searched, path, wanted)
        return lists

    ranks = isinstance(trained, Ranking)
    result = stage(
        path, RANKER_EVALUATION if ranks else EVALUATION, [model_digest, prepared.digest, items, measured, which], make,
        lambda: RankerEvaluation.load(path) if ranks else load_evaluation(path),
        reused=lambda: say(f"evaluate: reused ({path})"),
    )  # fmt: skip
    if isinstance(result, Evaluation):
        asked = (prepared.positives, trained.catalog, recipe.eval, path, which, fit_name, say)
        say_verdicts(result, baselines(recipe.model_name, *asked), recipe.eval, say)
    return result


@one_writer
def train(
    recipe: Recipe, data: str | Path, out: str | Path, *, device: str = "cpu", say: Say = say_once
) -> tuple[Prepared, Trained | None]:
    """Catalog and model. No model when training is unfinished: the same call goes on."""
    out = Path(out)
    prepared = prepare(recipe, data, say)
    if distributed.rank() == 0:
        recipe.save(out)
    catalog = catalog_stage(recipe, prepared, out, say)
    trained = train_stage(recipe, prepared, catalog, out, device=device, say=say)
    expert_stage(recipe, prepared.view, prepared.positives, prepared.digest, trained, out, say)
    return prepared, trained


@one_writer
def run(
    recipe: Recipe, data: str | Path, out: str | Path, *, device: str = "cpu", say: Say = say_once
) -> Evaluation | RankerEvaluation | None:
    """Every stage of a recipe; None when training is unfinished, and in all but one process of a ``torchrun``."""
    prepared, trained = train(recipe, data, out, device=device, say=say)
    if trained is None or distributed.rank() > 0:
        return None
    return evaluate_stage(recipe, prepared, trained, Path(out), say=say)


def batch_source(recipe: Recipe, prepared: Prepared, model: torch.nn.Module, reading: LogReading) -> BatchSource | None:
    """The training batches that the model names as its ``feed``, None where it names none; ``reading``: how it reads
    the log."""
    feed: Any = getattr(model, "feed", None)
    if feed is None:
        return None
    found: BatchSource = feed(reading, prepared.split, recipe.fit.batch_size, recipe.fit.seed)
    return found
