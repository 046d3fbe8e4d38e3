"""Whatever the API's description allows, and much that it does not: never a 5xx that it does not name, never another
shape than it says.

More cases: ``SIDERA_FUZZ=1000 python -m pytest tests/serve/test_fuzz.py``, so many for each route.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig
from sidera.serve.app import create_app

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis comes with the extra `dev`")
checks = schemathesis.checks
CHECKS = [
    checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance,
    checks.response_headers_conformance,
]  # fmt: skip


@pytest.fixture(scope="module")
def api(trained_run: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("fuzz")
    with Recommender.load(trained_run, serve=ServeConfig(store=folder / "s", exposures=folder / "l")) as recommender:
        recommender.behaviour.keep("ann", ["item0003"], [5], {})  # type: ignore[union-attr]
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(recommender))


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/recommend/batch", "/v1/events", "/healthz", "/metrics"])
def test_answers_are_as_described(api, path: str) -> None:  # type: ignore[no-untyped-def]
    (operation,) = (found.ok() for found in api.get_all_operations() if found.ok().path == path)

    @settings(
        max_examples=int(os.environ.get("SIDERA_FUZZ", 10)), deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def holds(case) -> None:  # type: ignore[no-untyped-def]
        response = case.call()
        assert response.status_code < 500 or response.status_code == 503
        case.validate_response(response, checks=CHECKS)

    holds()
