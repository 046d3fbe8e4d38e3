"""Scores of given items, items like others and what is popular, over HTTP: what Python answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sidera.engine.questions import Questions
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.serve.app import create_app

HISTORY = ["item0003", "item0007"]
ITEMS = ["item0005", "item0001", "item0009"]


def items(answer: Any) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(one["item"], one["score"]) for one in answer.json()["items"]]


def test_answers_are_those_of_python(client: TestClient, recommender: Recommender) -> None:
    ask = Questions(recommender)
    body = {"history": HISTORY, "items": ITEMS}
    pairs = [
        (client.post("/v1/score", json=body), ask.score(HISTORY, ITEMS)),
        (client.post("/v1/score", json={**body, "sort": True}), ask.rerank(HISTORY, ITEMS)),
        (client.get("/v1/similar", params={"item": "item0003", "k": 4}), ask.similar("item0003", 4)),
        (client.post("/v1/related", json={"items": HISTORY, "k": 3}), ask.related(HISTORY, 3)),
        (client.get("/v1/popular", params={"k": 5}), ask.popular(5)),
    ]
    for answer, expected in pairs:
        assert [item for item, _ in items(answer)] == [one.item for one in expected]
        assert [score for _, score in items(answer)] == pytest.approx([one.score for one in expected])
        assert answer.json()["items_version"] == recommender.catalog.items_version


def test_an_item_that_is_never_given_has_no_score(trained_run: Path) -> None:
    recommender = Recommender.load(trained_run)
    client = TestClient(create_app(recommender))
    recommender.use_catalog(recommender.catalog.without(["item0005"]))
    scores = dict(items(client.post("/v1/score", json={"history": HISTORY, "items": ITEMS})))
    assert scores["item0005"] is None
    assert scores["item0001"] is not None


@pytest.mark.parametrize(
    ("method", "path", "asked"),
    [
        ("post", "/v1/score", {"history": HISTORY, "items": []}),
        ("post", "/v1/score", {"history": HISTORY, "items": ["nothing"]}),
        ("post", "/v1/score", {"history": ["nothing"], "items": ITEMS}),
        ("post", "/v1/score", {"user": "ann", "items": ITEMS}),
        ("post", "/v1/score", {"history": HISTORY, "items": ITEMS * 400}),
        ("post", "/v1/related", {"items": ["nothing"]}),
        ("post", "/v1/related", {"items": HISTORY, "k": 0}),
        ("get", "/v1/similar", {"item": "nothing"}),
        ("get", "/v1/similar", {}),
        ("get", "/v1/popular", {"k": 10_000}),
        ("get", "/v1/popular", {"field": "brand"}),
        ("get", "/v1/popular", {"field": "no such", "value": "x"}),
    ],
)
def test_what_is_wrong_is_422(client: TestClient, method: str, path: str, asked: dict[str, Any]) -> None:
    answer = client.post(path, json=asked) if method == "post" else client.get(path, params=asked)
    assert answer.status_code == 422
    assert "\n" not in answer.json()["detail"]


def test_what_is_popular_in_a_window_of_the_store(trained_run: Path, tmp_path: Path) -> None:
    now = int(time.time())
    with Recommender.load(trained_run, serve=ServeConfig(store=tmp_path / "store")) as recommender:
        client = TestClient(create_app(recommender))

        def send(user: str, *events: tuple[str, int]) -> None:
            body = {"user": user, "items": [item for item, _ in events], "times": [now - age for _, age in events]}
            assert client.post("/v1/events", json=body).status_code == 200

        assert items(client.get("/v1/popular", params={"window": "day"})) == []
        send("ann", ("item0001", 10), ("item0002", 20), ("item0001", 30), ("item0003", 100_000))
        send("bob", ("item0002", 5000), ("item0001", 90_000), ("item0004", 86_400 * 20))
        assert items(client.get("/v1/popular", params={"window": "hour"})) == [("item0001", 2), ("item0002", 1)]
        assert items(client.get("/v1/popular", params={"window": "day"})) == [("item0001", 2), ("item0002", 2)]
        answer = client.get("/v1/popular", params={"seconds": 200_000, "until": now - 50_000})
        assert items(answer) == [("item0001", 1), ("item0003", 1)]
        assert (answer.json()["since"], answer.json()["until"]) == (now - 250_000, now - 50_000)
        asked = {"window": "month", "field": "item", "value": "item0004"}
        assert items(client.get("/v1/popular", params=asked)) == [("item0004", 1)]
        send("cid", ("item0004", 1), ("item0004", 2), ("item0004", 3))  # in the next answer
        assert items(client.get("/v1/popular", params={"window": "hour", "k": 1})) == [("item0004", 3)]
        assert recommender.behaviour is not None
        recommender.behaviour.erase("cid")
        assert items(client.get("/v1/popular", params={"window": "hour", "k": 1})) == [("item0001", 2)]
        trained = client.get("/v1/popular", params={"k": 2}).json()
        assert (trained["since"], trained["until"]) == (None, None)
        for bad in ({"window": "day", "seconds": 5}, {"window": "year"}, {"seconds": 0}, {"event": "click"}):
            assert client.get("/v1/popular", params=bad).status_code == 422


def test_a_window_needs_a_store(client: TestClient) -> None:
    answer = client.get("/v1/popular", params={"window": "day"})
    assert answer.status_code == 422
    assert "open a behaviour store" in answer.json()["detail"]
