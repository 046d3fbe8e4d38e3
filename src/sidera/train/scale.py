"""One recipe in several sizes, each trained once over the same rows: the runs behind a scaling law.

    sidera scale recipes/world/scaling.toml --data data/world --out runs/scaling

OneRec-V2 (2508.20900, 3.4) trains on a stream: every row is seen once, in the order of time. So do these runs: the
rows are :class:`RequestRows` in ``order="time"``; the learning rate is ``lr_rule`` and then falls with the inverse
square root of the step, which needs no end, so that every point of a learning curve is a fair one. All sizes are
measured on the same later slice, in evaluation mode, after the last step: one set of weights on fixed rows is less
noisy than the losses of the rows just before they are trained on, which are kept too (``progressive``).

Trap: only one-pass rows may count. With a second epoch the loss falls by memorising, faster for larger models.

Finished runs are kept in ``out/sizes`` and reused by digest; the largest size comes last.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sidera import artifacts
from sidera.catalog.catalog import Catalog
from sidera.config import digest
from sidera.core import InputError
from sidera.data.batches import RequestRows
from sidera.data.reading import Reading
from sidera.engine.snapshot import check_device
from sidera.eval.scaling import MIN_SIZES, Scaling, SizeRun, fit_scaling
from sidera.eval.scaling_record import save_record, scaling_record
from sidera.fit.config import FitConfig
from sidera.fit.log import METRICS
from sidera.fit.loop import fit
from sidera.loading import open_artifact
from sidera.models import MODELS, build_model
from sidera.nn.counters import count_parameters
from sidera.stage import stage
from sidera.train.notes import Say, say_once
from sidera.train.recipe import Recipe
from sidera.train.run_lock import one_writer
from sidera.train.stages import Prepared, catalog_stage, prepare

SIZES = ("16x2", "24x2", "32x3", "48x3", "64x4", "96x5", "128x6")
KIND = "scaling-run"
BLOCKS = 200  # groups of users whose losses are kept apart for the bootstrap
POINTS = 6  # of a learning curve
TRIAL_SHARE = 0.25  # of the rows that a trial of the learning rate sees
PROBE_STEPS = 2


@dataclass(frozen=True)
class ScaleOptions:
    """What ``sidera scale`` is told beside the recipe."""

    sizes: tuple[str, ...] = SIZES  # width x layers
    seeds: int = 1  # trainings of every size
    repeated: int | None = None  # only so many of the smallest sizes get several seeds; None: all
    rows: int | None = None  # newest training rows that are used; None: all
    lr_factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # tried on the rule's rate at three sizes; one: no trial
    cpu_hours: float = 6.0  # more than this is refused before it starts

    def __post_init__(self) -> None:
        if len(set(self.sizes)) < MIN_SIZES + 1:
            raise InputError(
                f"--sizes: {len(set(self.sizes))} sizes are too few to fit a law and predict the largest",
                allowed=f"{MIN_SIZES + 1} or more",
                fix="--sizes " + " ".join(SIZES),
            )
        for name in ("seeds", "rows", "repeated"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} = {value}", allowed="a whole number >= 1")
        if not self.lr_factors or min(self.lr_factors) <= 0:
            raise InputError(f"--lr-factors {list(self.lr_factors)}", allowed="numbers above 0")
        if not self.cpu_hours > 0:
            raise InputError(f"--cpu-hours = {self.cpu_hours}", allowed="a number above 0")

    def seeds_of(self, place: int) -> int:
        """Trainings of the size at this place, counted from the smallest."""
        return self.seeds if self.repeated is None or place < self.repeated else 1


@dataclass(frozen=True)
class Stream:
    """The log cut in time: rows to train on once, rows that choose, rows that measure."""

    prepared: Prepared
    catalog: Catalog
    train: RequestRows
    valid: RequestRows
    test: RequestRows

    @property
    def digest(self) -> str:
        return digest([self.catalog.codebook_id, self.train.digest, self.valid.digest, self.test.digest])


@one_writer
def scale(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    options: ScaleOptions | None = None,
    *,
    device: str = "cpu",
    say: Say = say_once,
) -> Scaling:
    """Train every size, fit the laws and write ``out/scaling.json``; the page is made from that."""
    options, out = options or ScaleOptions(), Path(out)
    check_device(device)
    sizes = [sized(recipe, name) for name in options.sizes]
    stream = open_stream(recipe, data, out, options.rows, say)
    models = [build_model(size.model_name, size.model_config, stream.catalog) for size in sizes]
    by_size = sorted(zip(options.sizes, sizes, models, strict=True), key=lambda row: count_parameters(row[2]).dense)
    _refuse_too_long([(name, model) for name, _, model in by_size], stream, recipe, options, device, say)
    anchor = count_parameters(build_model(recipe.model_name, recipe.model_config, stream.catalog)).dense
    trials = [by_size[place] for place in trial_places(len(by_size))]
    factors, tried = choose_factors([row[:2] for row in trials], anchor, stream, out, options, device, say)
    context = {
        "rows": stream.train.num_rows,
        "targets": len(stream.train.targets),
        "slice_targets": len(stream.test.targets),
        "recipe": recipe.sections(),
        "data": stream.prepared.digest,
        "device": device,
        "lr_factors": factors,
        "lr_trials": tried,
    }
    runs, facts = [], []
    for place, (name, size, model) in enumerate(by_size):
        for seed in range(options.seeds_of(place)):
            parameters = count_parameters(model).dense
            lr = factor_at(parameters, factors) * lr_rule(recipe.fit.lr, anchor, parameters)
            run, fact = one_run(name, size, lr, seed, stream, out, device, say)
            runs.append(run)
            facts.append(fact)
    result = fit_scaling(runs)
    file = save_record(scaling_record(result, runs, facts, context), out)
    say(f"scale: {result.prediction.summary()}\nscale: {file}")
    return result


def sized(recipe: Recipe, size: str) -> Recipe:
    """The recipe with another width and number of layers; heads keep their width, feed-forwards their ratio."""
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    config = recipe.model_config
    known = {entry.name for entry in fields(config)}
    if match is None:
        raise InputError(f"--sizes: {size!r} is no size", allowed="WIDTHxLAYERS, e.g. 64x4")
    if not hasattr(MODELS[recipe.model_name], "target_log_probs") or not {"width", "num_layers", "num_heads"} <= known:
        raise InputError(f"sidera scale cannot size [model] name = {recipe.model_name!r}", allowed="onerec_v2")
    width, layers = int(match[1]), int(match[2])
    head = config.width // config.num_heads
    if width % head:
        raise InputError(f"--sizes: {size!r}", allowed=f"multiples of the recipe's head width ({head})")
    changes: dict[str, Any] = {"width": width, "num_layers": layers, "num_heads": width // head}
    if "num_kv_groups" in known:  # as many queries share a head of keys as in the recipe
        changes["num_kv_groups"] = max(1, width // head * config.num_kv_groups // config.num_heads)
    for name in sorted({"ff_width", "expert_width"} & known):
        changes[name] = max(1, width * getattr(config, name) // config.width)
    return replace(recipe, model_config=replace(config, **changes))


def lr_rule(lr: float, anchor: int, parameters: int) -> float:
    """``lr * sqrt(anchor / parameters)``: the rule that all sizes of OneRec-V2's table 3 follow (5e-4 at 0.1 B)."""
    return lr * (anchor / parameters) ** 0.5


