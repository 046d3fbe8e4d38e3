"""A scorer gives many items one score; what a metric then says must not depend on how the items are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sidera.catalog.build import build_catalog
from sidera.catalog.config import CatalogConfig
from sidera.data.config import make_split
from sidera.data.dataset import Dataset
from sidera.data.importing import read_log
from sidera.decode.dense import target_ties
from sidera.engine.recommender import Recommender
from sidera.eval.config import EvalConfig
from sidera.eval.evaluate import evaluate
from sidera.models.retrievers.popularity import Popularity

CASES = Path(__file__).parents[1] / "data" / "cases" / "ties"


def measured(dataset: Dataset) -> dict[str, dict[str, float]]:
    split = make_split(dataset)
    config = CatalogConfig(vectors=("behaviour",), codebook_size=8, num_levels=2)
    catalog, _ = build_catalog(dataset, split, config)
    model = Popularity(Popularity.Config(), catalog)  # type: ignore[arg-type]
    recommender = Recommender(model, catalog, model_section={"name": "popularity"})
    config = EvalConfig(ks=(5, 10), bootstrap=20, latency_rows=0, samples=0)
    found = evaluate(recommender, dataset, split, config=config)
    return {seen: {name: value.value for name, value in part.items()} for seen, part in found.metrics.items()}


def test_expected_metrics_do_not_depend_on_names() -> None:
    one, other = (measured(read_log(CASES / name, "x")[0]) for name in ("events.csv", "renamed.csv"))
    for seen in one:
        for name in ("expected_recall@5", "expected_recall@10", "expected_ndcg@5", "expected_ndcg@10"):
            assert one[seen][name] == pytest.approx(other[seen][name], abs=1e-9)
    assert one["keep"]["expected_recall@5"] == pytest.approx(0.05, abs=0.01)


def test_ties_are_counted_over_the_whole_catalogue() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    for target, start, size in ((0, 1, 1), (1, 2, 3), (3, 2, 3), (4, 5, 1)):
        found = target_ties(scores, torch.tensor([target]))
        assert [int(part) for part in found] == [start, size]
    exclude = (torch.tensor([1]), torch.tensor([0, 1]))
    assert [int(part) for part in target_ties(scores, torch.tensor([3]), exclude=exclude)] == [2, 2]
    assert [int(part) for part in target_ties(scores, torch.tensor([1]), exclude=exclude)] == [0, 0]
    alive = torch.tensor([True, True, False, True, True])
    assert [int(part) for part in target_ties(scores, torch.tensor([3]), alive=alive)] == [2, 2]


def test_the_expected_value_is_the_mean_over_orders_of_equals() -> None:
    from sidera.eval.metrics import TargetRanks, row_metrics

    rng = np.random.default_rng(0)
    start, size, k = 3, 6, 5
    places = start + rng.permuted(np.tile(np.arange(size), (4000, 1)), axis=1)[:, 0]
    ranks = TargetRanks(np.array([0]), np.array([start]), np.array([size]), 10)
    expected = row_metrics(ranks, [k])
    assert expected[f"expected_recall@{k}"][0] == pytest.approx((places <= k).mean(), abs=0.03)
    gains = np.where(places <= k, 1 / np.log2(places + 1), 0)
    assert expected[f"expected_ndcg@{k}"][0] == pytest.approx(gains.mean(), abs=0.03)
