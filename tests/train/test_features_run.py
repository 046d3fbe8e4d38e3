"""Declared features of every owner are learned by a ranker and a generator that `sidera run` trains, and served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient
from planted_features import FEATURES, NUM_ITEMS, ONEREC, PSCORE, planted, recipe

import sidera
from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.core import ArtifactError, CatalogMismatch, InputError, Request
from sidera.data.dataset import Dataset
from sidera.data.items import ItemTable
from sidera.engine.ranking import Ranking
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.eval.ranker_evaluation import RankerEvaluation
from sidera.serve.app import create_app
from sidera.train import stages
from sidera.train.recipe import Recipe

PROFILE = {"region": "north", "hobbies": ["common"], "age": 40, "face": [0.5, 40], "side": 0, "hour": 40}
HISTORY = tuple(f"i{number}" for number in (1, 2, 5, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "data"
    planted().save(folder)
    return folder


@pytest.fixture(scope="module")
def ranked(data: Path) -> tuple[Path, RankerEvaluation]:
    out = data.parent / "ranker"
    found = stages.run(Recipe.parse(recipe(PSCORE, 60)), data, out)
    assert isinstance(found, RankerEvaluation)
    return out, found


@pytest.fixture(scope="module")
def generated(data: Path) -> Path:
    stages.train(Recipe.parse(recipe(ONEREC, 90)), data, data.parent / "generator")
    return data.parent / "generator"


@pytest.fixture(scope="module")
def served(generated: Path, ranked: tuple[Path, RankerEvaluation]) -> Iterator[Recommender]:
    """The generator, and the ranker behind it."""
    shutil.copytree(ranked[0], generated / "reward", dirs_exist_ok=True)
    with sidera.load(generated, serve=ServeConfig(rerank=16, rerank_from="beam")) as recommender:
        yield recommender


@pytest.fixture(scope="module")
def client(served: Recommender) -> TestClient:
    return TestClient(create_app(served))


def test_a_ranker_learns_what_numbers_say(ranked: tuple[Path, RankerEvaluation]) -> None:
    """A few steps are enough for these."""
    for name in ("price", "look", "hour"):
        assert ranked[1].metrics[f"is_{name}"]["auc"].value > 0.8, name


@pytest.mark.slow
def test_a_ranker_learns_every_planted_feature(data: Path) -> None:
    """Of every owner and kind: each label is decided by one of them."""
    found = stages.run(Recipe.parse(recipe(PSCORE, 350)), data, data.parent / "long")
    assert isinstance(found, RankerEvaluation)
    figures = found.metrics
    assert {
        name: figures[f"is_{name}"]["auc"].value for name in FEATURES if figures[f"is_{name}"]["auc"].value < 0.9
    } == {}


def test_a_generator_answers_by_the_user_and_the_request(generated: Path) -> None:
    recommender = sidera.load(generated)
    for region, side, colour in (
        ("north", 0, "red"), ("north", 7, "blue"), ("south", 0, "blue"), ("south", 7, "red"),
    ):  # fmt: skip
        request = Request(history=HISTORY, k=6, profile={**PROFILE, "region": region, "side": side})
        (answer,) = recommender.recommend([request])
        assert {str(title).split()[0] for title in answer.titles} == {colour}, (region, side)
        assert answer.unseen == ()


def batch_of(reading: Any, dataset: Dataset) -> Batch:
    """Four users after their first request."""
    users = np.arange(4)
    return reading.over(dataset).rows(users, dataset.offsets[users] + 4)


def other(values: torch.Tensor) -> torch.Tensor:
    """Another value of a column in every row."""
    return -values - 1 if values.is_floating_point() else torch.where(values > 0, 1 + values % 2, values)


def with_other(batch: Batch, name: str) -> Batch:
    groups = {
        group: replace(part, features={**part.features, name: other(part.features[name])})
        for group in ("items", "requests", "events")
        if name in (part := getattr(batch, group)).features
    }
    assert groups, name
    return replace(batch, **groups)


@pytest.mark.parametrize("name", FEATURES)
def test_another_value_changes_what_a_generator_writes(generated: Path, data: Path, name: str) -> None:
    snapshot = sidera.load(generated).snapshot
    batch = batch_of(snapshot.reading, Dataset.load(data))
    sids = batch.items.codes[:1].expand(4, 1, -1)
    with torch.inference_mode():
        as_it_is, changed = (
            snapshot.generator.code_logits(snapshot.generator.context(each), sids)[0]
            for each in (batch, with_other(batch, name))
        )
    assert (as_it_is - changed).abs().max() > 1e-3


@pytest.mark.parametrize("name", FEATURES)
def test_another_value_changes_what_a_ranker_says(ranked: tuple[Path, RankerEvaluation], data: Path, name: str) -> None:
    ranking, dataset = Ranking.load(ranked[0]), Dataset.load(data)
    batch, candidates = batch_of(ranking.read_log(dataset).reading, dataset), torch.arange(8).expand(4, -1)
    with torch.inference_mode():
        as_it_is = ranking.model.score(ranking.model.context(batch), candidates)
        if FEATURES[name]["owner"] == "item":  # a ranker looks candidates up in its own table
            table = ranking.catalog.items
            columns = {**table.features, name: other(torch.from_numpy(np.array(table.features[name]))).numpy()}
            ranking.model.items.grow(ItemTable(table.codes, columns))
        else:
            batch = with_other(batch, name)
        changed = ranking.model.score(ranking.model.context(batch), candidates)
    assert (as_it_is - changed).abs().max() > 1e-3


def ask(client: TestClient, status: int = 200, **body: Any) -> Any:
    response = client.post("/v1/recommend", json={"history": list(HISTORY), "k": 6, **body})
    assert response.status_code == status, response.text
    return response.json()


def test_http_and_python_read_the_same(client: TestClient, served: Recommender) -> None:
    feedback = {name: [0.0] * 4 for name in served.catalog.schema.columns} | {
        "mood": [1, 0, None, 1],
        "effort": [60] * 4,
    }
    found = ask(client, profile=PROFILE, feedback=feedback)
    (answer,) = served.recommend([Request(history=HISTORY, k=6, profile=PROFILE, feedback=feedback)])
    assert [item["item"] for item in found["items"]] == list(answer.item_keys)
    assert [item["score"] for item in found["items"]] == pytest.approx(list(answer.scores), abs=1e-6)
    for change in ({"profile": {**PROFILE, "hour": 70}}, {"feedback": {**feedback, "effort": [60, 60, 60, 20]}}):
        again = ask(client, **{"profile": PROFILE, "feedback": feedback, **change})
        assert [item["score"] for item in again["items"]] != [item["score"] for item in found["items"]], change


def test_what_training_never_saw_is_unknown_and_said(client: TestClient) -> None:
    found = ask(client, profile={**PROFILE, "region": "atlantis", "hobbies": ["common", "chess"]})
    assert found["unseen"] == ["region=atlantis", "hobbies=chess"]
    nobody = ask(client, profile={**PROFILE, "region": None})
    assert nobody["unseen"] == []
    assert [item["item"] for item in found["items"]] == [item["item"] for item in nobody["items"]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"profile": {}}, "the profile lacks feature 'region' (category of the user)"),
        ({"profile": {**PROFILE, "income": 3}}, "the profile names 'income', which the model was not"),
        ({"profile": {**PROFILE, "age": "old"}}, "feature 'age' (number of the user) = 'old'; allowed: a finite"),
        ({"profile": {**PROFILE, "face": [1.0]}}, "feature 'face' (vector of the user) = [1.0]; allowed: 2"),
        ({"profile": {**PROFILE, "region": 0.5}}, "feature 'region' (category of the user) = 0.5; allowed: a"),
        ({"profile": PROFILE, "feedback": {"mood": [1] * 4}}, "but no feature 'effort' (number"),
        ({"profile": PROFILE, "feedback": {"mood": [1], "effort": [1]}}, "has 1 values for 4 events"),
        ({"profile": PROFILE, "feedback": {"click": ["x"] * 4}}, "feedback 'click' holds no number somewhere"),
    ],
)  # fmt: skip
def test_a_request_that_says_it_wrong_is_refused(
    client: TestClient, served: Recommender, change: dict[str, Any], match: str
) -> None:
    assert match in ask(client, 422, **change)["detail"]
    with pytest.raises(InputError) as error:
        served.recommend([Request(history=HISTORY, **change)])
    assert match in str(error.value)
    assert "\n" not in str(error.value)


def test_the_store_keeps_no_features_of_events(generated: Path, data: Path, tmp_path: Path) -> None:
    config = ServeConfig(store=tmp_path / "store", fill=data)
    with (
        sidera.load(generated, serve=config) as recommender,
        pytest.raises(InputError, match="the behaviour store keeps no feature 'mood'"),
    ):
        recommender.recommend([Request(user="u0", profile=PROFILE)])


def with_schema(catalog: Catalog) -> Catalog:
    """The same catalogue with another declaration of one feature."""
    features = tuple(
        replace(each, vocabulary=("blue", "green", "red")) if each.name == "colour" else each
        for each in catalog.schema.features
    )
    return replace(catalog, schema=replace(catalog.schema, features=features))


def test_a_model_is_bound_to_its_features(generated: Path, ranked: tuple[Path, RankerEvaluation]) -> None:
    recommender = sidera.load(generated)
    changed = with_schema(recommender.catalog)
    match = (
        f"trained on features {recommender.catalog.schema.digest}, this catalogue has features {changed.schema.digest}"
    )
    with pytest.raises(CatalogMismatch, match=match):
        recommender.snapshot.with_catalog(changed)
    with pytest.raises(CatalogMismatch, match=match):
        Ranking.load(ranked[0], changed)


@pytest.mark.parametrize(
    ("name", "column", "match"),
    [
        ("colour", np.full(NUM_ITEMS, 3), "feature 'colour' holds a value that is none of 3"),
        ("colour", np.full(NUM_ITEMS, -1), "feature 'colour' holds a value that is none of 3"),
        ("colour", np.zeros(NUM_ITEMS, np.float32), "feature 'colour' is torch.float32"),
        ("look", np.zeros((NUM_ITEMS, 3), np.float32), r"feature 'look' is torch.float32 of shape \(64, 3\)"),
        ("price", np.full(NUM_ITEMS, np.inf, np.float32), "feature 'price' holds an endless number"),
        ("other", np.zeros(NUM_ITEMS, np.float32), "the schema has other features of items"),
    ],
)
def test_a_catalogue_holds_what_its_schema_says(
    generated: Path, tmp_path: Path, name: str, column: np.ndarray, match: str
) -> None:
    catalog = Catalog.load(generated / "catalog")
    replace(catalog, features={**catalog.features, name: column}).save(tmp_path / "catalog")
    with pytest.raises(ArtifactError, match=match):
        Catalog.load(tmp_path / "catalog")


def test_items_that_come_later(served: Recommender) -> None:
    """One with features, one without any, and one whose table lacks a column."""
    catalog = served.catalog
    vectors = torch.zeros(2, catalog.quantizer.dim)  # type: ignore[union-attr]
    table = pa.table({"colour": ["red", "green"], "tags": [["common"], None], "price": [70.0, None],
                      "look": pa.array([[0.5, 70.0], None], pa.list_(pa.float64()))})  # fmt: skip
    grown = catalog.with_items(["new", "bare"], vectors, None, table)
    assert grown.features["colour"][NUM_ITEMS:].tolist() == [2, 0]
    assert grown.features["price"][NUM_ITEMS] > 0.5
    assert np.isnan(grown.features["price"][NUM_ITEMS + 1])
    nothing = catalog.with_items(["bare"], vectors[:1])
    assert np.isnan(nothing.features["look"][NUM_ITEMS]).all()
    with pytest.raises(InputError, match="the items have no column 'price', which feature 'price'"):
        catalog.with_items(["new", "bare"], vectors, None, table.drop_columns("price"))
    later = served.snapshot.with_catalog(grown)
    with served.snapshot.answering():
        assert later.num_readable == NUM_ITEMS + 2
    before = served.serving
    served.serving = served.serving.with_catalog(grown)
    try:
        (answer,) = served.recommend([Request(history=("new", "bare"), k=6, profile=PROFILE)])
        assert not answer.cold_start
        assert len(answer.item_keys) == 6
    finally:
        served.serving = before


def test_a_recipe_of_a_run_reads_its_features_again(generated: Path) -> None:
    assert Recipe.of_run(generated).data.features == Recipe.parse(recipe(ONEREC, 1)).data.features