def open_stream(recipe: Recipe, data: str | Path, out: Path, rows: int | None, say: Say) -> Stream:
    """Cut the log at the recipe's two moments: the stream, the slice that chooses, the slice that measures."""
    if recipe.data.split != "temporal":
        raise InputError(f"[data] split = {recipe.data.split!r}: a stream is cut in time", fix='split = "temporal"')
    prepared = prepare(recipe, data, say)
    catalog = catalog_stage(recipe, prepared, out, say)
    dataset, split = prepared.dataset, prepared.split
    assert split.cut_times is not None
    reading = Reading(prepared.schema, catalog.items, recipe.model_config.reads).over(dataset)

    def source(train_ends: np.ndarray) -> RequestRows:
        cut = replace(split, train_ends=train_ends)
        return RequestRows(reading, cut, recipe.fit.batch_size, order="time")

    train, everything = source(split.train_ends), source(dataset.offsets[1:])
    if rows is not None and rows < train.num_rows:
        moments = np.sort(dataset.times[train.ends])
        train = train.between(int(moments[-rows]), np.inf)
    valid = everything.between(split.cut_times[0], split.cut_times[1])
    test = everything.between(split.cut_times[1], np.inf)
    say(f"stream: {train.num_rows:,} rows to train on, {valid.num_rows:,} to choose on, {test.num_rows:,} to measure")
    return Stream(prepared, catalog, train, valid, test)


