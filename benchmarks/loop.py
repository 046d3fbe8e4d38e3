"""Claim `loop`: the daily loop in the simulated world. A model that is refreshed every night is as good as one that is
trained from scratch on the same data, for a quarter of the CPU; and users are not worse off than with a frozen one.

    python benchmarks/loop.py [--quick] [--users 1000] [--days 5] [--recipe demo/generator.toml]

A log of ten days trains version 0. For five more days the same people are served, in one universe by version 0
(frozen), in another by the current version (refreshed): what they did goes into the behaviour store, what they were
shown into the exposure log; every night both are exported and appended to the data folder, and `refresh` makes the next
version or keeps the old one. A model from scratch is trained on the very same folder, catalogue included.

What a model showed favours it. So a fifth of the people is held out, and the app's old policy serves them on: their
events are in the log too, and the gate compares models on them alone. NDCG@10 here is of the long views of other people
whom the old policy serves, and of whom nothing is in the log, on the day after the newest that a model learned. A
training from scratch decides anew from which watch time on a view is a long one: counted are the views that all models
call long. Every training chooses its steps on the newest twentieth of the log, and then learns it too.
Legality counts every slot of every answer. Utility is the world's own, paired by user. CPU is that of the whole
process: `refresh` with its gate, catalogue and files; `train` with its catalogue.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import arguments, finish, said, single_thread, tuned_allocator
from online_arms import QUICK, ROOT, bench_folder, world_log

LOG_DAYS, SEED = 10, 0
CPU_BAR, NDCG_BAR = 0.25, 0.02
SPLIT = ("data.split=temporal", "data.valid_share=0.05", "data.test_share=0.005", "fit.refit=true")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--recipe", default="demo/generator.toml", help="below recipes/")
    parser.add_argument("--refresh", nargs="*", default=(), metavar="KEY=VALUE", help="of RefreshConfig")


class Loop:
    """Serves the world, and closes every day: store, export, append, refresh, swap; a training from scratch beside."""

    def __init__(self, run: Path, data: Path, folder: Path, world: Any, recipe: Any, settings: Any) -> None:
        from sidera.engine.live import LiveRun
        from sidera.engine.serving import ServeConfig
        from sidera.lab.own_exposures import LoggedPolicy
        from sidera.lab.recommender_policy import RecommenderPolicy

        self.data, self.folder, self.world, self.recipe, self.settings = data, folder, world, recipe, settings
        self.live: Any = LiveRun.open(run, serve=ServeConfig(store=folder / "store", exposures=folder / "log"))
        self.frozen = _opened(run)
        policy = RecommenderPolicy(self.live.recommender, world, log_probs=True)
        writer: Any = self.live.recommender.exposures
        self.policy = LoggedPolicy(policy, world, writer)
        self.day: int = -1
        self.waiting: dict[int, dict[str, dict[str, list[Any]]]] = {}  # day -> user -> columns
        self.models: dict[str, Any] = {}  # trained on all that came before this day
        self.nights: list[dict[str, Any]] = []
        self.probe: Any = None  # the log that models are compared on

    def __call__(self, requests: Any) -> Any:
        day = _day(requests.as_of)
        if self.day >= 0 and day != self.day:
            self.close_day()
        self.day = day
        return self.policy(requests)

    def follow(self, seen: Any, user_ids: Any) -> None:
        """One slot as its users met it: to the exposure log now, to the store when the day is over."""
        self.policy.follow(seen, user_ids)
        self.keep(seen, user_ids)

    def keep(self, seen: Any, user_ids: Any) -> None:
        from sidera.sim.simulate import SIGNALS
        from sidera.sim.world import user_keys

        columns = {name: getattr(seen.feedback, name).tolist() for name in (*SIGNALS, "watch_time")}
        columns |= {"duration": self.world.items.duration[seen.item_ids].tolist(), "time": seen.times.tolist()}
        columns["item"] = [self.keys[item] for item in seen.item_ids.tolist()]
        of_day = self.waiting.setdefault(seen.day, {})
        for row, user in enumerate(user_keys(user_ids)):
            mine = of_day.setdefault(str(user), {name: [] for name in columns})
            for name, values in columns.items():
                mine[name].append(values[row])

    @property
    def keys(self) -> list[str]:
        if not hasattr(self, "_keys"):
            self._keys = self.world.item_keys()
        return self._keys

    def close_day(self) -> None:
        """Everything between the last answer of a day and the first of the next."""
        from sidera.data.append import append_log
        from sidera.data.dataset import Dataset
        from sidera.engine.recommender import Recommender
        from sidera.train.refresh import refresh

        played = self.waiting.pop(self.day)
        first = min(min(mine["time"]) for mine in played.values())
        behaviour = self.live.recommender.behaviour
        for user, mine in played.items():
            feedback = {
                name: [float(v) for v in values] for name, values in mine.items() if name not in ("time", "item")
            }
            behaviour.keep(user, mine["item"], mine["time"], feedback)
        exported, _ = self.live.export(f"day-{self.day}", since=first)
        append_log(self.data, Dataset.load(exported), exported=True)
        night: dict[str, Any] = {"day": self.day, "ndcg@10": self.measured()}
        begun = time.process_time()
        done = refresh(self.live.run, self.data, self.settings, say=lambda _: None)
        night |= {"refresh_cpu": round(time.process_time() - begun, 2), "published": done.published, "why": done.why}
        night |= {name: done.gate.get(name) for name in ("lr_ratio", "tried")}
        if done.published:
            self.live.swap()
        night["scratch_cpu"] = self.train_from_scratch()
        self.models = {
            "refreshed": Recommender.load(_current(self.live.run)),
            "scratch": Recommender.load(self.folder / f"scratch-{self.day}"),
        }
        self.nights.append(night)
        print(night, flush=True)

    def train_from_scratch(self) -> float:
        from sidera.train.stages import train

        begun = time.process_time()
        train(self.recipe, self.data, self.folder / f"scratch-{self.day}", say=lambda _: None)
        return round(time.process_time() - begun, 2)

    def measured(self) -> dict[str, float]:
        """NDCG@10 on the day that is over, of models that have not seen it."""
        from sidera.data.newest import in_order, new_part
        from sidera.sim.world import DAY, FIRST_DAY
        from sidera.train.gate import answers_of

        first = FIRST_DAY + DAY * self.day
        scores: dict[str, dict[Any, float]] = {}  # of every model: (user, second, item) -> NDCG@10
        for name, one in {"frozen": self.frozen, **self.models}.items():
            dataset = in_order(self.probe, one.catalog.item_keys.tolist())
            part: Any = new_part(dataset, one.catalog.schema, first, reads_all=one.reads.feedback, gate_share=0.5)
            view = replace(part, cut=first, end=first + DAY).view(first)
            rows = view.split.valid
            found = answers_of(one, view.dataset, rows, filter_seen=True)[0]
            items = view.dataset.item_keys[rows.target_ids].tolist()
            asked = zip(rows.user_ids.tolist(), view.dataset.times[rows.ends].tolist(), items, strict=True)
            scores[name] = dict(zip(asked, found.tolist(), strict=True))
        common = set.intersection(*map(set, scores.values()))
        means = {name: round(sum(of[row] for row in common) / len(common), 5) for name, of in scores.items()}
        return {**means, "rows": len(common)}


def probe(world: Any, users: int, days: int) -> Any:
    """The log of people whom nobody learns from, under the app's old policy."""
    import numpy as np
    import pyarrow as pa

    from sidera.data.schema import build_dataset
    from sidera.lab.trial import HISTORY, prepare

    people = prepare(world, np.arange(50_000, 50_000 + users), days)
    mask = np.arange(people.events["item"].shape[1])[None] < people.counts[:, None]
    columns = {name: people.events[name][mask] for name in HISTORY}
    keys = np.array(world.item_keys(), dtype=object)
    columns["item"] = keys[people.events["item"][mask]]
    columns["user"] = np.repeat(np.arange(users), people.counts).astype(str)
    return build_dataset("probe", pa.table(columns))


