"""The stages of a run: catalog, train, evaluate. Each leaves an artifact and is skipped when its digest is there.

A stage's digest covers the content of its inputs and the recipe sections it reads, never paths or dates, so a run
folder can be moved, and changing [eval] does not train again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sidera import artifacts
from sidera.catalog.build import build_catalog, catalog_digest
from sidera.catalog.catalog import Catalog
from sidera.config import digest
from sidera.core import InputError
from sidera.data.batches import PackedSequences, PrefixRows, Reader, RequestRows
from sidera.data.config import View, load_dataset, make_views
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.sessions import SessionRows
from sidera.data.split import Split, train_item_ids
from sidera.engine.recommender import Recommender
from sidera.eval.evaluate import evaluate, quick_metrics
from sidera.eval.evaluation import Evaluation, load_evaluation, save_evaluation
from sidera.fit import distributed
from sidera.fit.checkpoint import FOLDER
from sidera.fit.log import mean_mfu, terminal_bar
from sidera.fit.loop import FitResult, fit
from sidera.fit.peak import emulates_bf16
from sidera.loading import open_artifact
from sidera.models import MODELS, build_model
from sidera.models.retrievers.item_knn import ItemKNN
from sidera.train.recipe import Recipe

Say = Callable[[str], None]


def say_once(text: str) -> None:
    """Print, but in one process of a ``torchrun`` only."""
    if distributed.rank() == 0:
        print(text, flush=True)


@contextlib.contextmanager
def rows_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yields what takes (rows done, rows in all) and draws a bar; None where there is no terminal to draw on."""
    bar = terminal_bar(desc=what, unit="row")
    if bar is None:
        yield None
        return

    def advance(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield advance


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
    def digest(self) -> str:
        """Of the events and of where they are cut: two temporal splits of one log are two data sets."""
        cuts = (self.split.train_ends, self.split.valid.ends, self.split.test.ends)
        return digest([self.dataset.digest, self.split.name, *(array.tolist() for array in cuts)])


def prepare(recipe: Recipe, data: str | Path, say: Say = say_once) -> Prepared:
    """Read and split; LeakError when the split could leak."""
    if MODELS[recipe.model_name].trains_on == "exposures":
        answering = ", ".join(name for name, kind in MODELS.items() if kind.trains_on != "exposures")
        raise InputError(f"[model] name = {recipe.model_name!r} ranks candidates and finds none", allowed=answering)
    everything, positives = make_views(load_dataset(data, recipe.data), recipe.data)
    view = everything if getattr(MODELS[recipe.model_name], "reads_feedback", False) else positives
    dataset, split = view.dataset, view.split
    unasked = sum(split.num_without_history)
    say(
        f"data: {dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items,"
        f" {dataset.num_events:,} events; {split.name},"
        f" {len(split.valid):,} validation and {len(split.test):,} test rows"
        + (f" ({unasked:,} first events of users make none)" if unasked else "")
    )
    return Prepared(dataset, split, view.schema, positives)


def catalog_stage(recipe: Recipe, prepared: Prepared, out: Path, say: Say = say_once) -> Catalog:
    """Semantic IDs for the dataset's items -> ``out/catalog``."""
    view = prepared.positives
    path, wanted = out / "catalog", catalog_digest(view.dataset, view.split, recipe.catalog, view.schema)
    if distributed.rank() > 0:  # one process of a torchrun builds it, the others read it
        distributed.barrier()
        return Catalog.load(path)
    catalog = _catalog(recipe, prepared, path, wanted, say)
    distributed.barrier()
    return catalog


def _catalog(recipe: Recipe, prepared: Prepared, path: Path, wanted: str, say: Say) -> Catalog:
    if artifacts.is_current(path, "catalog", wanted):
        say(f"catalog: reused ({path})")
        return Catalog.load(path)
    view = prepared.positives
    catalog, report = build_catalog(
        view.dataset, view.split, recipe.catalog, view.schema, encoder_path=path.parent / "item_encoder"
    )
    catalog.save(
        path,
        artifact_digest=wanted,
        parents={"data": prepared.digest},
        recipe={"catalog": asdict(recipe.catalog)},
    )
    say(f"catalog: {catalog.num_items:,} items on {' x '.join(map(str, catalog.level_sizes))} codes, {path}")
    say(f"  made from {' + '.join(report['vector_blocks'])}")
    for name in ("collision_rate", "neighbour_overlap@10"):
        if name in report:
            say(f"  {name} = {report[name]:.3f}")
    return Catalog.load(path)


def train_stage(
    recipe: Recipe,
    prepared: Prepared,
    catalog: Catalog,
    out: Path,
    *,
    device: str = "cpu",
    say: Say = say_once,
) -> Recommender | None:
    """Train the recipe's model -> ``out/model``; None when this call's time was up and the training is unfinished."""
    path = out / "model"
    catalog_id = artifacts.read_manifest(out / "catalog", "catalog").digest
    # The catalogue's digest covers the training events. Two temporal splits may share these and differ in the window
    # that chooses the best weights, which must not reach into the other's test.
    inputs = [catalog_id, prepared.digest] if prepared.split.cut_times else [catalog_id]
    wanted = digest([*inputs, recipe.model_section, recipe.fit.identity()])
    if artifacts.is_current(path, "model", wanted):
        say(f"train: reused ({path})")
        return Recommender.load(out, device=device)
    model = build_model(recipe.model_name, recipe.model_config, catalog, recipe.fit.seed)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"train: {recipe.model_name}, {num_parameters:,} parameters")
    if recipe.fit.precision == "bf16" and emulates_bf16(device):
        say("train: this CPU has no bf16 arithmetic and emulates it, several times slower; --set fit.precision=f32")
    recommender = Recommender(model, catalog, model_section=recipe.model_section, beam=recipe.eval.beam, device=device)
    training: dict[str, Any] = {"parameters": num_parameters}
    if isinstance(model, ItemKNN):
        model.count(*training_sequences(prepared))
    elif (source := batch_source(recipe, prepared, model, recommender.reader(prepared.dataset))) is not None:
        result = fit(
            model,
            source,
            recipe.fit,
            out / "fit",
            evaluate=lambda _: validate(recommender, prepared, recipe),
            device=device,
            identity={"catalog": catalog_id} | ({"split": prepared.digest} if prepared.split.cut_times else {}),
        )
        mfu = mean_mfu(out / "fit")
        say(_training_line(result, mfu))
        if not result.finished:
            say("training is unfinished: give the same command again to go on")
            return None
        training |= {
            "steps": result.steps,
            "best_step": result.best_step,
            "validation": dict(result.best_metrics),
            "cpu_minutes": round(result.cpu_seconds / 60, 2),
            "wall_minutes": round(result.wall_seconds / 60, 2),
            "stopped_because": result.stopped_because,
            "mfu": None if mfu is None else round(mfu, 4),
        }
    model.eval()
    recommender.version = wanted
    if distributed.rank() == 0:
        parents = {"catalog": catalog_id, "data": prepared.digest}
        recommender.save_model(path, digest=wanted, parents=parents, training=training)
        shutil.rmtree(out / "fit" / FOLDER, ignore_errors=True)  # or the next recipe in this folder would be refused
    distributed.barrier()
    return recommender


