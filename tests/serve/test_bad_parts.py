"""One bad part does not refuse a whole request, and nothing that a client can send is answered by 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidera.core import InputError, Request
from sidera.engine.exposures import ExposureWriter
from sidera.engine.histories import open_behaviour
from sidera.engine.recommender import Recommender
from sidera.engine.serving import Parts
from sidera.store.exposures import ExposureLog

HISTORY = ["item0003", "item0007"]
HALF = "\\ud83c"  # as JSON writes half an emoji


@pytest.fixture(scope="module")
def recommender(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recommender]:
    opened = Recommender.load(trained_run)
    catalog, folder = opened.catalog, tmp_path_factory.mktemp("bad-parts")
    log = ExposureLog.open(folder / "exposures", codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
    with open_behaviour(folder / "store", catalog) as behaviour, ExposureWriter(log) as writer:
        opened.parts = Parts(behaviour=behaviour, exposures=writer)
        yield opened


def send(client: TestClient, path: str, text: str | bytes) -> tuple[int, dict[str, Any]]:
    response = client.post(path, content=text, headers={"content-type": "application/json"})
    found = response.json()
    if response.status_code != 200:
        assert 400 <= response.status_code < 500
        assert isinstance(found["detail"], str)
        assert "\n" not in found["detail"]
    return response.status_code, found


def items_of(answer: dict[str, Any]) -> list[str]:
    return [item["item"] for item in answer["items"]]


@pytest.mark.parametrize("gone", [["gone-item"], ["gone-item", "item0000"], ["", "gone"] * 500, [HALF, "\\u0000"]])
def test_excluding_what_is_gone_refuses_nothing(client: TestClient, gone: list[str]) -> None:
    kept = json.dumps(gone).replace("\\\\u", "\\u")
    status, found = send(client, "/v1/recommend", f'{{"history": ["item0003"], "k": 24, "exclude": {kept}}}')
    assert status == 200
    _, plain = send(client, "/v1/recommend", '{"history": ["item0003"], "k": 24}')
    assert items_of(found) == [item for item in items_of(plain) if item not in gone]
    assert found["unknown"] == []


def test_python_excludes_the_same(recommender: Recommender) -> None:
    (found,) = recommender.recommend(
        [Request(tuple(HISTORY), k=24, exclude=("gone", "item0000"), filter_seen=False)], unknown="refuse"
    )
    assert len(found.item_keys) == 23
    assert "item0000" not in found.item_keys


@pytest.mark.parametrize("half", [HALF, "x" + HALF, "\\udc00\\ud83c", HALF + HALF])
def test_half_a_character_in_a_history_is_an_unknown_item(client: TestClient, half: str) -> None:
    status, found = send(client, "/v1/recommend", f'{{"history": ["item0003", "{half}", "item0007"], "k": 5}}')
    assert status == 200
    assert found["unknown"] == [half]  # its escape, as text
    _, plain = send(client, "/v1/recommend", json.dumps({"history": HISTORY, "k": 5}))
    assert items_of(found) == items_of(plain)
    status, _ = send(client, "/v1/recommend", f'{{"history": ["{half}"], "unknown": "refuse"}}')
    assert status == 422


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommend", f'{{"user": "{HALF}"}}'),
        ("/v1/recommend", f'{{"history": [], "unknown": "{HALF}"}}'),
        ("/v1/recommend", f'{{"history": [], "x{HALF}": 1}}'),
        ("/v1/events", f'{{"user": "a{HALF}", "items": ["item0003"], "times": [5]}}'),
        ("/v1/events", f'{{"user": "a", "items": ["{HALF}"], "times": [5]}}'),
        ("/v1/events", f'{{"user": "a", "items": ["item0003"], "times": [5], "request": "{HALF}", "slots": [0]}}'),
        ("/v1/events", f'{{"user": "a", "items": ["item0003"], "times": [5], "feedback": {{"{HALF}": [1]}}}}'),
        ("/v1/events", '{"user": "a", "items": ["item0003"], "times": [5], "feedback": {"click": [NaN]}}'),
        ("/v1/recommend", '{"history": ["item0003"], "feedback": {"click": [NaN]}}'),
        ("/v1/recommend", '{"history": ["item0003"], "feedback": {"click": [-Infinity]}}'),
        ("/v1/recommend", '{"history": ["item0003"], "feedback": {"click": [1e999]}}'),
        ("/v1/recommend", '{"history": ["item0003"], "feedback": {"click": [1e300]}}'),
        ("/v1/recommend", '{"history": ["item0003"], "feedback": {"click": [' + "9" * 400 + "]}}"),
        ("/v1/recommend", '{"history": ["item0003"], "profile": {"region": ' + "9" * 400 + "}}"),
        ("/v1/recommend", '{"history": ["item0003"], "times": [NaN]}'),
        ("/v1/recommend", '{"history": ["item0003"], "k": ' + "9" * 5000 + "}"),
        ("/v1/recommend", '{"history": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        ("/v1/recommend", b'{"history": ["\xff"]}'),
        ("/v1/events", "[" * 100_000),
        ("/v1/events", b"\x00"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(client: TestClient, path: str, body: str | bytes) -> None:
    before = client.get("/healthz").json()["users"]
    assert send(client, path, body)[0] in (400, 422)
    assert client.get("/healthz").json()["users"] == before


@pytest.mark.parametrize("key", ["\n", "a\r\nb", "\u2028", "\x1b[31m", "\ud83c"])
def test_what_a_client_sent_is_repeated_in_one_line(client: TestClient, key: str) -> None:
    for part in ({"profile": {key: "x"}}, {"feedback": {key: [1.0]}}, {"history": [key], "unknown": "refuse"}):
        status, _ = send(client, "/v1/recommend", json.dumps({"history": HISTORY, **part}))
        assert status in (200, 422)  # ``send`` asks for one line


def test_errors_are_one_line() -> None:
    error = InputError("no key 'a\nb'", allowed="\ud83c", fix="ü and \t")
    assert str(error) == "no key 'a\\nb'; allowed: \\ud83c; fix: ü and \\t"
    assert error.problem == "no key 'a\\nb'"


def test_a_length_of_many_digits_is_too_large(client: TestClient) -> None:
    response = client.post("/v1/recommend", content=b"{}", headers={"content-length": "9" * 5000})
    assert response.status_code == 413


def test_events_of_unknown_items_are_kept_and_named(client: TestClient, recommender: Recommender) -> None:
    items = ["item0003", "gone", "item0007", "gone", "other"]
    body = {"user": "ann", "items": items, "times": [10, 11, 12, 13, 14]}
    assert send(client, "/v1/events", json.dumps({**body, "unknown": "refuse"}))[0] == 422
    assert recommender.behaviour is not None
    assert recommender.behaviour.read("ann") is None  # nothing was kept
    status, found = send(client, "/v1/events", json.dumps(body))
    assert (status, found) == (200, {"new": 5, "known": 0, "unknown": ["gone", "other"]})
    assert send(client, "/v1/events", json.dumps(body))[1] == {"new": 0, "known": 5, "unknown": ["gone", "other"]}
    kept = recommender.behaviour.read("ann")
    assert kept is not None
    assert (kept.times.tolist(), kept.unknown) == ([10, 12], ("gone", "other"))
    assert recommender.catalog.item_keys[kept.item_ids].tolist() == HISTORY
    _, served = send(client, "/v1/recommend", '{"user": "ann", "k": 5}')
    _, asked = send(client, "/v1/recommend", json.dumps({"history": HISTORY, "k": 5}))
    assert items_of(served) == items_of(asked)


def test_python_is_strict_unless_told(recommender: Recommender) -> None:
    assert recommender.behaviour is not None
    with pytest.raises(InputError, match="holds no item 'gone'"):
        recommender.behaviour.append("eve", ["item0003", "gone"], [1, 2], {})
    assert recommender.behaviour.read("eve") is None
    for user in ("", "\ud83c", "x" * 2**16):
        with pytest.raises(InputError, match="cannot be used; allowed: text of 1 to 65,535 bytes"):
            recommender.behaviour.append(user, ["item0003"], [1], {})


KEYS = st.one_of(st.text(max_size=4), st.sampled_from(["item0003", "item0007", "\ud83c", "\x00", "item0003\udfff"]))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), KEYS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
FIELDS = st.sampled_from(["history", "user", "k", "exclude", "feedback", "times", "profile", "as_of", "unknown",
                          "items", "request", "slots", "filter_seen"])  # fmt: skip
LIKELY = {
    "history": st.lists(KEYS, max_size=4),
    "exclude": st.lists(KEYS, max_size=4),
    "items": st.lists(KEYS, max_size=3),
    "times": st.lists(st.integers(-2, 2**41), max_size=4),
    "user": KEYS,
    "feedback": st.dictionaries(KEYS, st.lists(st.floats(), max_size=3), max_size=2),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/v1/recommend", "/v1/events"]), names=st.sets(FIELDS, max_size=5), data=st.data())
def test_no_body_is_answered_by_500(client: TestClient, path: str, names: set[str], data: st.DataObject) -> None:
    """The test client raises what a server would answer by 500."""
    body = {name: data.draw(st.one_of(LIKELY.get(name, ANYTHING), ANYTHING)) for name in names}
    status, found = send(client, path, json.dumps(body))
    if status == 200 and "items" in found:
        assert len({item["item"] for item in found["items"]}) == len(found["items"])
