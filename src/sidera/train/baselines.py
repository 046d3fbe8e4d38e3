"""What counts, beside a trained model and on the same rows -> ``baselines/EVALUATION/NAME``.

``[eval] baselines`` names them: popularity, transitions, item-kNN and transitions with titles unless a recipe says
otherwise, ALS and BPR on request. They cost seconds where a training costs minutes, and a figure without them says
little. A model that counts itself gets those that cost less than it does: item-kNN gets transitions and popularity,
popularity none. The cheapest is measured first, and what is left when ``[eval] baseline_minutes`` are over is named and
left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sidera.catalog.catalog import Catalog
from sidera.config import digest
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.split import Fit
from sidera.engine.recommender import Recommender
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate
from sidera.eval.evaluation import Evaluation, load_evaluation, save_evaluation
from sidera.eval.verdict import against_best
from sidera.models import MODELS, build_model, fit_once
from sidera.stage import stage

FOLDER = "baselines"
NOT_MEASURED = ("baselines", "baseline_minutes")  # they lie beside an evaluation and change no figure of it
NO_MATTER = ("beam", "wide_beam", "batch_size", *NOT_MEASURED)  # to what a scorer answers
# What a page calls a baseline, the cheapest first.
COMPANIONS = ("popularity", "transitions", "item_knn", "content_knn", "transitions_text", "als", "bpr")


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
    settings = {key: value for key, value in asdict(config).items() if key not in NO_MATTER}
    cuts = (view.split.train_ends, view.split.valid.ends, view.split.test.ends)
    asked = [view.dataset.digest, view.split.name, *(array.tolist() for array in cuts)]
    items = [catalog.item_keys.tolist(), catalog.removed.tolist(), catalog.popularity.tolist()]
    found = []
    begun, late = time.process_time(), []
    for name in companions_of(model_name, catalog, config):
        if time.process_time() - begun > 60 * config.baseline_minutes:
            late.append(name)
            continue
        path = evaluation.parent / FOLDER / evaluation.name / name

        def make(wanted: str, name: str = name, path: Path = path) -> Evaluation:
            counting = recommender_of(name, view, catalog, fit)
            result = evaluate(counting, view.dataset, view.split, which, config, name=name, fit=fit)
            save_evaluation(result, path, digest=wanted)
            say(_line(result))
            return result

        inputs = [name, digest(asked), digest(items), settings, which, fit]
        found.append(stage(path, "evaluation", inputs, make, partial(load_evaluation, path)))
    if late:
        say(f"  left out, [eval] baseline_minutes = {config.baseline_minutes:g} were over: {', '.join(late)}")
    return found


def companions_of(model_name: str, catalog: Catalog, config: EvalConfig) -> list[str]:
    """Names of what stands beside a model, the cheapest first. Without titles those that read them say nothing."""
    most = COMPANIONS.index(model_name) if model_name in COMPANIONS else len(COMPANIONS)
    titled = any(catalog.titles)
    return [
        name
        for name in COMPANIONS[:most]
        if name in config.baselines and (titled or not getattr(MODELS[name], "reads_titles", False))
    ]


def check_baselines(config: EvalConfig) -> None:
    """InputError where the library of a baseline that is asked for is not installed: before a training, not behind."""
    for name in config.baselines:
        if (needs := getattr(MODELS[name], "needs", "")) and find_spec(needs) is None:
            problem = f"[eval] baselines names {name!r}, which needs the library {needs}"
            raise InputError(problem, fix="pip install 'sidera[baselines]'")


def say_verdicts(
    result: Evaluation, beside: Sequence[Evaluation], config: EvalConfig, say: Callable[[str], None]
) -> None:
    """Whether the run beats the best of what counts, a sentence a seen mode."""
    for one in against_best(result, beside, config.main_k):
        say(f"verdict: {one.to_text()}")


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