def validate(recommender: Recommender, prepared: Prepared, recipe: Recipe) -> Mapping[str, float]:
    """The figures that choose the best epoch: validation rows only."""
    return quick_metrics(
        recommender,
        prepared.dataset,
        prepared.split.valid,
        beam=recipe.eval.beam,
        max_rows=recipe.eval.valid_rows,
        filter_too="filter" in recipe.fit.monitor,
        seed=recipe.eval.seed,
    )


def evaluate_stage(
    recipe: Recipe,
    prepared: Prepared,
    recommender: Recommender,
    out: Path,
    which: Literal["valid", "test"] = "test",
    say: Say = say_once,
) -> Evaluation:
    """Measure on the rows of ``which`` -> ``out/evaluation`` (test) or ``out/evaluation-valid``.

    InputError when the model was trained on other data or another split: it may have seen what it would be asked.
    """
    path = out / ("evaluation" if which == "test" else f"evaluation-{which}")
    opened = open_artifact(out / "model", "model")
    model_digest, seen = opened.manifest.digest, opened.manifest.parents.get("data")
    if seen is None:
        raise InputError(
            f"the model in {out} does not say which data it was trained on: it may know the answers",
            fix="train or align it again, into a new folder",
        )
    if seen != prepared.digest:
        raise InputError(
            f"the model in {out} was trained on other data or another split than {prepared.dataset.name}"
            f" ({prepared.split.name}): it may know the answers",
            fix="evaluate with its own data folder and [data] section, or train on this one",
        )
    items = [
        recommender.catalog.codebook_id,
        recommender.catalog.items_version,
    ]  # what may be answered may have changed
    wanted = digest([model_digest, prepared.digest, items, asdict(recipe.eval), which])
    if artifacts.is_current(path, "evaluation", wanted):
        say(f"evaluate: reused ({path})")
        return load_evaluation(path)
    info = {"seed": recipe.fit.seed, "model": recipe.model_section, "training": opened.info("training", dict)}
    with rows_bar("evaluate") as progress:
        result = evaluate(
            recommender,
            prepared.dataset,
            prepared.split,
            which,
            recipe.eval,
            name=recipe.model_name,
            info=info,
            progress=progress,
        )
    save_evaluation(result, path, digest=wanted, parents={"model": model_digest})
    say(evaluation_lines(result))
    return result


