"""Claim `online_test`: the simulated world ranks policies as it should, and its A/B test is honest and sharp.

    python benchmarks/online_test.py [--quick]

*A/A*: a policy against itself in other luck: the 95 % intervals hold 0 in 90 to 99 of 100 repetitions, for every main
metric; counted over 500 (100 groups of users, five times), because 100 leave the count itself uncertain by 2.
Twice: two random policies with seeds of their own under common random numbers, and the logging policy in other luck.

*Sanity*: random < popularity < personalised (item-kNN, recipes/world/item_knn.toml) << oracle in true utility, in three
seeds of both worlds, every step's interval clear of 0; knowing clicks no better than about the logger in `easy`, where
the oracle has more than five times the logger's utility.

*Power*: an oracle whose knowledge is weakened, against one that is about 2 % better: detected in at least 80 % of
disjoint groups of users, each at most two core-minutes; and how many times the users the same test would need were the
arms served to different people.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import arguments, finish, single_thread, tuned_allocator

METRICS = ("watch_time", "utility", "session_length", "returned_1", "returned_7")
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "world" / "item_knn.toml"
BAR = {"aa_covered": [90, 99], "ladder": "every step clear", "power": 0.8, "cpu_seconds": 120, "users_ratio": 2.0}
WEAK, LESS_WEAK = 0.5, 0.6  # strengths of two oracles whose true utility differs by about 2 %


def a_a_test(quick: bool) -> dict[str, dict[str, float]]:
    """kind of luck -> metric -> of 100 repetitions, those whose interval holds 0 (counted over 500)."""
    from sidera.lab.brackets import LoggerPolicy, RandomPolicy
    from sidera.lab.trial import prepare, run_policy
    from sidera.sim.config import world_config
    from sidera.sim.world import World

    size, days, rounds = (60, 3, 1) if quick else (100, 8, 5)
    world = World.build(world_config("easy"), 0)
    audience = prepare(world, np.arange(100 * size), log_days=1)
    number = world.config.num_items
    covered = {kind: dict.fromkeys(METRICS, 0.0) for kind in ("policies' own luck", "all luck")}
    for luck in range(1, 2 * rounds, 2):
        pairs = {
            "policies' own luck": [run_policy(world, RandomPolicy(number, luck + i), audience, days) for i in (0, 1)],
            "all luck": [run_policy(world, LoggerPolicy(), audience, days, noise=luck + i) for i in (0, 1)],
        }
        for kind, (a, b) in pairs.items():
            for metric in METRICS:
                covered[kind][metric] += _covered(b.metrics[metric] - a.metrics[metric]) / rounds
    return {kind: {metric: round(count, 1) for metric, count in found.items()} for kind, found in covered.items()}


def _covered(differences: np.ndarray) -> int:
    """Of 100 equal groups of users, those whose interval for the mean holds 0."""
    groups = differences.reshape(100, -1)
    error = groups.std(axis=1, ddof=1) / np.sqrt(groups.shape[1])
    return int((np.abs(groups.mean(axis=1)) <= 1.96 * error).sum())


def ladder(name: str, seed: int, folder: Path, quick: bool) -> dict[str, Any]:
    """One world's rungs with their intervals, and whether they stand as they should."""
    from sidera.engine.recommender import Recommender
    from sidera.lab.online import online_test
    from sidera.lab.recommender_policy import RecommenderPolicy
    from sidera.sim.config import world_config
    from sidera.sim.simulate import simulate
    from sidera.sim.world import World
    from sidera.train.recipe import Recipe
    from sidera.train.stages import train

    world = World.build(world_config(name), seed)
    simulate(world.config, 2000 if quick else 4000, 10, folder / "log", seed)
    _, recommender = train(Recipe.read(RECIPE), folder / "log", folder / "run", say=lambda text: None)
    assert isinstance(recommender, Recommender), "the recipe has no piece limit and trains no ranker"
    arms: dict[str, Any] = {
        "logger": "logger",
        "random": "random",
        "popularity": "popularity",
        "personalised": RecommenderPolicy(recommender, world),
        "oracle": "oracle",
        "click oracle": "oracle:click",
        "watch-time oracle": "oracle:watch_time",
    }
    users = 300 if quick else 1000
    by_reference = {
        first: online_test(arms, world, users=users, days=3, brackets=False, reference=first)
        for first in ("random", "popularity", "personalised", "logger")
    }
    steps = {
        f"{lower} -> {upper}": by_reference[lower].differences[upper]["utility"]
        for lower, upper in (("random", "popularity"), ("popularity", "personalised"), ("personalised", "oracle"),
                             ("logger", "oracle"), ("logger", "click oracle"))
    }  # fmt: skip
    clear = all(steps[step].value > steps[step].half_width for step in list(steps)[:4])
    large = steps["personalised -> oracle"].relative > 1
    level = by_reference["logger"].levels
    headroom = level["oracle"]["utility"][0] / level["logger"]["utility"][0]
    baited = steps["logger -> click oracle"]
    stands = clear and large
    if name == "easy":
        stands = stands and headroom > 5 and baited.relative < 0.1
    shown = ("utility", "watch_time", "session_length", "returned_1", "cold_share")
    return {
        "world": name,
        "seed": seed,
        "stands": bool(stands),
        "oracle / logger": round(headroom, 2),
        "steps, %": {
            step: [round(100 * d.relative, 1), round(100 * d.relative_half_width, 1)] for step, d in steps.items()
        },
        "levels": {arm: {m: [round(v, 3) for v in level[arm][m]] for m in shown} for arm in level},
    }