def one_run(
    name: str, recipe: Recipe, lr: float, seed: int, stream: Stream, out: Path, device: str, say: Say
) -> tuple[SizeRun, dict[str, Any]]:
    """One size trained once -> what the fits need, and what else is worth keeping; reused when it is there."""
    config = one_pass(recipe.fit, lr, seed, stream.train.num_batches())
    path = out / "sizes" / f"{name}-s{seed}"

    def load() -> tuple[SizeRun, dict[str, Any]]:
        opened = open_artifact(path, KIND)
        record = opened.json("run.json", dict)
        with opened.believed():
            return SizeRun.from_json(record["run"]), opened.typed(record, "facts", dict)

    def make(wanted: str) -> tuple[SizeRun, dict[str, Any]]:
        run, facts = _one_run(name, recipe, config, stream, out / "fit" / f"{name}-s{seed}", device)
        manifest = artifacts.Manifest(KIND, wanted, recipe={"model": recipe.model_section, "fit": config.identity()})
        with artifacts.writing(path, manifest) as folder:
            text = json.dumps({"run": run.to_json(), "facts": facts}, indent=1)
            (folder / "run.json").write_text(text, encoding="utf-8")
        say(
            f"scale: {name} seed {seed}: N = {run.parameters:,}, C = {run.flops:.3g} FLOPs, loss {run.loss:.4f}"
            f" ({facts['cpu_seconds']:.0f} CPU-seconds)"
        )
        return run, facts

    inputs = [stream.digest, recipe.model_section, config.identity(), BLOCKS]
    return stage(path, KIND, inputs, make, load, reused=lambda: say(f"scale: {name} seed {seed} reused ({path})"))


def _one_run(
    name: str, recipe: Recipe, config: FitConfig, stream: Stream, folder: Path, device: str
) -> tuple[SizeRun, dict[str, Any]]:
    seed = config.seed
    model = build_model(recipe.model_name, recipe.model_config, stream.catalog, seed)
    result = fit(
        model,
        stream.train,
        config,
        folder,
        evaluate=lambda model: {"loss": mean_loss(model, stream.valid, device)},
        device=device,
        identity={"stream": stream.digest},
    )
    used = _flops_of_steps(model, stream.train, config.accumulate)
    sums, counts = user_losses(model, stream.test, device)
    parameters = count_parameters(model)
    run = SizeRun(
        name=name,
        seed=seed,
        parameters=parameters.dense,
        flops=float(used[-1]),
        loss_sums=tuple(sums.tolist()),
        counts=tuple(counts.tolist()),
        curve=tuple((float(used[entry["step"] - 1]), entry["loss"]) for entry in result.history),
    )
    facts = {
        "name": name, "seed": seed, "lr": config.lr, "embeddings": parameters.embedding, "active": parameters.active,
        "steps": result.steps, "best_step": result.best_step, "valid_loss": result.best_metrics["loss"],
        "progressive": progressive_loss(folder / METRICS),
        "cpu_seconds": round(result.cpu_seconds, 1), "wall_seconds": round(result.wall_seconds, 1),
    }  # fmt: skip
    return run, facts


