"""``make demo``: the whole way in minutes: a log, a catalogue, its models, their evaluation, an online test, two pages.

Without data a small simulated app is logged first, and the trained models then serve its users beside policies that
bracket the scale: what was learnt from the log is judged by what it does to people. With a data folder the same small
recipes run on that, and there is nobody to serve. The recipes, ``recipes/demo/`` and ``recipes/demo_data/``, are for
the shop window: few epochs, sampled evaluation rows. Those behind the published numbers lie beside them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sidera import console
from sidera.data.config import load_dataset
from sidera.engine.recommender import Recommender
from sidera.eval.compare import compare
from sidera.eval.evaluation import Evaluation
from sidera.eval.lines import evaluation_lines
from sidera.lab.online import online_test, to_text
from sidera.lab.recommender_policy import RecommenderPolicy
from sidera.pages.headline import headline
from sidera.pages.online import write_online_page
from sidera.pages.run import write_report
from sidera.pages.runs import read_runs
from sidera.recipes import find_recipe
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate
from sidera.sim.world import World
from sidera.train.recipe import Recipe
from sidera.train.stages import run

SMALL = 2000  # items of a data folder, at most, for TIGER to join and for trainings in small batches
LARGE = ("fit.epochs=10", "fit.batch_size=128", "fit.eval_every_epochs=5", "eval.max_rows=5000")
WORLD = {"num_items": 1000, "num_creators": 100}  # of the easy world, so that minutes are enough to learn it
USERS, DAYS = 3000, 8  # of its log
AUDIENCE, TEST_DAYS = 300, 3  # of its online test
IN_WORLD = ("popularity", "item_knn", "sasrec", "generator", "onerec_v2")
ON_DATA = ("popularity", "item_knn", "sasrec", "generator")


def demo(data: str | None, out: Path) -> list[Path]:
    """Run every demo recipe and say how to serve the best of them."""
    begun = time.perf_counter()
    torch.set_num_threads(1)  # steps of milliseconds: more threads mostly wait for each other, badly on a busy machine
    world = None
    if data is None:
        world = World.build(world_config("easy", WORLD), seed=0)
        data = str(out / "data")
        counts = simulate(world.config, USERS, DAYS, data, world.seed)
        console.say(f"no data given: {counts['num_events']:,} exposures of a simulated app are in {data}")
    recipes = data_recipes(load_dataset(data).num_items) if world is None else world_recipes()
    results: dict[str, Evaluation] = {}
    for name, recipe in recipes.items():
        console.say(f"\n== {name}")
        result = run(recipe, data, out / name)
        assert isinstance(result, Evaluation), "demo recipes answer lists and have no piece limit"
        console.result(evaluation_lines(result))
        results[name] = result
    first = "generator" if world is None else "onerec_v2"
    console.result(f"\n== {first} against sasrec, paired\n{compare(results[first], results['sasrec']).to_text()}")
    console.result(f"\n{results_lines(results)}")
    pages = [write_report(out, out / "report.html")]
    words = headline(read_runs([out]).groups()[0])
    console.say(f"\n{' '.join((words.first, *words.rest))}\nreport: {pages[0]}")
    if world is not None:
        pages.append(demo_online(world, list(recipes), out))
    history = ",".join(example_history(data))
    console.say(f"\ndone in {time.perf_counter() - begun:.0f} s; pages: {', '.join(map(str, pages))}")
    console.say(f"ask:    sidera recommend {out / first} --history {history} -k 5")
    console.say(f"serve:  sidera serve {out / first} --port 8000")
    return pages


def demo_online(world: World, names: list[str], out: Path) -> Path:
    """The trained models and the bracketing policies serve the same users; SASRec is what they are compared with."""
    console.say("\n== online test")
    models = {name: RecommenderPolicy(Recommender.load(out / name), world) for name in names if name != "popularity"}
    result = online_test(
        models, world, users=AUDIENCE, days=TEST_DAYS, log_days=DAYS, reference="sasrec", timeout=600, say=console.say
    )
    result.save(out / "online.json")
    console.result(f"\n{to_text(result)}")
    return write_online_page(result, out / "online.html", title="Demo: online test")


def world_recipes(overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """``recipes/demo/``: for the simulated log, all over its long views and so with the same test rows."""
    return {name: Recipe.read(find_recipe(f"demo/{name}"), overrides) for name in IN_WORLD}


def data_recipes(num_items: int) -> dict[str, Recipe]:
    """``recipes/demo_data/``, shorter trainings for many items. TIGER joins on small data only: it wants time."""
    if num_items <= SMALL:
        return {name: Recipe.read(find_recipe(f"demo_data/{name}")) for name in (*ON_DATA, "tiger")}
    more = {"generator": (*LARGE, "model.dropout=0.5")}
    return {name: Recipe.read(find_recipe(f"demo_data/{name}"), more.get(name, LARGE)) for name in ON_DATA}


def results_lines(results: dict[str, Evaluation]) -> str:
    """A table for the terminal, protocol first."""
    protocol = next(iter(results.values())).protocol
    lines = [
        f"{protocol['dataset']}, {protocol['split']}, {protocol['rows']:,} test rows, full ranking, item-level hits",
        f"{'':12s} {'keep R@10':>18s} {'keep N@10':>18s} {'filter R@10':>18s} {'filter N@10':>18s}",
    ]
    for name, result in results.items():
        cells = [
            f"{estimate.value:.4f} [{estimate.low:.3f},{estimate.high:.3f}]"
            for seen in ("keep", "filter")
            for estimate in (result.metrics[seen]["recall@10"], result.metrics[seen]["ndcg@10"])
        ]
        lines.append(f"{name:12s} " + " ".join(f"{cell:>18s}" for cell in cells))
    return "\n".join(lines)


def example_history(data: str) -> list[str]:
    """The first events of the first user, as keys."""
    dataset = load_dataset(data)
    ids = dataset.item_ids[dataset.offsets[0] : min(dataset.offsets[1], dataset.offsets[0] + 3)]
    return [str(dataset.item_keys[item_id]) for item_id in ids]
