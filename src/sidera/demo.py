"""``make demo``: the whole way in minutes: a log, a catalogue, its models, their evaluation, an online test, two pages.

Without data a small simulated app is logged first, and the trained models then serve its users beside policies that
bracket the scale: what was learnt from the log is judged by what it does to people. With a data folder the same small
recipes run on that, and there is nobody to serve. The recipes here are the shop-window ones: few epochs, sampled
evaluation rows. Those behind the published numbers are under recipes/.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from sidera import console
from sidera.data.config import load_dataset
from sidera.engine.recommender import Recommender
from sidera.eval.compare import compare
from sidera.eval.evaluation import Evaluation
from sidera.eval.online import online_test, to_text
from sidera.eval.recommender_policy import RecommenderPolicy
from sidera.pages.online import write_online_page
from sidera.pages.run import write_report
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate
from sidera.sim.world import World
from sidera.train.recipe import Recipe
from sidera.train.stages import evaluation_lines, run

SMALL = 2000  # items
WORLD = {"num_items": 1000, "num_creators": 100}  # of the easy world, so that minutes are enough to learn it
USERS, DAYS = 3000, 8  # of its log
AUDIENCE, TEST_DAYS = 300, 3  # of its online test
TREE = {
    "vectors": ["behaviour"],
    "num_levels": 1,
    "codebook_size": 0,
    "balanced": True,
    "collision": "extra_digit",
}
CODES = {
    "vectors": ["tfidf", "behaviour"],
    "num_levels": 3,
    "codebook_size": 32,
    "balanced": True,
    "collision": "greedy",
}


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
    recipes = demo_recipes(load_dataset(data).num_items) if world is None else world_recipes()
    results: dict[str, Evaluation] = {}
    for name, sections in recipes.items():
        console.say(f"\n== {name}")
        result = run(Recipe.parse(sections), data, out / name)
        assert result is not None, "demo recipes have no piece limit"
        console.result(evaluation_lines(result))
        results[name] = result
    first = "generator" if world is None else "onerec_v2"
    console.result(f"\n== {first} against sasrec, paired\n{compare(results[first], results['sasrec']).to_text()}")
    console.result(f"\n{results_lines(results)}")
    pages = [write_report(out, out / "report.html")]
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


def world_recipes() -> dict[str, dict[str, dict[str, Any]]]:
    """Sections of the recipes for the simulated log, all over its long views and so with the same test rows."""
    data = {"positive": "long_view"}
    fit = {"epochs": 20, "batch_size": 128, "lr": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.1}
    fit |= {"eval_every_epochs": 1, "patience": 4}
    onerec_fit = {**fit, "epochs": 6, "batch_size": 256, "weight_decay": 0.01, "patience": 2}
    evaluation = {"max_rows": 1000, "valid_rows": 500, "latency_rows": 100}
    votes = {"max_history": 50, "half_life": 20.0, "window": 30, "backward": 1.0, "shrink": 5.0}
    sasrec = {"name": "sasrec", "max_history": 50, "loss": "full", "output": "tied", "dropout": 0.6}
    onerec = {"name": "onerec_v2", "max_history": 64, "short_term": 32, "width": 48, "num_layers": 2, "num_heads": 2}
    onerec |= {"num_kv_groups": 2, "ff_width": 96, "dropout": 0.2}
    models: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "popularity": ({"name": "popularity"}, TREE, fit),
        "item_knn": ({"name": "item_knn", **votes}, TREE, fit),
        "sasrec": (sasrec, TREE, fit),
        "onerec_v2": (onerec, CODES, onerec_fit),
    }
    return {
        name: {"data": data, "catalog": catalog, "model": model, "fit": fitting, "eval": evaluation}
        for name, (model, catalog, fitting) in models.items()
    }


def demo_recipes(num_items: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Sections of the demo's recipes, sized by the catalogue. TIGER joins on small data only: it wants time."""
    small = num_items <= SMALL
    fit = {"epochs": 30 if small else 10, "batch_size": 64 if small else 128, "lr": 2e-3, "betas": [0.9, 0.98]}
    fit |= {"eval_every_epochs": 3 if small else 5, "weight_decay": 0.0}
    evaluation = {"max_rows": None if small else 5000, "valid_rows": 2000}
    sasrec = {"name": "sasrec", "max_history": 50, "dropout": 0.3, "num_negatives": min(1024, num_items)}
    models: dict[str, dict[str, Any]] = {
        "popularity": {"name": "popularity"},
        "item_knn": {"name": "item_knn"},
        "sasrec": sasrec,
        "generator": {"name": "sidera", "max_history": 50, "dropout": 0.3 if small else 0.5},
    }
    recipes = {
        name: {"data": {}, "catalog": TREE, "model": model, "fit": fit, "eval": evaluation}
        for name, model in models.items()
    }
    if small:
        recipes["tiger"] = {
            "data": {},
            "catalog": {"vectors": ["tfidf"], "num_levels": 2, "codebook_size": 0, "collision": "extra_digit"},
            "model": {"name": "tiger", "width": 64, "num_layers": 2, "num_heads": 4, "head_width": 16, "ff_width": 256},
            "fit": {"epochs": 8, "batch_size": 128, "lr": 2e-3, "warmup_steps": 50, "eval_every_epochs": 2},
            "eval": evaluation,
        }
    return recipes


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
