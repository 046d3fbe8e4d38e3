"""What deploy/ speaks of is there: flags of the server, paths of its probes, names of its metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sidera.cli import build_parser
from sidera.engine.recommender import Recommender
from sidera.serve.app import create_app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def client(trained_run: Path) -> TestClient:
    """Of a server that has answered once: a path has figures from its first request on."""
    asked = TestClient(create_app(Recommender.load(trained_run)))
    reply = asked.post("/v1/recommend", json={"history": ["item0003"]})
    assert reply.status_code == 200, reply.text
    return asked


def test_metrics_have_the_names_that_are_watched(client: TestClient) -> None:
    known = set(re.findall(r"^# TYPE (\w+) ", client.get("/metrics").text, flags=re.MULTILINE))
    for path in (DEPLOY / "alarms.yml", DEPLOY / "grafana" / "sidera.json"):
        watched = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:sidera|process)_\w+", path.read_text())}
        assert watched
        assert watched <= known, path.name


def test_metrics_are_what_prometheus_reads(client: TestClient) -> None:
    """Lines of ``name{labels} value``; a histogram's buckets rise to its count."""
    text = client.get("/metrics").text
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+', line), line
    counts = [int(n) for n in re.findall(r'_bucket\{path="/v1/recommend",le="[^"]+"\} (\d+)', text)]
    assert counts == sorted(counts)
    assert f'sidera_http_request_seconds_count{{path="/v1/recommend"}} {counts[-1]}' in text


def test_flags_and_probes_exist(client: TestClient) -> None:
    argument = re.compile(r'"(--[a-z-]+)"')
    flags = {flag for path in FILES for flag in argument.findall(path.read_text()) if path.suffix != ".json"}
    assert {"--host", "--store", "--keys", "--grace-seconds"} <= flags
    parser = build_parser()
    text = next(a for a in parser._actions if a.dest == "verb").choices["serve"].format_help()  # type: ignore[union-attr, call-overload]
    assert all(flag in text for flag in flags)
    manifest = (DEPLOY / "kubernetes" / "sidera.yaml").read_text()
    for path in set(re.findall(r"path: (/\w+), port", manifest)):
        assert client.get(path).status_code == 200


def test_the_board_is_json() -> None:
    board = json.loads((DEPLOY / "grafana" / "sidera.json").read_text())
    assert len(board["panels"]) >= 8
