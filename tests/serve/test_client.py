"""The typed client: what it gets is what Python gets, its errors are the server's, and it comes again when told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import sidera
from live_server import listening
from sidera.client import Client, Denied, Unavailable
from sidera.core import Filter, InputError, Recommendation, Request
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.serve.config import HttpConfig

HISTORY = ["item0003", "item0007"]


@pytest.fixture(scope="module")
def live(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Recommender]]:
    serve = ServeConfig(store=tmp_path_factory.mktemp("client") / "store")
    with (
        Recommender.load(trained_run, serve=serve) as recommender,
        listening(recommender, HttpConfig()) as (port, _),
        sidera.Client(f"http://127.0.0.1:{port}/") as client,
    ):
        yield client, recommender


def test_answers_are_pythons(live: tuple[Client, Recommender]) -> None:
    client, recommender = live
    found = client.recommend(HISTORY, k=4, exclude=["item0001"], filter_seen=True)
    (expected,) = recommender.recommend([Request(tuple(HISTORY), k=4, exclude=("item0001",), filter_seen=True)])
    assert (found.item_keys, found.titles, found.policy_version) == (
        expected.item_keys, expected.titles, expected.policy_version,
    )  # fmt: skip
    assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert (found.filtered_seen, found.beam, found.item_ids) == (True, expected.beam, ())


def test_events_and_batches(live: tuple[Client, Recommender]) -> None:
    client, _ = live
    assert client.send_events("ann", HISTORY, [5, 6]) == {"new": 2, "known": 0, "unknown": []}
    good, bad, cold = client.recommend_many(
        [Request(user="ann"), Request(("nothing",), refuse_unknown=True), Request(("nothing",))]
    )
    assert isinstance(good, Recommendation)
    assert not good.unknown_user
    assert str(bad) == "the catalogue holds no item 'nothing'; allowed: one of its 24 item ids"
    assert isinstance(cold, Recommendation)
    assert cold.unknown == ("nothing",)
    assert client.health()["users"] == 1


def test_filters_go_over_the_wire(live: tuple[Client, Recommender]) -> None:
    client, recommender = live
    for conditions in ({"item": ["item0001", "item0002"]}, {"item": {"not": ["item0001"]}}, {"popularity": {"min": 1}}):
        request = Request(tuple(HISTORY), k=30, filter=Filter.of(conditions))
        (expected,) = recommender.recommend([request])
        (found,) = client.recommend_many([request])
        assert isinstance(found, Recommendation)
        assert (found.item_keys, found.eligible) == (expected.item_keys, expected.eligible)
        assert client.recommend(HISTORY, k=30, filter=conditions).item_keys == expected.item_keys


def test_errors_are_the_servers(live: tuple[Client, Recommender]) -> None:
    with pytest.raises(InputError, match=r"k: Input should be less than or equal to 1000 \(got 5000\)"):
        live[0].recommend(HISTORY, k=5000)
    with pytest.raises(InputError, match="the address 'localhost:8000'; allowed: http://HOST:PORT"):
        Client("localhost:8000")
    with pytest.raises(Unavailable, match="did not answer GET /healthz in 2 tries"):
        Client("http://127.0.0.1:1", retries=1).health()


def test_it_comes_again_when_told_to() -> None:
    """A server that is busy twice, then answers; and one that knows no key."""
    replies = [
        (503, b'{"detail": "busy"}'),
        (429, b"no JSON"),
        (200, b'{"status": "ok"}'),
        (401, b'{"detail": "who?"}'),
    ]
    keys: list[str | None] = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = replies.pop(0)
            keys.append(self.headers["authorization"])
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Client(f"http://127.0.0.1:{server.server_address[1]}", key="secret")
        assert client.health() == {"status": "ok"}
        with pytest.raises(Denied, match=r"who\?"):
            client.health()
        client.close()
        server.shutdown()
    assert keys == ["Bearer secret"] * 4
