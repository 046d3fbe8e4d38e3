"""HTTP: what is answered, what is refused and how, and that many at once get what each would get alone."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from sidera import artifacts
from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.serve.app import create_app
from sidera.serve.config import HttpConfig
from sidera.serve.schemas import MAX_K
from sidera.serve.server import check_port, serve

HISTORY = ["item0003", "item0007"]
SMALL = HttpConfig(max_body_mb=100_000 / 2**20)


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same items; a score may differ in its last digits, by how many were answered together."""
    assert [item["item"] for item in found] == [item["item"] for item in expected]
    scores = [[item["score"] for item in items] for items in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_answers_are_the_recommenders(client: TestClient, recommender: Recommender) -> None:
    found = ask(client, history=HISTORY, k=3)
    (expected,) = recommender.recommend([HISTORY], 3)
    assert [item["item"] for item in found["items"]] == list(expected.item_keys)
    assert [item["title"] for item in found["items"]] == list(expected.titles)
    assert [item["score"] for item in found["items"]] == pytest.approx(list(expected.scores))
    assert found["items_version"] == recommender.catalog.items_version
    assert found["unknown"] == []
    assert not found["cold_start"]
    assert found["milliseconds"] > 0


def test_defaults(client: TestClient) -> None:
    assert len(ask(client, history=HISTORY)["items"]) == 10


def test_a_filter_says_which_items_may_be_answered(client: TestClient) -> None:
    keys = ["item0002", "item0005"]
    found = ask(client, history=HISTORY, filter={"item": keys})
    assert sorted(item["item"] for item in found["items"]) == keys
    assert found["eligible"] == 2
    assert ask(client, history=HISTORY)["eligible"] is None
    nothing = ask(client, history=HISTORY, filter={"item": [keys[0]], "popularity": {"min": 1e9}})
    assert (nothing["items"], nothing["eligible"]) == ([], 0)
    barred = ask(client, history=HISTORY, k=100, filter_seen=False, filter={"item": {"not": keys}})
    assert not {item["item"] for item in barred["items"]} & set(keys)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"colour": "red"}, "the filter names column 'colour'; allowed: item, popularity"),
        ({"popularity": {"above": 3}}, "filter"),
        ({"popularity": {}}, "the filter's condition on 'popularity' is {}"),
        ({"popularity": {"min": 1, "not": 2}}, "filter"),
        ({"item": 1.5}, "filter"),
        ({"item": {"min": 2}}, "the filter's column 'item' is given a range"),
        ("red", "filter"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_in_one_line(client: TestClient, condition: Any, words: str) -> None:
    response = client.post("/v1/recommend", json={"history": HISTORY, "filter": condition})
    assert response.status_code == 422
    assert words in response.json()["detail"]
    assert "\n" not in response.json()["detail"]


def test_filters(client: TestClient) -> None:
    found = ask(client, history=HISTORY, k=24, filter_seen=True, exclude=["item0000"])
    assert not {"item0000", *HISTORY} & {item["item"] for item in found["items"]}
    assert len(found["items"]) == 21


def test_k_above_the_catalogue_answers_all_of_it(client: TestClient) -> None:
    assert len(ask(client, history=HISTORY, k=MAX_K, filter_seen=False)["items"]) == 24


def test_unknown_items_are_reported_or_refused(client: TestClient) -> None:
    found = ask(client, history=["nothing", *HISTORY])
    assert found["unknown"] == ["nothing"]
    assert ask(client, history=["nothing"])["cold_start"]
    response = client.post("/v1/recommend", json={"history": ["nothing"], "unknown": "refuse"})
    assert response.status_code == 422
    assert response.json()["detail"] == "the catalogue holds no item 'nothing'; allowed: one of its 24 item ids"


def test_health_says_what_is_served(client: TestClient, recommender: Recommender) -> None:
    found = client.get("/healthz").json()
    assert found["status"] == "ok"
    assert found["model"] == "sidera"
    assert found["items"] == 24
    assert found["codebook_id"] == recommender.catalog.codebook_id


def test_the_api_describes_itself(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href)=|https?://|@import|url\(", page.text.replace('href="openapi.json"', ""))
    schema = client.get("/openapi.json").json()
    body = schema["components"]["schemas"]["RecommendRequest"]["properties"]
    about_the_history = {"history", "user", "feedback", "times", "profile", "as_of"}
    assert set(body) == about_the_history | {"k", "filter_seen", "exclude", "filter", "unknown"}
    assert all("description" in field for field in body.values())
    body = schema["components"]["schemas"]["EventsRequest"]["properties"]
    assert set(body) == {"user", "items", "times", "feedback", "unknown", "request", "slots"}
    assert all("description" in field for field in body.values())
    admin = {f"/v1/admin/{name}" for name in ("versions", "swap", "trial", "export")}
    asked = {f"/v1/{name}" for name in ("recommend", "recommend/batch", "score", "similar", "related", "popular")}
    kept = {"/v1/events", "/v1/history", "/v1/items", "/v1/explain", "/v1/search"}
    assert asked | kept | admin | {"/healthz", "/readyz", "/metrics"} == set(schema["paths"])
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            statuses = {"401", "403", "413", "422", "429", "503"} if path.startswith("/v1/") else set()
            assert statuses <= set(operation["responses"])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "the request has neither history nor user; allowed: one of them"),
        ({"history": HISTORY, "k": 0}, "k: Input should be greater than or equal to 1 (got 0)"),
        ({"history": HISTORY, "k": -1}, "(got -1)"),
        ({"history": HISTORY, "k": MAX_K + 1}, "k: Input should be less than or equal to 1000 (got 1001)"),
        ({"history": HISTORY, "k": "ten"}, "(got 'ten')"),
        ({"history": HISTORY, "k": 2.5}, "(got 2.5)"),
        ({"history": "item0003"}, "history: Input should be a valid array (got 'item0003')"),
        ({"history": [1, 2]}, "history.0: Input should be a valid string (got 1)"),
        (
            {"history": HISTORY, "profile": {"age": {}}},
            "profile.age: Input should be a valid boolean, integer, number, string or array (got {})",
        ),
        ({"history": HISTORY, "profile": {"age": 10**400}}, "profile.age: Input should be a finite number"),
        ({"history": HISTORY, "profile": {"age": [1, 10**40]}}, "profile.age.1: Input should be less than or equal"),
        ({"history": [None]}, "history.0: Input should be a valid string (got None)"),
        ({"history": None}, "history"),
        ({"history": HISTORY, "filter_seen": "perhaps"}, "filter_seen"),
        ({"history": HISTORY, "histroy": []}, "histroy is no field of the request (did you mean 'history'?); allowed:"),
        ({"history": HISTORY, "unknown": "guess"}, "unknown: String should match"),
        ([], "body: "),
        ("text", "body: "),
    ],
)
def test_bad_bodies_are_refused_in_one_line(client: TestClient, body: Any, named: str) -> None:
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 422
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert named in detail
    assert "\n" not in detail
    assert len(detail) < 300


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"history": ["a"}', b"history=a"])
def test_what_is_not_json_is_refused(client: TestClient, content: bytes) -> None:
    response = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert isinstance(response.json()["detail"], str)
    assert "\n" not in response.json()["detail"]


