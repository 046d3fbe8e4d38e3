"""From a recipe to aligned policies: the pretrained one, the reward and its judge, every control and arm, measured.

    alignment = align_recipe(AlignRecipe.read("recipes/world/align.toml"), "data/world", "runs/align")

A later round starts from an aligned policy and learns its reward anew, from what that policy showed as well:

    align_recipe(recipe, "data/world", "runs/align-2", start="runs/align/align/safe", exposures="exposures")

Each step leaves an artifact below ``out`` and is reused when its digest is there:

| folder | what |
|---|---|
| ``catalog``, ``model`` | the pretrained policy, as ``sidera run`` makes it, or a copy of ``start`` |
| ``reward``, ``judge`` | P-Scores of half of the users, and of a quarter; the rest teaches neither, and is served |
| ``align/ARM`` | a run folder of its own, for ``sidera serve`` and ``sidera ab`` |
| ``align/alignment.json`` | everything in numbers |

A control is trained exactly as an arm is: the same steps, learning rate, batches and next-token weight.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidera import artifacts
from sidera.align.config import AlignConfig
from sidera.align.diagnostics import Probe, make_probe
from sidera.align.measure import KIND as MEASURED
from sidera.align.measure import Measured, measure, recall_differences
from sidera.align.methods import METHODS, method_of
from sidera.align.recipe import PRETRAINED, AlignRecipe
from sidera.align.rewards import NetworkReward, Reward, Together
from sidera.align.rules import Ruled
from sidera.align.sources import EXPOSURES, exposures, next_tokens, requests, target_mask
from sidera.align.training import align, engine_for
from sidera.catalog.catalog import Catalog
from sidera.config import digest, written
from sidera.core import InputError
from sidera.data.config import View, load_dataset, make_views
from sidera.data.extend import extended
from sidera.data.split import user_groups
from sidera.engine.ranking import Ranking
from sidera.engine.recommender import Recommender
from sidera.engine.reranker import FOLDER
from sidera.engine.run_folder import RUN_RECIPE
from sidera.eval.naming import FOLDER as EVALUATION
from sidera.fit import distributed
from sidera.models import build_model, parse_model, role_of
from sidera.roles import Ranker
from sidera.stage import stage
from sidera.store.exposures import ExposureLog, as_dataset_events
from sidera.train.notes import Say, say_once
from sidera.train.ranker import FIT, RANKER_SHARES, teach
from sidera.train.recipe import Recipe
from sidera.train.run_lock import one_writer
from sidera.train.stages import Trained, prepare, train

JUDGE = "judge"
ALIGN = "align"  # folder of the policies
RECORD = "alignment.json"
TEST_ROWS = 4000  # at most, that recall is compared on
SHOWN = ("reward", "entropy", "coverage", "legality_beam", "recall@50_long_view", "recall@50_like")


@dataclass(frozen=True)
class Alignment:
    """What came of a recipe."""

    record: dict[str, Any]  # plain: what alignment.json holds
    runs: Mapping[str, Path]  # policy -> its run folder, the pretrained one first
    audience: tuple[str, ...]  # keys of the users who taught neither reward nor judge


@dataclass(frozen=True)
class _Setting:
    """What all arms share."""

    pretrained: Recommender
    version: str  # of the pretrained weights
    view: View  # every exposure
    reward: Reward
    networks: Mapping[str, Ranker]
    rewarded_by: str  # digest of reward and rules
    valid: Probe
    test: Probe
    out: Path
    say: Say


@one_writer
def align_recipe(
    recipe: AlignRecipe, data: str | Path, out: str | Path, *, start: str | Path | None = None,
    exposures: str | Path | None = None, device: str = "cpu", say: Say = say_once,
) -> Alignment:  # fmt: skip
    """Train what is missing; InputError when the log has no feedback that could reward.

    ``start``: the run folder of the policy that all arms start from, instead of one that is pretrained here.
    ``exposures``: an exposure log; reward and judge learn from it too (policies learn next tokens from ``data`` alone).
    """
    out = Path(out)
    view, _ = make_views(load_dataset(data, recipe.base.data), recipe.base.data)
    if start is None:
        pretrained = _pretrained(recipe, data, out, device, say)
    else:
        pretrained = _started(Path(start), recipe, data, view, out, device)
    groups = user_groups(view.dataset.user_keys, RANKER_SHARES)
    taught = view if exposures is None else _grown(view, recipe, exposures, pretrained.catalog, say)
    networks, infos = {}, {}
    for place, name in enumerate((FOLDER, JUDGE)):
        networks[name], infos[name] = ranker_stage(
            recipe, taught, pretrained.catalog, groups == place, out / name, name, device, say
        )
    rules = recipe.rewards.parsed_rules
    reward: Reward = Together({"p_score": (1.0, NetworkReward(networks[FOLDER]))})
    setting = _Setting(
        pretrained, pretrained.version, view, Ruled(reward, rules, view.dataset.items) if rules else reward, networks,
        digest([infos[FOLDER]["digest"], [asdict(rule) for rule in rules]]),
        *_probes(view, pretrained), out, say,
    )  # fmt: skip
    arms = _distinct(recipe, view, say)
    runs = {PRETRAINED: out}
    found = {PRETRAINED: _measured(setting, PRETRAINED, pretrained, out / ALIGN / PRETRAINED)}
    trainings: dict[str, dict[str, Any]] = {PRETRAINED: {}}
    for name, config in arms.items():
        runs[name] = out / ALIGN / name
        recommender, trainings[name] = arm_stage(name, config, setting)
        found[name] = _measured(setting, name, recommender, runs[name])
    audience = tuple(str(key) for key in view.dataset.user_keys[groups == len(RANKER_SHARES) - 1])
    record = _record(recipe, arms, infos, trainings, found, [int((groups == g).sum()) for g in range(3)])
    if distributed.rank() == 0:
        artifacts.write_text(out / ALIGN / RECORD, json.dumps(record, indent=1) + "\n")
    return Alignment(record, runs, audience)


def _pretrained(recipe: AlignRecipe, data: str | Path, out: Path, device: str, say: Say) -> Recommender:
    found = train(recipe.base, data, out, device=device, say=say)[1]
    if found is None:
        raise InputError("the pretraining is unfinished", fix="give the same command again, it goes on")
    return _generator(found, out)


def _generator(policy: Trained, path: Path) -> Recommender:
    if isinstance(policy, Recommender) and policy.kind == "generator":
        return policy
    name = policy.model_section["name"]
    raise InputError(
        f"{path} holds {name!r}, a {role_of(name)}: it writes nothing that could be rewarded",
        fix="align a generator (onerec_v2, sidera, tiger, ...)",
    )


def _started(start: Path, recipe: AlignRecipe, data: str | Path, view: View, out: Path, device: str) -> Recommender:
    """A copy of another run's policy -> ``out``; InputError, with nothing copied, when it is no policy for this log, or
    ``out`` holds another one."""
    policy = _generator(Recommender.load(start), start)
    theirs, ours = policy.catalog, view.dataset
    if theirs.item_keys.tolist() != ours.item_keys.tolist():
        raise InputError(
            f"{start} answers {theirs.num_items:,} items that are not the {ours.num_items:,} of {ours.name!r}",
            fix="start from a policy that was trained on this log",
        )
    if theirs.schema.columns != view.schema.columns:
        raise InputError(
            f"{start} reads {', '.join(theirs.schema.columns) or 'no feedback'}",
            allowed=f"the columns of {ours.name!r}: {', '.join(view.schema.columns) or 'none'}",
        )
    seen = artifacts.read_manifest(start / "model", "model").parents.get("data")
    base = replace(Recipe.of_run(start), data=recipe.base.data)
    if seen != prepare(base, data, say=lambda _: None).digest:  # its test rows are what policies are compared on
        raise InputError(
            f"{start} was trained on other data or another split than {ours.name!r}: it may know the answers",
            fix="start from a policy of this data folder and [data] section",
        )
    wanted = policy.version
    if distributed.rank() > 0:
        pass
    elif (out / "model").exists():
        there = artifacts.verify(out / "model", "model").digest
        if there != wanted:
            raise InputError(f"{out} holds the policy {there}, not {wanted} of {start}", fix="name another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(start / RUN_RECIPE, out / RUN_RECIPE)
        for part in ("catalog", "model"):  # the model comes last and whole: where it is, nothing is missing
            copy_of = out / f".{part}.copy"
            shutil.rmtree(copy_of, ignore_errors=True)
            shutil.rmtree(out / part, ignore_errors=True)
            shutil.copytree(start / part, copy_of)
            copy_of.rename(out / part)
    distributed.barrier()
    return Recommender.load(out, device=device)


def _grown(view: View, recipe: AlignRecipe, path: str | Path, catalog: Catalog, say: Say) -> View:
    """The log with one's own exposures behind it."""
    log = ExposureLog.open(path, codebook_id=catalog.codebook_id, num_levels=catalog.num_levels, must_exist=True)
    events = as_dataset_events(log.read())
    found = extended(view, recipe.base.data, events)
    more = found.dataset.num_events - view.dataset.num_events
    left = f" ({events.num_rows - more:,} of unknown users or items left out)" if more < events.num_rows else ""
    say(f"reward and judge learn from {more:,} exposures of {path} too{left}")
    return found


