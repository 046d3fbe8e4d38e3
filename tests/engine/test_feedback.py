"""Histories with feedback: what a request brings is read as the training batches were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from hand_made import read_log
from sidera.catalog.build import build_catalog
from sidera.catalog.config import CatalogConfig
from sidera.core import InputError, Request
from sidera.data.batches import eval_batches
from sidera.data.config import DataConfig, View, make_views
from sidera.data.tiny import tiny_exposures
from sidera.engine.recommender import Recommender
from sidera.models import build_model, parse_model
from sidera.serve.app import create_app

SECTIONS: dict[str, dict[str, Any]] = {
    "onerec_v2": {"name": "onerec_v2", "max_history": 16, "short_term": 8, "width": 16, "num_layers": 2, "num_heads": 2,
                  "num_kv_groups": 2},
    "sasrec": {"name": "sasrec", "max_history": 16, "width": 16},
}  # fmt: skip
RAW = ("click", "like", "watch_time", "duration")  # long_view is derived


@pytest.fixture(scope="module")
def views() -> tuple[View, View]:
    return make_views(tiny_exposures(), DataConfig(positive="long_view"))


def recommender(name: str, views: tuple[View, View]) -> Recommender:
    kept = views[1]
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 2, "codebook_size": 5}, vector_dim=8)
    catalog, _ = build_catalog(kept.dataset, kept.split, config, kept.schema)
    return Recommender(build_model(*parse_model(SECTIONS[name]), catalog), catalog, model_section=SECTIONS[name])


def request_of(view: View, row: int, **changes: Any) -> Request:
    """Test question ``row`` as a client would ask it."""
    dataset, rows = view.dataset, view.split.test
    span = slice(rows.starts[row], rows.ends[row])
    user = rows.user_ids[row]
    region = dataset.users["region"][user].as_py()
    whole = {
        "history": tuple(str(dataset.item_keys[item]) for item in dataset.item_ids[span]),
        "k": 6,
        "feedback": {name: dataset.feedback[name][span].astype(float).tolist() for name in RAW},
        "times": dataset.times[span].tolist(),
        "profile": {"region": region} if region else {},
        "as_of": int(dataset.times[rows.ends[row]]),
    }
    return Request(**{**whole, **changes})


@pytest.mark.parametrize("name", ["onerec_v2", "sasrec"])
def test_a_request_is_read_as_evaluation_reads_it(name: str, views: tuple[View, View]) -> None:
    model = recommender(name, views)
    view = views[0] if model.reads.feedback else views[1]
    ((index, batch),) = eval_batches(model.read_log(view.dataset), view.split.test, 100, whole=True)
    expected = model.rank(batch, 6)
    answers = model.recommend([request_of(views[0], row) for row in index])
    for place, answer in enumerate(answers):
        assert list(answer.item_ids) == expected.item_ids[place].tolist()
        np.testing.assert_allclose(answer.scores, expected.scores[place].tolist(), rtol=1e-5)


def test_feedback_times_and_profile_all_count(views: tuple[View, View]) -> None:
    model = recommender("onerec_v2", views)
    request = request_of(views[0], 0)
    scores = [model.recommend([request])[0].scores]
    liked = {**request.feedback, "like": [1.0] * len(request.history)}
    for changes in ({"feedback": liked}, {"as_of": 10**6}, {"profile": {"region": "south"}}, {"feedback": {}}):
        scores.append(model.recommend([request_of(views[0], 0, **changes)])[0].scores)
    assert len(set(scores)) == len(scores)
    unknown = request_of(views[0], 0, profile={"region": "nowhere"})  # a value that was never seen: no crash, no guess
    assert model.recommend([unknown])[0].scores == model.recommend([request_of(views[0], 0, profile={})])[0].scores


def test_bad_feedback_is_named(views: tuple[View, View]) -> None:
    model = recommender("onerec_v2", views)
    feedback = dict(request_of(views[0], 0).feedback)
    short = {**feedback, "click": feedback["click"][:-1]}
    with pytest.raises(InputError, match="feedback 'click' has"):
        model.recommend([request_of(views[0], 0, feedback=short)])
    del feedback["like"]
    with pytest.raises(InputError, match="no 'like'"):
        model.recommend([request_of(views[0], 0, feedback=feedback)])
    with pytest.raises(InputError, match="1 times for"):
        model.recommend([request_of(views[0], 0, times=[3])])
    with pytest.raises(InputError, match="not in the order of its times"):
        model.recommend([request_of(views[0], 0, times=request_of(views[0], 0).times[::-1])])  # type: ignore[index]
    bare = next(iter(eval_batches(read_log(views[0].dataset, 100), views[0].split.test, 100)))[1]
    with pytest.raises(InputError, match="no feedback column"):
        model.rank(bare, 3)


def test_over_http(views: tuple[View, View]) -> None:
    model = recommender("onerec_v2", views)
    client = TestClient(create_app(model))
    request = request_of(views[0], 1)
    body = {name: getattr(request, name) for name in ("history", "k", "feedback", "times", "profile", "as_of")}
    response = client.post("/v1/recommend", json={**body, "history": list(request.history)})
    assert response.status_code == 200, response.text
    assert [item["item"] for item in response.json()["items"]] == list(model.recommend([request])[0].item_keys)
    response = client.post("/v1/recommend", json={**body, "feedback": {"click": [1.0]}})
    assert response.status_code == 422
    assert "'click'" in response.json()["detail"]


def test_a_saved_run_keeps_how_events_are_read(views: tuple[View, View], tmp_path: Path) -> None:
    model = recommender("onerec_v2", views)
    model.catalog.save(tmp_path / "catalog")
    model.save_model(tmp_path / "model", digest="x", parents={})
    loaded = Recommender.load(tmp_path, beam=model.beam)
    assert loaded.catalog.schema == model.catalog.schema
    request = request_of(views[0], 2)
    assert loaded.recommend([request])[0].item_ids == model.recommend([request])[0].item_ids
    grown = loaded.catalog.with_items(["new"], torch.zeros(1, loaded.catalog.quantizer.dim))
    assert all(len(values) == grown.num_items for values in grown.features.values())
    opened = Recommender.load(tmp_path, catalog=grown, beam=model.beam)
    answer = opened.recommend([request_of(views[0], 2, history=("new", *request.history[1:]))])[0]
    assert len(answer.item_ids) == 6  # an item that the model has no row for is passed over, with its feedback
