"""The small trained run behind an application, for tests that need no more; others make their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sidera.engine.recommender import Recommender
from sidera.serve.app import create_app


@pytest.fixture(scope="module")
def recommender(trained_run: Path) -> Recommender:
    return Recommender.load(trained_run)


@pytest.fixture(scope="module")
def client(recommender: Recommender) -> TestClient:
    return TestClient(create_app(recommender))  # an error of the application is raised in the test, with its traceback
