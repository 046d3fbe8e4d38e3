"""Claim `counting`: transitions, counted in seconds, are the bar that a trained model has to clear on sparse logs.

    python benchmarks/counting.py [--quick]

`any/transitions` and `any/item_knn`, untouched, on Amazon Beauty and Sports: leave-one-out, fitted without the
validation item, the whole history read (its validation item too), full ranking, item-level hits, seen items kept and
filtered. `--quick` ranks a sample of 2,000 rows. Seconds are CPU time of counting, its choice of settings included.

A full run also keeps the trials of the settings: NDCG@10 on a sample of the validation rows, seen items kept.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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


def trials(data: str) -> list[dict[str, float]]:
    """NDCG@10 on validation rows for every setting."""
    import torch

    from sidera.data.config import load_dataset, make_views
    from sidera.data.split import train_sequences
    from sidera.models import build_model
    from sidera.models.retrievers.transitions import FADINGS
    from sidera.models.retrievers.validation import validation_ndcg
    from sidera.train.recipe import Recipe

    recipe, found = Recipe.read("any/transitions"), []
    _, view = make_views(load_dataset(DATA / f"amazon2014_{data}", recipe.data), recipe.data)
    catalog: Any = SimpleNamespace(item_keys=view.dataset.item_keys, level_sizes=())
    for step_decay in (0.5, 0.7, 0.9):
        model: Any = build_model("transitions", replace(recipe.model_config, step_decay=step_decay), catalog)
        for norm in (0.0, 0.3, 0.6):
            model.count(*train_sequences(view.dataset, view.split), norm, FADINGS[0])
            for fading in FADINGS:
                model.chosen.copy_(torch.tensor([norm, fading]))
                settings = {"step_decay": step_decay, "norm": norm, "fading": fading}
                found.append({**settings, "valid keep ndcg@10": round(validation_ndcg(model, view), 4)})
    return found


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
    details = {} if options.quick else {"trials": {data: trials(data) for data in BARS}}
    finish("counting", value, bar, passed, context, options.quick, details)


if __name__ == "__main__":
    main()
