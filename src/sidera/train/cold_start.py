"""Cold start as a report: the run's recipe trained again without some items and users, and asked about them.

    record = cold_start(recipe, "data/shop", "runs/shop/cold")       # catalog/, model/ and report/ in it

1. A tenth of the items and a fifth of the users are taken out of the log (``data.withheld``).
2. The recipe is trained on what is left -> ``RUN/cold/catalog``, ``RUN/cold/model``.
3. The withheld items join the catalogue as a message of new items does while it serves (``engine.living``): by title
   and fields, on codes that are free. No event of theirs is learned from.
4. The users who were taken out ask (``eval.cold``): user-cold by the length of their history, item-cold where the
   answer is a withheld item. Once more with a quota of slots for new items (``engine.quota``), and what it costs.

Beside the model stand content-kNN and what counts, fitted on the same log, and a uniform choice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sidera import artifacts
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.data.config import load_dataset, make_views
from sidera.data.dataset import Dataset
from sidera.data.features import with_long_view
from sidera.data.withheld import Withheld, among_all, questions_about, withhold
from sidera.engine.living import Delta, ItemChange, applied
from sidera.engine.quota import Quota
from sidera.engine.recommender import Recommender
from sidera.eval.cold import Measured, measure, quota_cost, summary
from sidera.loading import open_artifact
from sidera.models import RANKING, role_of
from sidera.stage import stage
from sidera.train.baselines import recommender_of
from sidera.train.recipe import Recipe
from sidera.train.run_lock import one_writer
from sidera.train.stages import Prepared, Say, catalog_stage, say_once, train_stage

KIND = "cold_start"
FOLDER, FILE = "cold", "cold.json"  # below the run, and in the artifact
BESIDE = ("content_knn", "transitions_text", "item_knn", "popularity")
AGAINST = "content_knn"
WITH_QUOTA = " + quota"  # behind the model's name


@dataclass(frozen=True)
class ColdConfig:
    """What is withheld and asked."""

    item_share: float = 0.1  # of the items, taken out of the log
    user_share: float = 0.2  # of the users
    k: int = 50  # items of a list
    max_rows: int = 1000  # questions about new items; a quarter of them for each length of history
    quota: float = 0.1  # share of the slots that new items get in the second measurement
    seed: int = 0  # of what is withheld and asked

    def __post_init__(self) -> None:
        for name in ("item_share", "user_share", "quota"):
            check_value("cold", name, getattr(self, name), 0 < getattr(self, name) < 1, "a share inside 0..1")
        check_counts("cold", self, "k", "max_rows")
        check_counts("cold", self, "seed", low=0)


@one_writer
def cold_start(
    recipe: Recipe, data: str | Path, out: str | Path, config: ColdConfig | None = None, *, device: str = "cpu",
    say: Say = say_once,
) -> dict[str, Any] | None:  # fmt: skip
    """Train ``recipe`` without what is withheld and measure -> ``out/report``; None where the training is unfinished.

    InputError for a model that answers no lists.
    """
    config, out = config or ColdConfig(), Path(out)
    if role_of(recipe.model_name) in RANKING:
        raise InputError(f"{recipe.model_name!r} answers no lists", fix="measure the model that finds its candidates")
    dataset = load_dataset(data, recipe.data, say)
    parts = withhold(dataset, config.item_share, config.user_share, config.seed)
    prepared = _prepared(recipe, parts.known)
    say(
        f"cold: {parts.whole.num_items - parts.first_new:,} of {dataset.num_items:,} items and"
        f" {int(parts.asked_mask.sum()):,} of {dataset.num_users:,} users are withheld"
    )
    recipe.save(out)
    catalog = catalog_stage(recipe, prepared, out, say)
    trained = train_stage(recipe, prepared, catalog, out, device=device, say=say)
    if trained is None:
        return None
    assert isinstance(trained, Recommender)
    digest = open_artifact(out / "model", "model").manifest.digest

    def make(wanted: str) -> dict[str, Any]:
        record = _measured(recipe, trained, prepared, parts, config, say)
        record |= {"model": recipe.model_name, "dataset": dataset.name, "config": asdict(config)}
        manifest = artifacts.Manifest(KIND, wanted, parents={"model": digest}, info={"model": recipe.model_name})
        with artifacts.writing(out / "report", manifest) as folder:
            (folder / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record

    measured = [recipe.eval.wide_beam, list(recipe.eval.seen), recipe.eval.search, recipe.eval.bootstrap]
    inputs = [digest, dataset.digest, asdict(config), *measured]
    return stage(out / "report", KIND, inputs, make, lambda: read_cold(out / "report"))


def read_cold(path: str | Path) -> dict[str, Any]:
    """The record of an artifact; ArtifactError when it is damaged."""
    return open_artifact(path, KIND).json(FILE, dict)


def with_withheld(catalog: Catalog, whole: Dataset) -> Catalog:
    """The catalogue and the items of ``whole`` behind its own, as a message of new items brings them."""
    table = whole.items.slice(catalog.num_items)
    changes = tuple(
        ItemChange(row["key"], row.get("title"), {name: row[name] for name in row if name not in ("key", "title")})
        for row in table.to_pylist()
    )
    return applied(catalog, Delta(changes))[0]


def _prepared(recipe: Recipe, known: Dataset) -> Prepared:
    everything, positives = make_views(known, recipe.data)
    view = everything if recipe.model_config.reads.feedback else positives
    return Prepared(view.dataset, view.split, view.schema, positives)


def _measured(
    recipe: Recipe, trained: Recommender, prepared: Prepared, parts: Withheld, config: ColdConfig, say: Say
) -> dict[str, Any]:
    before = trained.catalog
    grown = with_withheld(before, parts.whole)
    everything = with_long_view(parts.whole, prepared.schema)
    positive = prepared.schema.positive
    mask = everything.feedback[positive].astype(bool) if positive else np.ones(everything.num_events, dtype=bool)
    positives = everything.keep(mask) if positive else everything
    asked = questions_about(positives, parts.asked_mask, parts.first_new, config.max_rows, config.seed)
    beam, filter_seen = max(recipe.eval.wide_beam, config.k), recipe.eval.seen[0] == "filter"

    def answers(one: Recommender) -> Measured:
        log, rows = positives, asked
        if one.reads.feedback and positive:
            log, rows = everything, {name: among_all(each, everything, mask) for name, each in asked.items()}
        reads_new = one.snapshot.num_readable == grown.num_items
        return measure(one, log, rows, parts.first_new, config.k, beam, filter_seen, reads_new)

    trained.use_catalog(grown)
    models = {recipe.model_name: answers(trained)}
    for name in BESIDE:
        if name not in models:
            say(f"cold: beside it {name}")
            one = recommender_of(name, prepared.positives, before)
            one.use_catalog(grown)
            models[name] = answers(one)
    trained.parts = replace(trained.parts, steps=(*trained.parts.steps, Quota.cold(config.quota)))
    models[f"{recipe.model_name}{WITH_QUOTA}"] = with_quota = answers(trained)
    num_items, num_new = int((~np.asarray(grown.removed)).sum()), grown.num_items - parts.first_new
    record = summary(models, asked, config.k, num_items, num_new, AGAINST, recipe.eval.bootstrap)
    cost = quota_cost(models[recipe.model_name], with_quota, asked, config.k, recipe.eval.bootstrap)
    return record | {"quota": cost}
