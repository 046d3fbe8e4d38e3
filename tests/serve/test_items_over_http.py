"""Items that come over HTTP, for every kind of model: where they are put is said, and nothing is placed by nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from sidera.catalog.catalog import Catalog
from sidera.engine.living import Delta, ItemChange, applied
from sidera.engine.recommender import Recommender
from sidera.models import build_model, parse_model
from sidera.serve.app import create_app

WIDTH = {"max_history": 8, "width": 16}
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {  # whether the catalogue has codes, and the model
    "generator": (True, {"name": "sidera", **WIDTH, "num_layers": 1, "num_heads": 1}),
    "scorer over codes": (True, {"name": "sasrec", **WIDTH}),
    "retriever": (False, {"name": "sasrec", **WIDTH}),
    "popularity": (False, {"name": "popularity"}),
    "counts": (False, {"name": "item_knn"}),
}


def bare(titles: list[str]) -> Catalog:
    number = len(titles)
    return Catalog(
        item_keys=np.array([f"item{item:04d}" for item in range(number)]), titles=titles,
        codes=np.empty((number, 0), np.int32), popularity=np.arange(number)[::-1].copy(),
        removed=np.zeros(number, bool), level_sizes=(), quantizer=None, collision="none", codebook_id="none",
        items_version=1,
    )  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, trained_run: Path) -> tuple[bool, TestClient, Recommender]:
    has_codes, section = KINDS[request.param]
    catalog = Catalog.load(trained_run / "catalog")
    titles = [f"{('blue', 'green')[item % 2]} thing number{item}" for item in range(catalog.num_items)]
    if has_codes:
        changed = [ItemChange(str(key), title) for key, title in zip(catalog.item_keys, titles, strict=True)]
        catalog = applied(catalog, Delta(tuple(changed)))[0]
    else:
        catalog = bare(titles)
    model = build_model(*parse_model(section), catalog, 1)
    recommender = Recommender(model, catalog, model_section=section, beam=8)
    return has_codes, TestClient(create_app(recommender)), recommender


def test_where_an_item_was_put_is_said(kind: tuple[bool, TestClient, Recommender]) -> None:
    has_codes, client, recommender = kind
    number, version = recommender.catalog.num_items, recommender.catalog.items_version
    silent = {"items": [{"item": "named", "title": "thing number3"}, {"item": "silent"}]}
    answer = client.post("/v1/items", json=silent)
    if has_codes:
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("nothing is said of item 'silent' by which it gets its code (1 such")
        assert "give it a title" in answer.json()["detail"]
        assert (recommender.catalog.num_items, recommender.catalog.items_version) == (number, version)  # all or nothing
        vector = [0.5] * recommender.catalog.quantizer.dim  # type: ignore[union-attr]
        items = [silent["items"][0], {"item": "strange", "title": "xyzzy"}, {"item": "given", "vector": vector}]
        answer = client.post("/v1/items", json={"items": items})
        assert answer.json()["placed_by"] == {"named": "words", "strange": "nothing", "given": "vector"}
    else:
        assert answer.json()["placed_by"] == {}  # no code, no place
    assert answer.status_code == 200, answer.text
    assert recommender.catalog.num_items == number + answer.json()["added"]
    assert recommender.catalog.items_version == version + 1
    found = client.post("/v1/recommend", json={"history": [str(recommender.catalog.item_keys[1])], "k": 30})
    assert found.status_code == 200
    asked = client.post("/v1/recommend", json={"history": ["named"], "k": 3})
    assert asked.status_code == 200
    assert asked.json()["unknown"] == []