def ranker_stage(
    recipe: AlignRecipe, view: View, catalog: Catalog, user_mask: np.ndarray, path: Path, name: str, device: str,
    say: Say,
) -> tuple[Ranker, dict[str, Any]]:  # fmt: skip
    """The reward's network, or the judge's -> ``path``; with what is known of it."""
    settings, data = recipe.rewards, digest([view.dataset.source_digest, asdict(recipe.base.data)])

    def make(wanted: str) -> tuple[Ranker, dict[str, Any]]:
        model_name, config = parse_model(settings.model)
        network = build_model(model_name, config, catalog, settings.seed)
        ranking = Ranking(network, catalog, {"name": model_name, **written(config)}, device)
        fit_config = replace(FIT, epochs=settings.epochs, seed=settings.seed)
        taught = teach(ranking, view, user_mask, fit_config, path / "fit", model_name)
        result, figures = taught.result, taught.evaluation.metrics
        aucs = {task: round(metrics["auc"].value, 4) for task, metrics in figures.items()}
        info = {
            "aucs": aucs,
            "users": int(user_mask.sum()),
            "steps": result.steps,
            "cpu_seconds": round(result.cpu_seconds, 1),
        }
        if distributed.rank() == 0:
            taught.evaluation.save(path / EVALUATION, digest=wanted)
            ranking.save_model(path / "model", digest=wanted, parents={"data": data}, training=info)
            shutil.rmtree(path / "fit", ignore_errors=True)
        distributed.barrier()
        shown = ", ".join(f"{task} {value:.3f}" for task, value in aucs.items() if ":" in task)
        cost = f"{info['users']:,} users, {result.steps:,} steps, {result.cpu_seconds:.0f} CPU-seconds"
        say(f"{name}: {cost}; AUC {shown}")
        return load()

    def load() -> tuple[Ranker, dict[str, Any]]:
        ranking = Ranking.load(path, catalog, device)
        training = artifacts.read_manifest(path / "model", "model").info["training"]
        return ranking.model, {**training, "digest": ranking.version}

    inputs = [data, catalog.codebook_id, settings.model, settings.epochs, settings.seed, name]
    return stage(path / "model", "model", inputs, make, load, reused=lambda: say(f"{name}: reused ({path})"))


