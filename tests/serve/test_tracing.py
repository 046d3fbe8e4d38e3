"""Traces: what a request waited for, the steps of its batch, the caller's trace continued, and nobody named."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.engine.timeline import collecting, step
from sidera.serve.app import create_app
from sidera.serve.config import HttpConfig
from sidera.serve.state import Served
from sidera.serve.tracing import Tracer, open_tracer

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_requests_become_spans(trained_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    config = ServeConfig(store=tmp_path / "store", exposures=tmp_path / "log")
    with Recommender.load(trained_run, serve=config) as recommender:
        served = Served(recommender, HttpConfig(), tracer=Tracer(provider))
        client = TestClient(create_app(recommender, served=served))
        body = {"user": "ann", "items": ["item0003"], "times": [int(time.time())]}
        assert client.post("/v1/events", json=body).status_code == 200
        assert client.post("/v1/recommend", json={"user": "ann"}, headers={"traceparent": CALLER}).status_code == 200
        assert client.post("/v1/recommend", json={"user": 3}).status_code == 422
        served.close()
    spans = exporter.get_finished_spans()
    roots = [span for span in spans if span.name.startswith("POST ")]
    assert [root.name for root in roots] == ["POST /v1/events", "POST /v1/recommend", "POST /v1/recommend"]
    assert [root.attributes["http.response.status_code"] for root in roots] == [200, 200, 422]

    def children(parent: Any) -> dict[str, Any]:
        return {one.name: one for one in spans if one.parent and one.parent.span_id == parent.context.span_id}

    assert set(children(roots[0])) == {"store"}
    asked = children(roots[1])
    assert set(asked) == {"queue", "batch"}
    assert set(children(asked["batch"])) == {"read", "search", "exposure log"}
    assert f"{roots[1].context.trace_id:032x}" == CALLER.split("-")[1]
    assert f"{roots[1].parent.span_id:016x}" == CALLER.split("-")[2]
    assert asked["queue"].start_time <= asked["queue"].end_time <= asked["batch"].start_time < asked["batch"].end_time
    assert abs(roots[1].start_time / 1e9 - time.time()) < 60
    assert asked["batch"].attributes["batch.requests"] == 1
    assert children(roots[2]) == {}
    assert not any("ann" in str(dict(span.attributes)) or "item0003" in str(dict(span.attributes)) for span in spans)


def test_nothing_is_timed_where_nobody_asks(trained_run: Path) -> None:
    with step("search"):
        pass
    with collecting() as spans, step("search"):
        pass
    assert [span.name for span in spans] == ["search"]
    with step("later"):
        pass
    assert len(spans) == 1
    served = Served(Recommender.load(trained_run), HttpConfig())
    assert not served.asker.scheduler.times_steps
    served.close()


def test_without_the_packages_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(InputError, match=r"fix: pip install 'sidera\[otel\]'"):
        open_tracer()
