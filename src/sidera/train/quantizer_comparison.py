"""Several quantizers on one recipe's items: their figures, what a refresh changes, and what a generator makes of them.

    rows = compare_quantizers(recipe, "data/mine", "out", ["rq_kmeans", "rq_vae,latent=16", "opq"], steps=500)

Each gets a folder of its own below ``out`` with its catalogue and, where steps are asked for, its trained run; what is
there already is reused. Churn is measured against the catalogue of a log that lacks every user's last training event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sidera.catalog.compare import churn, figures
from sidera.config import override_value
from sidera.core import InputError
from sidera.data.config import View
from sidera.eval.evaluation import Evaluation
from sidera.train.recipe import Recipe
from sidera.train.stages import Prepared, Say, catalog_stage, prepare, run, say_once


def compare_quantizers(
    recipe: Recipe,
    data: str | Path,
    out: str | Path,
    quantizers: Sequence[str],
    *,
    steps: int = 0,
    with_churn: bool = True,
    say: Say = say_once,
) -> list[dict[str, Any]]:
    """A row of figures for each of ``quantizers`` ("NAME" or "NAME,KEY=VALUE,...").

    ``steps``: train the recipe's model for so many steps on each and measure it on the test rows; 0: do not.
    """
    recipes = {text: with_quantizer(recipe, text) for text in quantizers}  # all are checked before any is built
    prepared, rows = prepare(recipe, data, say), []
    for text, one in recipes.items():
        folder = Path(out) / text.replace(",", "+")
        catalog = catalog_stage(one, prepared, folder, say)
        row = {"quantizer": text, **figures(catalog)}
        if with_churn:
            row["churn"] = churn(catalog_stage(one, earlier(prepared), folder / "earlier", say), catalog)["moved"]
        if steps:
            short = replace(one, fit=replace(one.fit, max_steps=steps))
            found = run(short, data, folder, say=say)
            if isinstance(found, Evaluation):
                row["downstream"] = {
                    seen: {name: metrics[name].value for name in ("recall@10", "ndcg@10") if name in metrics}
                    for seen, metrics in found.metrics.items()
                }
        rows.append(row)
    return rows


def with_quantizer(recipe: Recipe, text: str) -> Recipe:
    """The recipe with another ``[catalog.quantizer]``: "rq_vae,latent=16"."""
    name, *settings = text.split(",")
    section: dict[str, Any] = {"name": name}
    for one in settings:
        key, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"quantizer {text!r}: {one!r} is no KEY=VALUE", fix="write NAME,KEY=VALUE,KEY=VALUE")
        section[key] = override_value(value)
    return replace(recipe, catalog=replace(recipe.catalog, quantizer=section))


def earlier(prepared: Prepared) -> Prepared:
    """The same items, before every user's last training event had happened."""
    view = prepared.positives
    ends, starts = view.split.train_ends, view.dataset.offsets[:-1]
    split = replace(view.split, train_ends=np.where(ends - starts > 1, ends - 1, ends))
    return replace(prepared, positives=View(view.dataset, split, view.schema))