def arm_stage(name: str, config: AlignConfig, setting: _Setting) -> tuple[Recommender, dict[str, Any]]:
    """One policy -> ``out/align/NAME``, a run folder; with how its training went."""
    path = setting.out / ALIGN / name

    def load() -> tuple[Recommender, dict[str, Any]]:
        engine = Recommender.load(path, device=setting.pretrained.device)
        return engine, artifacts.read_manifest(path / "model", "model").info["training"]

    rewarded_by = setting.rewarded_by if method_of(config.method).needs_reward else ""
    return stage(
        path / "model", "model", [setting.version, config.identity(), rewarded_by],
        lambda wanted: _arm(name, config, setting, path, wanted), load,
        reused=lambda: setting.say(f"{name}: reused ({path})"),
    )  # fmt: skip


def _arm(
    name: str, config: AlignConfig, setting: _Setting, path: Path, wanted: str
) -> tuple[Recommender, dict[str, Any]]:
    out, say, method = setting.out, setting.say, method_of(config.method)
    policy = copy.deepcopy(setting.pretrained.model)
    engine = engine_for(policy, setting.pretrained)
    batches = None
    if method.step is not None:
        source = exposures if method.needs_log else requests
        batches = source(policy, setting.view, engine.catalog.items, config.requests, config.seed + 1)
    size = config.ntp_batch
    result = align(
        policy, engine, config,
        ntp=next_tokens(policy, setting.view, engine.catalog.items, size, config.seed, method.targets)
        if config.next_token_weight
        else None,
        requests=batches, reward=setting.reward if method.needs_reward else None, probe=setting.valid,
        run_dir=path / "fit", identity={"arm": wanted}, on_progress=lambda record: _progress(name, record, say),
    )  # fmt: skip
    training = {
        "method": config.method,
        "steps": result.steps,
        "good_step": result.good_step,
        "stopped": result.stopped,
        "cpu_seconds": round(result.cpu_seconds, 1),
        "start": dict(result.start),
        "checks": [dict(check) for check in result.checks],
    }
    engine.sign(wanted)
    if distributed.rank() == 0:
        for part in ("catalog", FOLDER):  # so that the folder can be moved and served alone
            shutil.rmtree(path / part, ignore_errors=True)
            shutil.copytree(out / part, path / part)
        shutil.copyfile(out / RUN_RECIPE, path / RUN_RECIPE)
        # Last, because it is what says that the folder is done. The data of the pretraining goes along: an evaluation
        # has to know what a policy may have seen.
        pretrained = artifacts.read_manifest(out / "model", "model")
        parents = {**pretrained.parents, "pretrained": setting.version}
        training["fit"] = pretrained.info["training"].get("fit", "train")
        engine.save_model(path / "model", digest=wanted, parents=parents, training=training)
        shutil.rmtree(path / "fit", ignore_errors=True)
    distributed.barrier()
    why = f"; {result.stopped}" if result.stopped else ""
    say(f"{name}: {result.steps} steps, {training['cpu_seconds']:.0f} CPU-seconds{why}")
    return engine, training


