"""Recipes trained on simulated logs and sent into the online test: what the claims in the world share.

A world seed gives a log (``USERS`` users, ``DAYS`` days under the logging policy); every arm is a recipe trained on it,
kept under ``runs/bench/world`` and reused by digest; the test lets each serve ``AUDIENCE`` of the same users for
``TEST_DAYS`` more days, all arms with the same people in the same luck. Differences are paired by user inside a world;
worlds are listed one by one, because they differ more from each other than arms do.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
USERS, DAYS = 4000, 10
AUDIENCE, TEST_DAYS = 1000, 3
QUICK = ("fit.epochs=3", "fit.max_steps=120", "eval.valid_rows=300")
METRICS = ("utility", "watch_time", "session_length", "returned_1", "dislikes", "cold_share", "topic_diversity")


@dataclass(frozen=True)
class Arm:
    """A recipe with overrides; its training seed is the world's unless ``fit.seed`` says otherwise."""

    recipe: str  # below recipes/
    overrides: tuple[str, ...] = ()


def world_log(name: str, seed: int, users: int = USERS, days: int = DAYS) -> Path:
    """The folder of a world's log, written once."""
    from sidera import artifacts
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate
    from sidera.sim.world import World

    config = world_config(name)
    folder = bench_folder() / f"{name}-{seed}" / f"log-{World.build(config, seed).digest}-{users}x{days}"
    if not (folder / artifacts.MANIFEST).exists():
        simulate(config, users, days, folder, seed)
    return folder


def bench_folder() -> Path:
    return Path(os.environ.get("SIDERA_BENCH_RUNS", ROOT / "runs" / "bench")) / "world"


def train_arm(label: str, arm: Arm, data: Path, seed: int, extra: Sequence[str] = ()) -> Path:
    """The run folder of an arm; trained where it is not there yet."""
    from sidera.train.recipe import Recipe
    from sidera.train.stages import train

    recipe = Recipe.read(ROOT / "recipes" / arm.recipe, [f"fit.seed={seed}", *arm.overrides, *extra])
    folder = f"{label}-quick" if extra else label
    out = data.parent / folder.replace(" ", "_").replace(":", "")
    _, recommender = train(recipe, data, out)
    assert recommender is not None, "benchmark recipes have no piece limit"
    return out


def online(
    name: str, seed: int, policies: Mapping[str, Callable[[Any], Any]], audience: int = AUDIENCE, days: int = TEST_DAYS
) -> dict[str, Any]:
    """Outcomes of every policy (made by its function of the world) over the same users of a world."""
    from sidera.lab.trial import prepare, run_policy
    from sidera.sim.config import world_config
    from sidera.sim.world import World

    world = World.build(world_config(name), seed)
    people = prepare(world, np.arange(audience), DAYS)
    found = {}
    for label, make in policies.items():
        start = time.process_time()
        found[label] = run_policy(world, make(world), people, days, timeout=600)
        if found[label].problems or found[label].lost_share:
            raise RuntimeError(f"{label} lost {found[label].lost_share:.1%} of the users: {found[label].problems}")
        print(f"  {name} {seed} {label}: utility {found[label].mean('utility'):.2f}"
              f" ({time.process_time() - start:.0f} CPU-s)", flush=True)  # fmt: skip
    return found


def serve_arms(seed: int, arms: Mapping[str, Arm], against: Sequence[str], quick: bool, kept_as: str) -> dict[str, Any]:
    """Train what is missing and let every arm serve in the default world; kept, and reused for equal models.

    Random, popular and true best items serve beside the main arms, of which SASRec is one.
    """
    from sidera import artifacts
    from sidera.artifacts import write_text
    from sidera.engine.recommender import Recommender
    from sidera.lab.brackets import OraclePolicy, PopularityPolicy, RandomPolicy
    from sidera.lab.online import RecommenderPolicy

    data = world_log("easy", seed)
    runs = {label: train_arm(label, arm, data, seed, QUICK if quick else ()) for label, arm in arms.items()}
    models = {label: artifacts.read_manifest(run / "model", "model").digest for label, run in runs.items()}
    audience = 200 if quick else AUDIENCE
    kept = data.parent / f"{kept_as}-{audience}.json"
    if kept.is_file() and (record := json.loads(kept.read_text(encoding="utf-8")))["models"] == models:
        return record["outcome"]
    opened = {label: Recommender.load(run) for label, run in runs.items()}
    policies: dict[str, Any] = {
        label: lambda world, one=model: RecommenderPolicy(one, world) for label, model in opened.items()
    }
    if "sasrec" in opened:
        policies["random"] = lambda world: RandomPolicy(world.config.num_items)
        policies["popularity"] = lambda world: PopularityPolicy(np.asarray(opened["sasrec"].catalog.popularity))
        policies["oracle"] = lambda world: OraclePolicy("utility")
    found = online("easy", seed, policies, audience)
    outcome: dict[str, Any] = {"means": levels(found)}
    for reference in against:
        outcome[f"against {reference}, %"] = differences(found, reference)
    write_text(kept, json.dumps({"models": models, "outcome": outcome}, indent=1))
    return outcome


def differences(found: Mapping[str, Any], reference: str) -> dict[str, dict[str, list[float]]]:
    """arm -> metric -> [relative difference to the reference, half of its 95 % interval], both in per cent."""
    from sidera.lab.differences import compare

    rows = {}
    for label, outcomes in found.items():
        if label != reference:
            made = compare(found[reference], outcomes)
            rows[label] = {
                metric: [round(100 * made[metric].relative, 2), round(100 * made[metric].relative_half_width, 2)]
                for metric in METRICS
            }
    return rows


def levels(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """arm -> metric -> mean over users."""
    return {label: {metric: round(outcomes.mean(metric), 4) for metric in METRICS} for label, outcomes in found.items()}
