"""Stages are reused by what they depend on, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidera.data.tiny import tiny_log
from sidera.engine.recommender import Recommender
from sidera.train import stages
from sidera.train.recipe import Recipe
from sidera.train.stages import evaluate_stage, prepare, run, train

SECTIONS = {
    "data": {},
    "catalog": {"vectors": ["behaviour"], "quantizer": {"num_levels": 1, "codebook_size": 8}},
    "model": {"name": "popularity"},
    "fit": {},
    "eval": {"bootstrap": 10, "latency_rows": 0, "free_rows": 0},
}


def test_an_edited_catalogue_is_evaluated_again(tmp_path: Path) -> None:
    """Removing the most popular item changes the answers, so the figures of before must not be handed out."""
    tiny_log(num_users=60, num_items=40).save(tmp_path / "data")
    recipe, out = Recipe.parse(SECTIONS), tmp_path / "run"
    before = run(recipe, tmp_path / "data", out)
    assert before is not None
    said: list[str] = []
    prepared = prepare(recipe, tmp_path / "data", said.append)
    recommender = Recommender.load(out)
    evaluate_stage(recipe, prepared, recommender, out, say=said.append)
    assert "reused" in said[-1]
    top = str(recommender.catalog.item_keys[recommender.catalog.serving_order[0]])
    recommender.use_catalog(recommender.catalog.without([top]))
    recommender.search = "draft"
    said.clear()
    after = evaluate_stage(recipe, prepared, recommender, out, say=said.append)
    assert recommender.search == "draft"  # searched as its owner wants, also where the recipe was evaluated otherwise
    assert not any("evaluate: reused" in line for line in said)
    assert after.value("recall@10") != before.value("recall@10")


def test_bf16_that_a_cpu_only_emulates_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_log(num_users=60, num_items=40).save(tmp_path / "data")
    bare = Recipe.parse({**SECTIONS, "fit": {"precision": "bf16"}})
    for emulated in (True, False):
        monkeypatch.setattr(stages, "emulates_bf16", lambda device, answer=emulated: answer)
        said: list[str] = []
        train(bare, tmp_path / "data", tmp_path / f"run-{emulated}", say=said.append)
        assert any("fit.precision=auto" in line for line in said) == emulated