def _measured(setting: _Setting, name: str, recommender: Recommender, path: Path) -> Measured:
    place = path / "measured"
    if distributed.rank() > 0:  # one process measures, the others read it
        distributed.barrier()
        return Measured.load(place)

    def make(wanted: str) -> Measured:
        measured = measure(recommender, setting.test, setting.networks)
        measured.save(place, wanted)
        shown = ", ".join(f"{key} {measured.figures[key]:.3f}" for key in (JUDGE, *SHOWN) if key in measured.figures)
        setting.say(f"{name}: {shown}")
        return measured

    inputs = [recommender.version, setting.rewarded_by, setting.test.num_histories]
    measured = stage(place, MEASURED, inputs, make, lambda: Measured.load(place))
    distributed.barrier()
    return measured


def _probes(view: View, pretrained: Recommender) -> tuple[Probe, Probe]:
    """Validation rows for the gates, test rows for the comparison."""
    reads, items = pretrained.reading.reads, pretrained.catalog.items
    history = reads.max_events if reads.feedback else max(reads.max_events, EXPOSURES)
    return make_probe(view, items, history), make_probe(view, items, history, which="test", max_rows=TEST_ROWS)


def _distinct(recipe: AlignRecipe, view: View, say: Say) -> dict[str, AlignConfig]:
    """The arms, less controls that would learn the very targets of an earlier one."""
    kept: dict[str, AlignConfig] = {}
    masks: dict[str, np.ndarray] = {}
    for name, config in recipe.arms.items():
        if name in recipe.controls:
            mask = target_mask(view, METHODS[name].targets)
            twin = next((other for other, earlier in masks.items() if np.array_equal(mask, earlier)), None)
            if twin is not None:
                say(f"{name}: the same as {twin} here, because the recipe's positives are the long views")
                continue
            masks[name] = mask
        kept[name] = config
    return kept


def _record(
    recipe: AlignRecipe, arms: Mapping[str, AlignConfig], infos: Mapping[str, Any],
    trainings: Mapping[str, Mapping[str, Any]], found: Mapping[str, Measured], counts: list[int],
) -> dict[str, Any]:  # fmt: skip
    """Everything in numbers. The reference of all differences is the first control, else the pretrained policy."""
    reference = next((name for name in arms if name in recipe.controls), PRETRAINED)
    policies = {}
    for name, measured in found.items():
        role = "pretrained" if name == PRETRAINED else "control" if name in recipe.controls else "arm"
        policies[name] = {
            "role": role,
            "training": dict(trainings[name]),
            "figures": dict(measured.figures),
            "recall_differences": recall_differences(found[reference], measured) if name != reference else {},
        }
        if name != PRETRAINED:
            policies[name]["config"] = asdict(arms[name])
    return {
        "reference": reference,
        "recommended": recipe.tuned[0] if recipe.tuned else reference,
        "users": dict(zip((FOLDER, JUDGE, "audience"), counts, strict=True)),
        "rankers": dict(infos),
        "policies": policies,
        "recipe": recipe.sections(),
    }


def _progress(name: str, record: Mapping[str, Any], say: Say) -> None:
    if record["event"] == "eval":
        shown = ", ".join(f"{key} {record[key]:.3f}" for key in SHOWN if key in record)
        say(f"  {name} step {record['step']}: {shown}")
