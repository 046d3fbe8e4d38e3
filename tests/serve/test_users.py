"""Users in a store: events come in over HTTP, answers for a user's name go out, nothing is lost or counted twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from sidera.catalog.build import build_catalog
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.core import InputError, Request
from sidera.data.config import DataConfig, View, make_views
from sidera.data.schema import build_dataset
from sidera.data.tiny import tiny_exposures
from sidera.engine.categories import CategoryOf
from sidera.engine.exposures import ExposureWriter
from sidera.engine.histories import MAX_AHEAD, Kept, open_behaviour
from sidera.engine.recommender import Recommender
from sidera.engine.serving import Parts
from sidera.models import build_model, parse_model
from sidera.serve.app import create_app
from sidera.store.exposures import ExposureLog, as_dataset_events
from sidera.store.lifelong import LifelongConfig
from sidera.store.log_representatives import read_whole

SECTIONS: dict[str, dict[str, Any]] = {
    "onerec": {"name": "onerec", "max_history": 16, "short_term": 4, "positive_length": 4, "num_lifelong_queries": 2,
               "lifelong_layers": 1, "width": 16, "encoder_layers": 1, "decoder_layers": 1, "ff_width": 32,
               "lifelong": "representatives", "max_representatives": 10, "lifelong_chunk": 3},
    "onerec_v2": {"name": "onerec_v2", "max_history": 16, "short_term": 8, "width": 16, "num_layers": 2, "num_heads": 2,
                  "num_kv_groups": 2},
    "sasrec": {"name": "sasrec", "max_history": 16, "width": 16},
}  # fmt: skip
CONFIG = LifelongConfig(max_representatives=10, chunk=3, leaf_size=30_000)
RAW = ("click", "like", "watch_time", "duration")  # long_view is derived


@pytest.fixture(scope="module")
def views() -> tuple[View, View]:
    return make_views(tiny_exposures(), DataConfig(positive="long_view"))


@pytest.fixture(scope="module")
def catalog(views: tuple[View, View]) -> Catalog:
    kept = views[1]
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 2, "codebook_size": 5}, vector_dim=8)
    return build_catalog(kept.dataset, kept.split, config, kept.schema)[0]


def recommender(name: str, catalog: Catalog, version: str = "unsaved") -> Recommender:
    section = SECTIONS[name]
    return Recommender(build_model(*parse_model(section), catalog, 1), catalog, model_section=section, version=version)


@pytest.fixture(params=SECTIONS)
def model(request: pytest.FixtureRequest, catalog: Catalog, tmp_path: Path) -> Iterator[Recommender]:
    opened = recommender(request.param, catalog)
    with open_behaviour(tmp_path / "store", catalog) as behaviour:
        opened.parts = Parts(behaviour=behaviour)
        yield opened


@pytest.fixture
def client(catalog: Catalog, tmp_path: Path) -> Iterator[TestClient]:
    opened = recommender("onerec", catalog)
    with open_behaviour(tmp_path / "store", catalog) as behaviour:
        opened.parts = Parts(behaviour=behaviour)
        yield TestClient(create_app(opened))


def body_of(view: View, user: int, start: int = 0, end: int | None = None) -> dict[str, Any]:
    """Events of one user as a client sends them."""
    dataset = view.dataset
    span = slice(*(int(dataset.offsets[user]) + part for part in (start, 24 if end is None else end)))
    return {
        "user": f"user {user}",
        "items": [str(dataset.item_keys[item]) for item in dataset.item_ids[span]],
        "times": dataset.times[span].tolist(),
        "feedback": {name: dataset.feedback[name][span].astype(float).tolist() for name in RAW},
    }


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, path: str, **body: Any) -> str:
    response = client.post(path, json=body)
    assert response.status_code == 422, response.text
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert "\n" not in detail
    return detail


def test_a_user_is_answered_as_the_history_would_be(model: Recommender, views: tuple[View, View]) -> None:
    client = TestClient(create_app(model))
    for user in range(3):
        body = body_of(views[0], user)
        for start in range(0, 24, 5):  # as it happens, some at a time
            post(client, "/v1/events", **body_of(views[0], user, start, min(24, start + 5)))
        told = {"history": body["items"], "times": body["times"], "feedback": body["feedback"]}
        for more in ({}, {"filter_seen": True}, {"as_of": body["times"][-1] + 7}, {"profile": {"region": "south"}}):
            found = post(client, "/v1/recommend", user=f"user {user}", k=5, **more)
            expected = post(client, "/v1/recommend", **told, k=5, **more)
            assert [item["item"] for item in found["items"]] == [item["item"] for item in expected["items"]]
            scores = [[item["score"] for item in answer["items"]] for answer in (found, expected)]
            np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-6)
            assert not found["cold_start"]
            assert not found["unknown_user"]
        early = body["times"][9]
        before = {name: values[:9] for name, values in body["feedback"].items()}
        expected = post(client, "/v1/recommend", history=body["items"][:9], times=body["times"][:9], feedback=before,
                        as_of=early)  # fmt: skip
        found = post(client, "/v1/recommend", user=f"user {user}", as_of=early)
        assert [item["item"] for item in found["items"]] == [item["item"] for item in expected["items"]]


def test_what_was_acknowledged_survives(catalog: Catalog, views: tuple[View, View], tmp_path: Path) -> None:
    answers = []
    for start in (0, 10, None):
        opened = recommender("onerec", catalog)
        with open_behaviour(tmp_path / "store", catalog) as behaviour:
            opened.parts = Parts(behaviour=behaviour)
            client = TestClient(create_app(opened))
            if start is not None:
                body = body_of(views[0], 0, start, start + 10)
                assert post(client, "/v1/events", **body) == {"new": 10, "known": 0, "unknown": []}
                assert post(client, "/v1/events", **body) == {"new": 0, "known": 10, "unknown": []}
            assert client.get("/healthz").json()["users"] == 1
            answers.append(post(client, "/v1/recommend", user="user 0")["items"])
            if start == 10:
                behaviour.snapshot()
    assert answers[0] != answers[1] == answers[2]


def test_sent_again_events_are_kept_once(client: TestClient, views: tuple[View, View]) -> None:
    body = body_of(views[0], 0, 0, 6)
    assert post(client, "/v1/events", **body) == {"new": 6, "known": 0, "unknown": []}
    overlapping = body_of(views[0], 0, 3, 12)
    assert post(client, "/v1/events", **overlapping) == {"new": 6, "known": 3, "unknown": []}
    last = body_of(views[0], 0, 12, 13)
    twice = {"user": "user 0", **{name: last[name] * 2 for name in ("items", "times")}}
    twice["feedback"] = {name: values * 2 for name, values in last["feedback"].items()}
    assert post(client, "/v1/events", **twice) == {"new": 1, "known": 1, "unknown": []}
    assert post(client, "/v1/events", user="user 0", items=[], times=[]) == {"new": 0, "known": 0, "unknown": []}


def test_an_unknown_user_gets_what_is_popular_and_the_answer_says_so(
    client: TestClient, catalog: Catalog, views: tuple[View, View]
) -> None:
    found = post(client, "/v1/recommend", user="nobody", k=3)
    assert found["cold_start"]
    assert found["unknown_user"]
    assert [item["item"] for item in found["items"]] == [str(catalog.item_keys[i]) for i in catalog.serving_order[:3]]
    body = body_of(views[0], 0)
    post(client, "/v1/events", **body)
    assert post(client, "/v1/recommend", user="user 0", as_of=body["times"][0])["unknown_user"]  # as of then
    assert not post(client, "/v1/recommend", user="user 0")["unknown_user"]
    assert not post(client, "/v1/recommend", history=[])["unknown_user"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"items": ["nothing"] * 2, "unknown": "refuse"}, "the catalogue holds no item 'nothing'"),
        ({"items": ["nothing", ""]}, "item key '' cannot be used; allowed: text of 1 to 65,535 bytes"),
        ({"times": [5]}, "1 times for 2 events"),
        ({"times": [5, -1]}, "times.1: Input should be greater than or equal to 0 (got -1)"),
        ({"times": [5, 10**30]}, "times.1: Input should be"),
        ({"times": [5, 1.5]}, "times.1"),
        ({"feedback": {"click": [1, 0]}}, "the history has feedback (click) but no"),
        ({"feedback": {"click": [1]}}, "feedback 'click' has 1 values for 2 events"),
        ({"feedback": {"clik": [1, 0]}}, "feedback 'clik' is no column of this catalogue; allowed:"),
        ({"click": [1, 0]}, "click is no field of the request; allowed: user, items, times, feedback, unknown"),
        ({"user": ""}, "user: String should have at least 1 character"),
        ({"user": "x" * 70_000}, "text of 1 to 65,535 bytes"),
        ({"user": 7}, "user: Input should be a valid string (got 7)"),
    ],
)
def test_bad_events_are_named_and_none_is_kept(
    client: TestClient, catalog: Catalog, changes: dict[str, Any], named: str
) -> None:
    body = {"user": "u", "items": catalog.item_keys[:2].tolist(), "times": [5, 6], **changes}
    assert named in refused(client, "/v1/events", **body)
    assert client.get("/healthz").json()["users"] == 0


def test_values_that_are_no_feedback_are_named(client: TestClient, views: tuple[View, View]) -> None:
    for name, value, named in (
        ("like", 0.5, "feedback 'like' is 0.5 in event 1"),
        ("watch_time", -3, "no length of time"),
    ):
        body = body_of(views[0], 0, 0, 2)
        body["feedback"][name][1] = value
        assert named in refused(client, "/v1/events", **body)
    assert client.get("/healthz").json()["users"] == 0
    lone = client.post("/v1/events", content=rb'{"user": "\ud800", "items": [], "times": []}')
    assert lone.status_code == 422


def test_times_are_whole_seconds_for_python_too(catalog: Catalog, tmp_path: Path) -> None:
    with open_behaviour(tmp_path / "store", catalog) as behaviour:
        for times in ([1.5], [10**30], ["now"]):
            with pytest.raises(InputError, match=r"times are .*; allowed: whole numbers: unix seconds"):
                behaviour.append("u", [str(catalog.item_keys[0])], times, {})  # type: ignore[list-item]
        assert behaviour.append("u", [], [], {}) == 0


def test_the_future_is_refused(client: TestClient, catalog: Catalog) -> None:
    item, now = str(catalog.item_keys[0]), int(time.time())
    detail = refused(client, "/v1/events", user="u", items=[item, item], times=[now, now + MAX_AHEAD + 100])
    assert "event 1 is of second" in detail
    assert "in the future; allowed: unix seconds up to" in detail
    assert post(client, "/v1/events", user="u", items=[item], times=[now])["new"] == 1


def test_a_request_names_a_user_or_brings_a_history(client: TestClient, catalog: Catalog, tmp_path: Path) -> None:
    item = str(catalog.item_keys[0])
    assert "neither history nor user" in refused(client, "/v1/recommend")
    for more in ({"history": [item]}, {"times": []}, {"feedback": {"click": []}}):
        assert "names user 'u' and brings a history too" in refused(client, "/v1/recommend", user="u", **more)
    closed = TestClient(create_app(recommender("sasrec", catalog)))
    assert "no behaviour store is open; fix: serve with --store" in refused(closed, "/v1/recommend", user="u")
    assert "no behaviour store is open" in refused(closed, "/v1/events", user="u", items=[item], times=[5])
    assert closed.get("/healthz").json()["users"] is None


def test_a_full_disk_is_said_and_nothing_is_kept(
    client: TestClient, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    body = {"user": "u", "items": [str(catalog.item_keys[0])], "times": [5]}
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        response = client.post("/v1/events", json=body)
    assert response.status_code == 503
    assert "No space left on device; nothing was kept" in response.json()["detail"]
    assert client.get("/healthz").json()["users"] == 0
    assert post(client, "/v1/events", **body)["new"] == 1


def test_many_senders_at_once_lose_nothing(client: TestClient, catalog: Catalog) -> None:
    keys = [str(key) for key in catalog.item_keys]

    def send(number: int) -> int:
        user, second = f"u{number % 3}", 1000 + number // 2  # every event is sent twice, somewhere
        return post(client, "/v1/events", user=user, items=[keys[second % len(keys)]], times=[second])["new"]

    with ThreadPoolExecutor(6) as pool:
        new = list(pool.map(send, [number for pair in range(20) for number in (6 * pair, 6 * pair)]))
    assert sum(new) == 20


def test_new_items_can_be_done_something_with(catalog: Catalog, tmp_path: Path) -> None:
    """An event of an item that no catalogue holds is kept; a catalogue that grew reads it; a model without a row for it
    passes it over."""
    opened = recommender("onerec", catalog)
    grown = catalog.with_items(["new"], torch.zeros(1, catalog.quantizer.dim))
    keys = [str(key) for key in catalog.item_keys[:12]]
    with open_behaviour(tmp_path / "store", catalog) as behaviour:
        behaviour.append("u", keys, list(range(12)), {})
        with pytest.raises(InputError, match="holds no item 'new'"):
            behaviour.append("u", ["new"], [50], {})
        assert behaviour.keep("u", ["new"], [50], {}) == Kept(1, 0, ("new",))
        history = behaviour.read("u", lifelong=CONFIG)
        assert history is not None
        assert history.tokens is not None
        assert (len(history.item_ids), history.unknown) == (12, ("new",))
        assert history.tokens["counts"].sum() == 12
        behaviour = behaviour.over(grown)
        served = Recommender(
            opened.model,
            grown,
            model_section=opened.model_section,
            num_known=opened.num_known,
            parts=Parts(behaviour=behaviour),
        )
        (answer,) = served.recommend([Request(user="u", filter_seen=True, k=50)])
        assert "new" not in answer.item_keys
        assert answer.unread == ()  # read by its codes
        history = behaviour.read("u", lifelong=CONFIG)
        assert history is not None
        assert history.tokens is not None
        assert (history.item_ids[-1], history.unknown) == (catalog.num_items, ())
        assert history.tokens["counts"].sum() == 13
    with open_behaviour(tmp_path / "store", grown) as behaviour:
        assert behaviour.read("u").item_ids[-1] == catalog.num_items  # type: ignore[union-attr]


def test_a_retrained_catalogue_reads_the_same_histories(
    catalog: Catalog, views: tuple[View, View], tmp_path: Path
) -> None:
    """Other numbers, other codes and vectors, an item less: the events are the same, and representatives are made of
    its vectors. Back with the first catalogue all is as before."""
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 1, "codebook_size": 3}, vector_dim=4)
    retrained = build_catalog(views[1].dataset, views[1].split, config, views[1].schema)[0]
    order = np.random.default_rng(0).permutation(retrained.num_items)[1:]
    retrained = replace(
        retrained, item_keys=retrained.item_keys[order], codes=retrained.codes[order],
        removed=retrained.removed[order], popularity=retrained.popularity[order],
        titles=[retrained.titles[item] for item in order],
        features={name: values[order] for name, values in retrained.features.items()},
    )  # fmt: skip
    assert retrained.item_vectors.shape[1] != catalog.item_vectors.shape[1]
    answers = []
    for number, reading in enumerate((catalog, retrained, catalog)):
        with open_behaviour(tmp_path / "store", reading) as behaviour:
            if number == 0:
                for user in range(3):
                    body = body_of(views[0], user)
                    behaviour.keep(body["user"], body["items"], body["times"], body["feedback"])
            assert behaviour.store.users() == ["user 0", "user 1", "user 2"]
            for user in range(3):
                body, found = body_of(views[0], user), behaviour.read(f"user {user}", lifelong=CONFIG)
                assert found is not None
                assert found.tokens is not None
                known = [place for place, key in enumerate(body["items"]) if key in reading.ids_by_key]
                assert [str(reading.item_keys[item]) for item in found.item_ids] == [body["items"][n] for n in known]
                assert found.times.tolist() == [body["times"][n] for n in known]
                assert found.feedback["like"].tolist() == [body["feedback"]["like"][n] for n in known]
                assert set(found.unknown) == set(body["items"]) - set(reading.item_keys.tolist())
                expected = read_whole(
                    reading.schema, reading.item_vectors, CONFIG, found.item_ids, found.times, found.feedback
                )
                assert found.tokens.tobytes() == expected.tobytes()
                assert found.tokens["counts"].max() > 1
                answers.append(found.tokens.tobytes())
            behaviour.snapshot()
    assert answers[:3] == answers[6:] != answers[3:6]
    assert set(retrained.item_keys.tolist()) < set(catalog.item_keys.tolist())


def test_an_erased_user_is_in_no_file_of_the_store(catalog: Catalog, views: tuple[View, View], tmp_path: Path) -> None:
    with open_behaviour(tmp_path / "store", catalog) as behaviour:
        for user in range(2):
            body = body_of(views[0], user)
            behaviour.keep(body["user"], body["items"], body["times"], body["feedback"])
            assert behaviour.read(body["user"], lifelong=CONFIG) is not None
        behaviour.snapshot()
    with open_behaviour(tmp_path / "store", catalog) as behaviour:  # which has not read the representatives yet
        assert (behaviour.erase("user 0"), behaviour.erase("user 0")) == (True, False)
        assert behaviour.read("user 0") is None
        assert behaviour.read("user 1") is not None
    content = b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert (b"user 0" in content, b"user 1" in content) == (False, True)


def test_a_store_is_of_one_schema(catalog: Catalog, tmp_path: Path) -> None:
    open_behaviour(tmp_path / "store", catalog).close()
    bare = make_views(tiny_exposures())[0]
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 2, "codebook_size": 5}, vector_dim=8)
    other = build_catalog(bare.dataset, bare.split, config)[0]
    with pytest.raises(InputError, match="was made with"):
        open_behaviour(tmp_path / "store", other)
    own = open_behaviour(tmp_path / "own", other)
    with own, pytest.raises(InputError, match="the store was made with"):
        own.over(catalog)


def test_answers_are_logged_with_what_came_of_them(catalog: Catalog, views: tuple[View, View], tmp_path: Path) -> None:
    opened = recommender("onerec_v2", catalog, "first")
    log = ExposureLog.open(tmp_path / "log", codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
    with open_behaviour(tmp_path / "store", catalog) as behaviour, ExposureWriter(log) as writer:
        opened.parts = Parts(behaviour=behaviour, exposures=writer)
        client = TestClient(create_app(opened))
        body = body_of(views[0], 0)
        post(client, "/v1/events", **body)
        assert post(client, "/v1/recommend", history=body["items"])["request"] is None  # whose answer? not logged
        answer = post(client, "/v1/recommend", user="user 0", k=3)
        shown = [item["item"] for item in answer["items"]]
        seen = {
            "user": "user 0",
            "items": [shown[0], shown[2]],
            "times": [body["times"][-1] + 9] * 2,
            "feedback": {"click": [1, 0], "like": [0, 0], "watch_time": [9, 0], "duration": [20, 20]},
        }
        for wrong, problem in (
            ({"slots": [0, 2]}, "slots and no request"),
            ({"request": answer["request"], "slots": [0]}, "1 slots for 2 events; allowed: one each"),
            ({"request": answer["request"], "slots": [0, -1]}, "slots.1"),
            ({"request": answer["request"], "slots": [0, 2], "feedback": {}}, "have no feedback"),
        ):
            assert problem in refused(client, "/v1/events", **{**seen, **wrong})
        assert behaviour.store.history("user 0").item_ids.size == 24  # type: ignore[index]
        post(client, "/v1/events", **seen, request=answer["request"], slots=[0, 2])
        opened.load_weights(opened.model.state_dict(), "second")
        stranger = post(client, "/v1/recommend", user="nobody", k=2)
        assert stranger["cold_start"]
        post(client, "/v1/recommend", user="user 0", k=2)
        assert client.get("/healthz").json()["exposures"] == {"problem": ""}
    table = log.read()
    assert table["policy"].to_pylist() == ["first"] * 3 + ["second"] * 4
    assert table["item"].to_pylist()[:3] == shown
    assert set(table["request"].to_pylist()[:3]) == {answer["request"]}
    assert table["click"].to_pylist() == [1, None, 0, None, None, None, None]
    sums = np.sum([table[f"log_prob_{level}"].to_pylist()[:3] for level in range(2)], axis=0)
    assert (sums >= np.array([item["score"] for item in answer["items"]]) - 1e-4).all()  # renormalised inside the trie
    assert table["log_prob_0"].to_pylist()[3:5] == [None, None]  # by popularity
    dataset = build_dataset("own", as_dataset_events(table))
    assert dataset.feedback["watch_time"].tolist() == [9, 0]


def test_events_of_an_answer_need_an_exposure_log(client: TestClient, views: tuple[View, View]) -> None:
    body = body_of(views[0], 0)
    assert "no exposure log is open; fix: serve with --exposures" in refused(
        client, "/v1/events", **body, request="abc", slots=list(range(24))
    )


def test_popular_counts_the_events_that_are_asked_for(client: TestClient, catalog: Catalog) -> None:
    keys, now = [str(key) for key in catalog.item_keys[:3]], int(time.time())
    feedback = {"click": [1, 1, 0, 1], "like": [0, 0, 1, 0], "watch_time": [1.0] * 4, "duration": [9.0] * 4}
    body = {"user": "ann", "items": [keys[0], keys[0], keys[1], keys[2]], "times": [now - 4, now - 3, now - 2, now - 1]}
    assert client.post("/v1/events", json={**body, "feedback": feedback}).status_code == 200

    def popular(*events: str) -> dict[str, float]:
        answer = client.get("/v1/popular", params={"window": "hour", "event": list(events)})
        return {one["item"]: one["score"] for one in answer.json()["items"]}

    assert popular("click") == {keys[0]: 2, keys[2]: 1}
    assert popular("like") == {keys[1]: 1}
    assert popular("click", "like") == {keys[0]: 2, keys[1]: 1, keys[2]: 1}
    assert popular() == {}  # no long view: nothing is positive
    answer = client.get("/v1/popular", params={"event": "buy"})
    assert answer.status_code == 422
    assert "no event is named 'buy'; allowed: click, like" in answer.json()["detail"]


def test_the_newest_events_of_a_user_by_category(catalog: Catalog, tmp_path: Path) -> None:
    """As a filter of the whole history finds them; users of before the index among them; refused without one."""
    field = next(one.name for one in catalog.schema.owned("item") if one.kind == "category")
    opened, rng, now = recommender("sasrec", catalog), np.random.default_rng(0), int(time.time())
    values = [str(value) for value in CategoryOf(catalog, field)(np.arange(catalog.num_items))]

    def send(client: TestClient) -> list[int]:
        ids = rng.integers(catalog.num_items, size=60)
        body = {"user": "ann", "items": [str(key) for key in catalog.item_keys[ids]]}
        post(client, "/v1/events", **body, times=(now - 60 + rng.integers(50, size=60)).tolist())
        return ids.tolist()

    with open_behaviour(tmp_path / "store", catalog) as behaviour:
        opened.parts = Parts(behaviour=behaviour)
        client = TestClient(create_app(opened))
        send(client)
        answer = client.get("/v1/history", params={"user": "ann", "category": values[0]})
        assert answer.status_code == 422
        assert "serve with --category-index FIELD" in answer.json()["detail"]
        behaviour.index_by(field)
        with pytest.raises(InputError, match="to be indexed by 'nothing'"):
            behaviour.index_by("nothing")
    with open_behaviour(tmp_path / "store", catalog) as behaviour:  # it knows that it is indexed
        opened.parts = Parts(behaviour=behaviour)
        client = TestClient(create_app(opened))
        send(client)
        whole = client.get("/v1/history", params={"user": "ann", "n": 1000}).json()["events"]
        assert len(whole) > 80
        value_of = dict(zip(map(str, catalog.item_keys), values, strict=True))
        for value in set(values) - {"None"}:  # an unknown one is no category
            found = client.get("/v1/history", params={"user": "ann", "category": value, "n": 5}).json()
            assert found["events"] == [one for one in whole if value_of[one["item"]] == value][-5:]
        assert client.get("/v1/history", params={"user": "nobody", "category": values[0]}).json()["unknown_user"]
        behaviour.erase("ann")
        assert client.get("/v1/history", params={"user": "ann", "category": values[0]}).json()["unknown_user"]