def train(
    recipe: Recipe, data: str | Path, out: str | Path, *, device: str = "cpu", say: Say = say_once
) -> tuple[Prepared, Recommender | None]:
    """Catalog and model. No recommender when training is unfinished: the same call goes on."""
    out = Path(out)
    prepared = prepare(recipe, data, say)
    if distributed.rank() == 0:
        recipe.save(out)
    catalog = catalog_stage(recipe, prepared, out, say)
    return prepared, train_stage(recipe, prepared, catalog, out, device=device, say=say)


def run(
    recipe: Recipe, data: str | Path, out: str | Path, *, device: str = "cpu", say: Say = say_once
) -> Evaluation | None:
    """Every stage of a recipe; None when training is unfinished, and in all but one process of a ``torchrun``."""
    prepared, recommender = train(recipe, data, out, device=device, say=say)
    if recommender is None or distributed.rank() > 0:
        return None
    return evaluate_stage(recipe, prepared, recommender, Path(out), say=say)


def batch_source(
    recipe: Recipe, prepared: Prepared, model: torch.nn.Module, reader: Reader | None = None
) -> PackedSequences | PrefixRows | RequestRows | None:
    """The training batches that the model's loss takes; ``reader``: how it reads the log (``Recommender.reader``)."""
    if model.trains_on == "requests":
        history, size = recipe.model_config.max_history, recipe.fit.batch_size
        return RequestRows(
            prepared.dataset, prepared.split, prepared.schema, history, size, seed=recipe.fit.seed,
            lifelong=reader.lifelong if reader else None,
        )  # fmt: skip
    if model.trains_on == "sessions":
        history, size = recipe.model_config.max_history, recipe.fit.batch_size
        rules = recipe.model_config.session_rules()
        return SessionRows(
            prepared.dataset, prepared.split, prepared.schema, history, size, seed=recipe.fit.seed, rules=rules
        )
    kinds: dict[str, type[PackedSequences] | type[PrefixRows]] = {"positions": PackedSequences, "prefixes": PrefixRows}
    if model.trains_on in ("counts", "nothing"):
        return None
    kind = kinds[str(model.trains_on)]  # a model with batches of its own has to say here how they are made
    history = recipe.model_config.max_history
    return kind(prepared.dataset, prepared.split, history, recipe.fit.batch_size, seed=recipe.fit.seed)


def training_sequences(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """(item ids, offsets) of every user's training events."""
    lengths = prepared.split.train_ends - prepared.dataset.offsets[:-1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return train_item_ids(prepared.dataset, prepared.split), offsets


def _training_line(result: FitResult, mfu: float | None) -> str:
    best = ", ".join(f"{name} {value:.4f}" for name, value in result.best_metrics.items())
    return (
        f"train: {result.stopped_because} after {result.steps:,} steps, {result.cpu_seconds / 60:.1f} CPU-minutes;"
        f" best at step {result.best_step:,}: {best}" + ("" if mfu is None else f"; MFU {100 * mfu:.1f} %")
    )


def evaluation_lines(result: Evaluation) -> str:
    """The main figures with their protocol, for the terminal."""
    protocol = result.protocol
    lines = [
        f"evaluate: {protocol['which']} rows of {protocol['dataset']} ({protocol['split']}), {protocol['rows']:,} rows,"
        " full ranking, item-level hits"
    ]
    for seen, metrics in result.metrics.items():
        cells = (
            f"{name} {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
            for name, estimate in metrics.items()
            if name.startswith(("recall", "ndcg")) and "expected" not in name
        )
        lines.append(f"  seen={seen}: " + ", ".join(cells))
    return "\n".join(lines)
