"""Popularity, item-kNN and transitions beside a trained model, on the same rows -> ``baselines/EVALUATION/NAME``.

They only count, so they cost seconds where a training costs minutes, and a figure without them says little. A model
that counts itself gets those that cost less than it does: item-kNN gets transitions and popularity, popularity none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

from sidera.catalog.catalog import Catalog
from sidera.config import digest
from sidera.data.config import View
from sidera.data.split import Fit
from sidera.engine.recommender import Recommender
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate
from sidera.eval.evaluation import Evaluation, load_evaluation, save_evaluation
from sidera.models import MODELS, build_model, fit_once
from sidera.stage import stage

FOLDER = "baselines"
COMPANIONS = ("item_knn", "transitions", "popularity")  # of a model that is none; one of them gets those behind it


def baselines(
    model_name: str,
    view: View,
    catalog: Catalog,
    config: EvalConfig,
    evaluation: Path,
    which: Literal["valid", "test"],
    fit: Fit,
    say: Callable[[str], None],
) -> list[Evaluation]:
    """Measure what belongs beside the ``evaluation`` of ``model_name``, on ``view``; what is there already is read.

    They count the events of the model's own ``fit``, so that like is compared with like.
    The artifacts hold accuracies and lists; latency and examples are the run's own.
    """
    config = replace(config, latency_rows=0, free_rows=0, samples=0)
    settings = {key: value for key, value in asdict(config).items() if key not in ("beam", "wide_beam", "batch_size")}
    cuts = (view.split.train_ends, view.split.valid.ends, view.split.test.ends)
    asked = [view.dataset.digest, view.split.name, *(array.tolist() for array in cuts)]
    items = [catalog.item_keys.tolist(), catalog.removed.tolist(), catalog.popularity.tolist()]
    found = []
    behind = COMPANIONS.index(model_name) + 1 if model_name in COMPANIONS else 0
    for name in COMPANIONS[behind:]:
        path = evaluation.parent / FOLDER / evaluation.name / name

        def make(wanted: str, name: str = name, path: Path = path) -> Evaluation:
            counting = recommender_of(name, view, catalog, fit)
            result = evaluate(counting, view.dataset, view.split, which, config, name=name, fit=fit)
            save_evaluation(result, path, digest=wanted)
            say(_line(result))
            return result

        inputs = [name, digest(asked), digest(items), settings, which, fit]
        found.append(stage(path, "evaluation", inputs, make, partial(load_evaluation, path)))
    return found


def recommender_of(name: str, view: View, catalog: Catalog, fit: Fit = "train") -> Recommender:
    """The counting model over the catalogue's items, with its default settings."""
    model = build_model(name, MODELS[name].Config(), catalog, seed=0)
    fit_once(model, view, fit)
    return Recommender(model.eval(), catalog, model_section={"name": name})


def _line(result: Evaluation) -> str:
    cells = []
    for seen, metrics in result.metrics.items():
        for name in ("recall@10", "ndcg@10"):
            if name in metrics:
                found = metrics[name]
                cells.append(f"{seen} {name} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]")
    return f"  beside, {result.name}: " + (", ".join(cells) or "measured")