def test_where_a_body_stops_being_json_is_named(client: TestClient) -> None:
    response = client.post("/v1/recommend", content=b'{"history": ["a"}', headers={"content-type": "application/json"})
    assert response.json()["detail"] == "the body is not JSON: Expecting ',' delimiter at character 16"


def test_other_paths_and_methods(client: TestClient) -> None:
    assert client.get("/v1/recommend").status_code == 405
    assert client.get("/v2/recommend").status_code == 404


def test_large_bodies_are_refused(recommender: Recommender) -> None:
    client = TestClient(create_app(recommender, SMALL))
    body = {"history": ["item0003"] * 20_000}
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 413
    assert response.json()["detail"] == "the body is larger than 100,000 bytes; fix: send the newest events only"
    assert ask(client, history=HISTORY)["items"]


def test_large_bodies_that_do_not_say_so_are_refused(recommender: Recommender) -> None:
    """Sent in pieces, without a length: no more of it is held than is allowed."""
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b'"item0003",' * 1000

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(recommender, SMALL))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:
            return await session.post("/v1/recommend", content=pieces())

    response = asyncio.run(go())
    assert response.status_code == 413
    assert sent < 30


def test_a_long_history_fits(client: TestClient) -> None:
    found = ask(client, history=["item0001"] * 200_000 + HISTORY, k=1)
    assert found["items"][0]["item"] == ask(client, history=HISTORY, k=1)["items"][0]["item"]