def one_pass(config: FitConfig, lr: float, seed: int, steps: int) -> FitConfig:
    """The recipe's [fit] for one pass: whatever would add rows, stop early or look at an end is overruled."""
    return replace(
        config, lr=lr, seed=seed, epochs=1, min_steps=0, max_steps=None, max_minutes=None, piece_minutes=None,
        schedule="inverse_sqrt", patience=0, monitor="loss", eval_every_epochs=0,
        precision="f32" if config.precision == "auto" else config.precision,  # sizes are compared: one for all
        eval_every_steps=max(1, steps // config.accumulate // POINTS),
    )  # fmt: skip


def choose_factors(
    trials: Sequence[tuple[str, Recipe]],
    anchor: int,
    stream: Stream,
    out: Path,
    options: ScaleOptions,
    device: str,
    say: Say,
) -> tuple[dict[int, float], list[dict[str, Any]]]:
    """(parameters -> the factor on the rule's rate with the least validation loss after a quarter of the stream, all
    that was tried)."""
    tried: list[dict[str, Any]] = []
    best: dict[int, float] = {}
    for name, recipe in trials:
        losses: dict[float, float] = {}
        parameters = count_parameters(build_model(recipe.model_name, recipe.model_config, stream.catalog)).dense
        for factor in options.lr_factors if len(options.lr_factors) > 1 else ():
            lr = factor * lr_rule(recipe.fit.lr, anchor, parameters)
            steps = max(1, int(TRIAL_SHARE * stream.train.num_batches() / recipe.fit.accumulate))
            result = fit(
                build_model(recipe.model_name, recipe.model_config, stream.catalog),
                stream.train,
                replace(one_pass(recipe.fit, lr, 0, steps), max_steps=steps, eval_every_steps=0),
                out / "fit" / f"trial-{name}-{factor:g}",
                evaluate=lambda model: {"loss": mean_loss(model, stream.valid, device)},
                device=device,
                identity={"stream": stream.digest},
            )
            losses[factor] = result.best_metrics["loss"]
            tried.append({"name": name, "factor": factor, "lr": lr, "valid_loss": losses[factor]})
            say(f"scale: trial {name}, lr {lr:.2e} ({factor:g} x the rule): validation {losses[factor]:.4f}")
        best[parameters] = min(losses, key=lambda factor: losses[factor]) if losses else options.lr_factors[0]
        if len(losses) > 2 and best[parameters] in (min(losses), max(losses)):
            say(f"scale: {name} is best at the edge of --lr-factors ({best[parameters]:g}); its loss may be too high")
    return best, tried


def trial_places(sizes: int) -> tuple[int, int, int]:
    """Sizes, counted from the smallest, at which factors are tried: the largest is foretold by those below it."""
    return 0, sizes // 2, sizes - 2


def factor_at(parameters: int, best: dict[int, float]) -> float:
    """The factor of a size: log-log between the sizes that were tried, and as at the nearest of them beyond."""
    sizes = sorted(best)
    logs = np.interp(np.log(parameters), np.log(sizes), np.log([best[size] for size in sizes]))
    return float(np.exp(logs))


@torch.no_grad()
def target_losses(model: Any, rows: RequestRows, device: str) -> tuple[np.ndarray, np.ndarray]:
    """(user of each target, its mean -log p over the codes) for every target of ``rows``."""
    training = model.training
    model.eval()
    users, losses = [], []
    for batch in rows.batches(0):
        moved = batch.to(device)
        log_p = model.target_log_probs(moved)  # (targets, L)
        losses.append(-log_p.double().mean(1).cpu().numpy())
        assert batch.requests.user_ids is not None
        users.append(np.repeat(batch.requests.user_ids.numpy(), batch.targets_of().lengths.numpy()))
    model.train(training)
    return np.concatenate(users), np.concatenate(losses)


def mean_loss(model: nn.Module, rows: RequestRows, device: str) -> float:
    """L_Gen: mean over targets of -log p per code."""
    return float(target_losses(model, rows, device)[1].mean())


def user_losses(model: nn.Module, rows: RequestRows, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses and targets (BLOCKS,) of groups of users."""
    users, losses = target_losses(model, rows, device)
    block = users % BLOCKS
    return np.bincount(block, losses, BLOCKS), np.bincount(block, minlength=BLOCKS)


def progressive_loss(metrics: Path) -> float | None:
    """Mean loss per code of the last quarter's rows, each before it was trained on; None where none was logged."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found = [(line["step"], line["gen_loss"]) for line in lines if line["event"] == "train" and "gen_loss" in line]
    late = [loss for step, loss in found if step > 0.75 * found[-1][0]]
    return float(np.mean(late)) if late else None


def _flops_of_steps(model: Any, rows: RequestRows, accumulate: int) -> np.ndarray:
    """(steps,) FLOPs spent up to and with each optimizer step."""
    each = np.array([model.flops_per_batch(batch) for batch in rows.batches(0)])
    ends = np.minimum(np.arange(accumulate, len(each) + accumulate, accumulate), len(each))
    return each.cumsum()[ends - 1]


def _refuse_too_long(
    models: Sequence[tuple[str, Any]],
    stream: Stream,
    recipe: Recipe,
    options: ScaleOptions,
    device: str,
    say: Say,
) -> None:
    """InputError when a few steps of every size say that the plan needs more than ``cpu_hours`` (hours of the device
    on CUDA)."""
    hours = 0.0
    batches = list(itertools.islice(stream.train.batches(0, stream.train.num_batches() // 2), PROBE_STEPS))
    clock = time.process_time if device == "cpu" else time.perf_counter
    for place, (_, model) in enumerate(models):
        model.to(device).train()
        started = clock()
        for batch in batches:
            model.loss(batch.to(device)).total.backward()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = (clock() - started) / len(batches) * stream.train.num_batches()
        trials = TRIAL_SHARE * len(options.lr_factors) if place in trial_places(len(models)) else 0
        hours += (options.seeds_of(place) + trials) * seconds / 3600
        model.zero_grad(set_to_none=True)
        model.to("cpu")
    say(f"scale: about {hours:.2f} hours for {len(models)} sizes")
    if hours > options.cpu_hours:
        fits = int(stream.train.num_rows * options.cpu_hours / hours)
        raise InputError(
            f"the plan needs about {hours:.1f} hours",
            allowed=f"--cpu-hours = {options.cpu_hours:g}",
            fix=f"--rows {fits}, fewer or smaller --sizes, or more hours",
        )
