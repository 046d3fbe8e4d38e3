"""Claim `counting`: transitions, counted in seconds, are the bar that a trained model has to clear on sparse logs.

    python benchmarks/counting.py [--quick]

`any/transitions` and `any/item_knn`, untouched, on Amazon Beauty and Sports: leave-one-out, fitted without the
validation item, the whole history read (its validation item too), full ranking, item-level hits, seen items kept and
filtered. `--quick` ranks a sample of 2,000 rows. Seconds are CPU time of counting, its choice of settings included.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import arguments, finish

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BARS = {"beauty": 0.0514, "sports": 0.0286}  # filter NDCG@10, to be reached within 3 %
WITHIN, MOST_SECONDS = 0.97, 30.0


def measured(name: str, data: str, quick: bool) -> dict[str, Any]:
    from sidera.catalog.build import build_catalog
    from sidera.data.config import load_dataset, make_views
    from sidera.engine.recommender import Recommender
    from sidera.eval.evaluate import evaluate
    from sidera.models import build_model, fit_once
    from sidera.train.recipe import Recipe

    recipe = Recipe.read(f"any/{name}", ("eval.latency_rows=0", "eval.samples=0"))
    _, view = make_views(load_dataset(DATA / f"amazon2014_{data}", recipe.data), recipe.data)
    catalog, _ = build_catalog(view.dataset, view.split, recipe.catalog, view.schema)
    model = build_model(recipe.model_name, recipe.model_config, catalog)
    begun = time.process_time()
    fit_once(model, view)
    seconds = time.process_time() - begun
    recommender = Recommender(model.eval(), catalog, model_section=recipe.model_section)
    config = replace(recipe.eval, max_rows=2_000 if quick else None)
    found = evaluate(recommender, view.dataset, view.split, "test", config, name=name)
    figures = {
        f"{seen}/{metric}": {"value": one.value, "low": one.low, "high": one.high}
        for seen, metrics in found.metrics.items()
        for metric, one in metrics.items()
        if metric in ("recall@10", "ndcg@10")
    }
    chosen = [round(float(value), 3) for value in getattr(model, "chosen", ())]
    return {"figures": figures, "fit_cpu_seconds": round(seconds, 1), "norm and fading": chosen or None}


def main() -> None:
    options = arguments(__doc__)
    found = {data: {name: measured(name, data, options.quick) for name in ("transitions", "item_knn")} for data in BARS}
    value = {
        data: {
            "filter ndcg@10": round(models["transitions"]["figures"]["filter/ndcg@10"]["value"], 4),
            "seconds": models["transitions"]["fit_cpu_seconds"],
        }
        for data, models in found.items()
    }
    passed = all(
        value[data]["filter ndcg@10"] >= WITHIN * bar and value[data]["seconds"] <= MOST_SECONDS
        for data, bar in BARS.items()
    )
    bar = {"filter ndcg@10": BARS, "within": WITHIN, "seconds": MOST_SECONDS}
    context = {"rows": 2_000 if options.quick else "all", "measured": found}
    finish("counting", value, bar, passed, context, options.quick)


if __name__ == "__main__":
    main()