def apart(a: Any, b: Any, metric: str = "utility") -> tuple[float, float]:
    """B less A and half of its 95 % interval with the arms as two independent groups, as an app has to take them."""
    groups = [side.metrics[metric][np.isfinite(side.metrics[metric])] for side in (a, b)]
    errors = [group.std(ddof=1) / np.sqrt(len(group)) for group in groups]
    return float(groups[1].mean() - groups[0].mean()), 1.96 * float(np.hypot(*errors))


def power(quick: bool) -> dict[str, Any]:
    """Detection of a difference of about 2 %, its cost, and what pairing saves."""
    from sidera.lab.brackets import OraclePolicy
    from sidera.lab.differences import compare
    from sidera.lab.trial import prepare, run_policy
    from sidera.sim.config import world_config
    from sidera.sim.world import World

    groups, size = (3, 1000) if quick else (20, 1500)
    world = World.build(world_config("easy"), 0)
    found, unpaired_found, seconds, ratios, values = 0, 0, [], [], []
    for group in range(groups):
        begun = time.process_time()
        audience = prepare(world, np.arange(group * size, (group + 1) * size), log_days=3)
        a, b = (run_policy(world, OraclePolicy("utility", s), audience, days=2) for s in (WEAK, LESS_WEAK))
        paired = compare(a, b)["utility"]
        seconds.append(time.process_time() - begun)
        value, half_width = apart(a, b)
        found += paired.value > paired.half_width
        unpaired_found += value > half_width
        ratios.append((half_width / paired.half_width) ** 2)
        values.append(paired.relative)
    return {
        "groups": groups,
        "users": size,
        "true difference %": round(100 * float(np.mean(values)), 2),
        "detected": found / groups,
        "detected unpaired": unpaired_found / groups,
        "cpu_seconds": round(max(seconds), 1),
        "users_ratio": round(float(np.median(ratios)), 1),
    }


def unlike_pairs(quick: bool) -> dict[str, float]:
    """How many times the users independent arms need, for pairs of policies that show quite different items."""
    from sidera.lab.brackets import LoggerPolicy, OraclePolicy, RandomPolicy
    from sidera.lab.differences import compare
    from sidera.lab.trial import prepare, run_policy
    from sidera.sim.config import world_config
    from sidera.sim.world import World

    world = World.build(world_config("easy"), 0)
    audience = prepare(world, np.arange(300 if quick else 2000), log_days=5)
    number = world.config.num_items
    policies: dict[str, tuple[Any, Any]] = {
        "random, one seed | another": (RandomPolicy(number, 1), RandomPolicy(number, 2)),
        "logger | random": (LoggerPolicy(), RandomPolicy(number)),
        "oracle, noise of one seed | another": (OraclePolicy("utility", 0.5), OraclePolicy("utility", 0.5, seed=1)),
        "oracle of utility | of watch time": (OraclePolicy("utility"), OraclePolicy("watch_time")),
    }
    ratios = {}
    for names, pair in policies.items():
        a, b = (run_policy(world, policy, audience, days=3) for policy in pair)
        widths = (apart(a, b)[1], compare(a, b)["utility"].half_width)
        ratios[names] = round((widths[0] / widths[1]) ** 2, 2)
    return ratios


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__)
    single_thread()
    covered = a_a_test(options.quick)
    ladders = []
    with tempfile.TemporaryDirectory() as name:
        for world in ("easy", "hard"):
            for seed in range(1 if options.quick else 3):
                ladders.append(ladder(world, seed, Path(name), options.quick))
    sharp = power(options.quick)
    counts = [count for metrics in covered.values() for count in metrics.values()]
    value = {
        "aa_covered": [min(counts), max(counts)],
        "ladders_that_stand": f"{sum(one['stands'] for one in ladders)} of {len(ladders)}",
        "true_difference_percent": sharp["true difference %"],
        "power": sharp["detected"],
        "cpu_seconds": sharp["cpu_seconds"],
        "users_ratio": sharp["users_ratio"],
    }
    passed = all(90 <= count <= 99 for count in counts) and all(one["stands"] for one in ladders)
    passed = passed and sharp["detected"] >= BAR["power"] and sharp["cpu_seconds"] <= BAR["cpu_seconds"]
    passed = passed and sharp["users_ratio"] >= BAR["users_ratio"]
    details = {
        "A/A": covered,
        "ladders": ladders,
        "power": sharp,
        "users ratio of unlike pairs": unlike_pairs(options.quick),
    }
    finish("online_test", value, BAR, passed, {"seed": 0}, quick=options.quick, details=details)


if __name__ == "__main__":
    main()
