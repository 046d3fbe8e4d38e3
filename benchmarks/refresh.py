"""Claim `refresh`: a second round of alignment, its reward learned anew from what the first round's policy showed.

    python benchmarks/refresh.py [--quick] [--worlds easy hard] [--seeds 0]

The aggressive arm of `recipes/world/align.toml` serves the users who teach reward and judge for three days; the engine
logs what it showed. From that policy two more arms are trained alike (as many steps again, no controls): one for the
reward of the first round, one for a reward of log and own exposures. All serve users who taught nobody. Reported, no
bar: a first round gains mostly what the log can tell; the question is whether fresh exposures tell more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from align import QUICK, QUICK_LOG, shown
from harness import arguments, finish, single_thread, tuned_allocator
from online_arms import ROOT, Arm, bench_folder, train_arm, world_log

FIRST, STALE, FRESH = "first round", "second round, first reward", "second round, fresh reward"
ONE_ARM = 'align.arms={aggressive = {ntp = "aggressive"}}'
SECOND_ROUND = ("align.controls=[]", ONE_ARM)
DAYS = 3


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, flags)
    single_thread()
    worlds = ("easy",) if options.quick else options.worlds
    found = {f"{name} {seed}": one_world(name, seed, options.quick) for name in worlds for seed in options.seeds}
    value = {
        world: {pair: differences["utility"] for pair, differences in one["pairs, %"].items()}
        for world, one in found.items()
    }
    context = {"worlds": list(found), "metric": "true utility, % +- half of the 95 % interval, paired by user"}
    finish("refresh", value, None, None, context, options.quick, {"worlds": found})


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worlds", nargs="+", default=("easy", "hard"), choices=("easy", "hard"))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))


def one_world(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """Both rounds; stages that are there already are reused."""
    from sidera.align.recipe import AlignRecipe
    from sidera.align.run import align_recipe
    from sidera.engine.recommender import Recommender
    from sidera.engine.serving import ServeConfig
    from sidera.lab.alignment import gap_closed, serve_policies
    from sidera.lab.own_exposures import expose

    data = world_log(name, seed, **(QUICK_LOG if quick else {}))
    out = bench_folder() / f"{name}-{seed}"
    suffix = "-quick" if quick else ""
    overrides = [
        f"fit.seed={seed}",
        *((*QUICK, "align.steps=10", "align.check_every=10", 'align.controls=["sft"]', ONE_ARM) if quick else ()),
    ]
    path = ROOT / "recipes" / "world" / "align.toml"
    shared = None if quick else train_arm("onerec_v2", Arm("world/onerec_v2.toml"), data, seed)
    first = align_recipe(AlignRecipe.read(path, overrides), data, out / f"align-0{suffix}", start=shared)
    start, log = first.runs["aggressive"], out / f"exposures{suffix}"
    if not log.exists():
        teachers = sorted(set(keys_of(data)) - set(first.audience))
        expose(Recommender.load(start), data, teachers[:200] if quick else teachers, log, days=1 if quick else DAYS)
    second = AlignRecipe.read(path, [*overrides, *SECOND_ROUND, "align.seed=1"])
    runs: dict[str, Path] = {"sft": first.runs["sft"], FIRST: start}
    records = {}
    for arm, exposures in ((STALE, None), (FRESH, log)):
        folder = out / f"{arm.replace(' ', '_').replace(',', '')}{suffix}"
        again = align_recipe(second, data, folder, start=start, exposures=exposures)
        runs[arm] = again.runs["aggressive"]
        records[arm] = {name: one["figures"] for name, one in again.record["policies"].items()} | {
            "rankers": again.record["rankers"]
        }
    pairs = [(FIRST, STALE), (FIRST, FRESH), (STALE, FRESH)]
    online = serve_policies(
        {arm: (run, ServeConfig()) for arm, run in runs.items()}, first.audience, data, "sft",
        users=60 if quick else None, pairs=pairs, say=print,
    )  # fmt: skip
    return {
        "gap_closed, %": {arm: round(100 * gap_closed(online, arm), 2) for arm in runs},
        "levels": {arm: {m: round(v[0], 4) for m, v in online.levels[arm].items()} for arm in runs},
        "pairs, %": {pair: shown(differences) for pair, differences in online.pairs.items()},
        "rankers and figures": records,
    }


def keys_of(data: Path) -> list[str]:
    from sidera.data.config import load_dataset

    return [str(key) for key in load_dataset(data).user_keys]


if __name__ == "__main__":
    main()