def test_many_at_once_get_what_each_gets_alone(client: TestClient) -> None:
    bodies = [
        {"history": [f"item{item:04d}" for item in range(first, first + 1 + first % 5)], "k": 1 + first % 7}
        for first in range(18)
    ]
    alone = [ask(client, **body)["items"] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda body: ask(client, **body)["items"], bodies * 3))
    for found, expected in zip(together, alone * 3, strict=True):
        assert_same(found, expected)


def test_a_taken_port_is_refused(recommender: Recommender) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use; fix: choose a free port"):
            serve(recommender, ("127.0.0.1", port))
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("no.such.host.invalid", 8000)])
def test_impossible_addresses_are_refused(host: str, port: int) -> None:
    with pytest.raises(InputError):
        check_port(host, port)


def test_answers_say_which_weights_and_which_catalogue_gave_them(trained_run: Path) -> None:
    served = Recommender.load(trained_run)
    client = TestClient(create_app(served))
    manifest = artifacts.read_manifest(trained_run / "model", "model").digest
    first = ask(client, history=HISTORY)
    catalog = served.catalog
    assert (first["policy_version"], first["codebook_id"]) == (manifest, catalog.codebook_id)
    assert first["items_version"] == catalog.items_version
    (python,) = served.recommend([HISTORY])
    assert (python.policy_version, python.codebook_id) == (manifest, catalog.codebook_id)
    old = {name: tensor.clone() for name, tensor in served.model.state_dict().items()}
    served.load_weights({name: 0.5 * tensor for name, tensor in old.items()}, "step-10")
    second = ask(client, history=HISTORY)
    assert (second["policy_version"], second["items_version"]) == ("step-10", first["items_version"])
    assert second["items"] != first["items"]
    assert ask(client, history=[])["policy_version"] == "step-10"  # popular items, and still: who served them
    assert client.get("/healthz").json()["policy_version"] == "step-10"
    served.load_weights(old, "back")
    assert ask(client, history=HISTORY)["items"] == first["items"]
    served.use_catalog(catalog.without([first["items"][0]["item"]]))
    third = ask(client, history=HISTORY)
    assert (third["policy_version"], third["items_version"]) == ("back", first["items_version"] + 1)
    assert third["codebook_id"] == first["codebook_id"]
    assert first["items"][0]["item"] not in {item["item"] for item in third["items"]}
    assert client.get("/healthz").json()["items_version"] == third["items_version"]


def test_weights_swapped_under_traffic_sign_what_they_answered(trained_run: Path) -> None:
    served = Recommender.load(trained_run)
    client = TestClient(create_app(served))
    weights = {"0": {name: tensor.clone() for name, tensor in served.model.state_dict().items()}}
    weights["1"] = {name: 0.5 * tensor for name, tensor in weights["0"].items()}
    expected = {}
    for version, state in weights.items():
        served.load_weights(state, version)
        expected[version] = ask(client, history=HISTORY)["items"]
    assert expected["0"] != expected["1"]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, client, history=HISTORY) for _ in range(40)]
        for turn in range(30):
            served.load_weights(weights[str(turn % 2)], str(turn % 2))
        found = [answer.result() for answer in answers]
    for answer in found:
        assert_same(answer["items"], expected[answer["policy_version"]])


def test_an_application_can_be_started_twice(recommender: Recommender) -> None:
    app = create_app(recommender)
    for _ in range(2):
        with TestClient(app) as client:
            assert ask(client, history=HISTORY)["items"]
            assert client.get("/readyz").status_code == 200
    assert TestClient(app).get("/readyz").status_code == 503  # it has ended
    response = TestClient(app).post("/v1/recommend", json={"history": HISTORY})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