def _relative(one: float, other: float) -> float:
    return round(one / other - 1, 4) if other else 0.0


def _opened(run: Path) -> Any:
    from sidera.engine.recommender import Recommender

    return Recommender.load(run)


def _current(run: Path) -> Path:
    from sidera.engine.versions import current_folder

    return current_folder(run)


def _day(as_of: Any) -> int:
    from sidera.sim.world import DAY, FIRST_DAY

    return int((as_of.min() - FIRST_DAY) // DAY)


def main() -> None:
    tuned_allocator()
    options = arguments(__doc__, flags)
    single_thread()
    import numpy as np

    from sidera.lab.brackets import LoggerPolicy
    from sidera.lab.differences import compare
    from sidera.lab.recommender_policy import RecommenderPolicy
    from sidera.lab.trial import prepare, run_policy
    from sidera.sim.config import world_config
    from sidera.sim.world import World
    from sidera.train.recipe import Recipe
    from sidera.train.refresh import RefreshConfig
    from sidera.train.stages import train

    users, days = (150, 3) if options.quick else (options.users, options.days)
    log = world_log("easy", SEED, users=users, days=LOG_DAYS)
    folder = bench_folder() / f"loop-{users}{'-quick' if options.quick else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [*SPLIT, f"fit.seed={SEED}", *(QUICK if options.quick else ())]
    recipe = Recipe.read(ROOT / "recipes" / options.recipe, overrides)
    given = dict(entry.split("=", 1) for entry in options.refresh)
    read: dict[str, Any] = {"epochs": int, "lr_ratio": lambda text: tuple(map(float, text.split(",")))}
    chosen: dict[str, Any] = {name: read.get(name, float)(v) for name, v in given.items()}
    settings = RefreshConfig(**chosen)
    data = Path(shutil.copytree(log, folder / "data"))
    begun, stage = time.process_time(), "first training"
    stack = contextlib.ExitStack()
    stack.enter_context(said(lambda: f"{stage}, {time.process_time() - begun:.0f} CPU-s"))
    train(recipe, data, folder / "run", say=lambda _: None)
    first_cpu = time.process_time() - begun
    world = World.build(world_config("easy"), SEED)
    held_out = np.arange(users) % 5 == 4
    audience = prepare(world, np.flatnonzero(~held_out), LOG_DAYS)
    loop = Loop(folder / "run", data, folder, world, recipe, settings)
    loop.probe = probe(world, 300 if options.quick else 2 * users, LOG_DAYS + days)
    others = prepare(world, np.flatnonzero(held_out), LOG_DAYS)
    stage = "old policy serves the others"
    run_policy(world, LoggerPolicy(), others, days, on_exposures=loop.keep)
    stage = "frozen model serves"
    outcomes = {
        "frozen": run_policy(world, RecommenderPolicy(_opened(folder / "run"), world), audience, days, timeout=600)
    }
    stage = "refreshed model serves and learns at night"
    outcomes["refreshed"] = run_policy(world, loop, audience, days, timeout=7200, on_exposures=loop.follow)
    loop.close_day()
    loop.live.close()
    stack.close()
    slots = sum(int(sum(one.metrics["num_items"])) for one in outcomes.values())
    faults = sum(sum(one.faults.values()) for one in outcomes.values())
    lost = max(one.lost_share for one in outcomes.values())
    utility = compare(outcomes["frozen"], outcomes["refreshed"])["utility"]
    scored = [night["ndcg@10"] for night in loop.nights if "scratch" in night["ndcg@10"]]
    means = {name: float(np.mean([one[name] for one in scored])) for name in ("frozen", "refreshed", "scratch")}
    refresh_cpu, scratch_cpu = (sum(night[name] for night in loop.nights) for name in ("refresh_cpu", "scratch_cpu"))
    value = {
        "legality": 1 - faults / max(1, slots + faults),
        "cpu_share": round(refresh_cpu / scratch_cpu, 3),
        "ndcg_against_scratch": _relative(means["refreshed"], means["scratch"]),
        "ndcg_against_frozen": _relative(means["refreshed"], means["frozen"]),
        "utility_against_frozen": [round(utility.relative, 4), round(utility.relative_half_width, 4)],
    }
    passed = (
        value["legality"] == 1 and lost == 0 and value["cpu_share"] <= CPU_BAR
        and value["ndcg_against_scratch"] >= -NDCG_BAR
    )  # fmt: skip
    bar = {"legality": 1, "cpu_share": CPU_BAR, "ndcg_against_scratch": -NDCG_BAR}
    context = {
        "seed": SEED, "users": users, "log_days": LOG_DAYS, "days": days, "recipe": options.recipe,
        "overrides": overrides, "ndcg@10": {name: round(mean, 5) for name, mean in means.items()},
        "cpu_seconds": {"refresh": round(refresh_cpu), "scratch": round(scratch_cpu), "first": round(first_cpu)},
        "utility": "relative difference and half of its 95 % interval, paired by user",
    }  # fmt: skip
    finish("loop", value, bar, passed, context, options.quick, {"nights": loop.nights})


if __name__ == "__main__":
    main()
