"""The demo's whole way in a world small enough for a test: both pages, all arms, a run that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidera import demo
from sidera.cli import main
from sidera.sim.config import world_config


def test_the_demo_writes_both_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"max_rows": 50, "valid_rows": 50, "latency_rows": 2, "bootstrap": 10, "free_rows": 5}
    quick = [f"eval.{key}={value}" for key, value in sizes.items()]
    recipes = demo.world_recipes([*quick, "fit.epochs=1", "catalog.quantizer.codebook_size=8", "catalog.vector_dim=8"])
    monkeypatch.setattr(demo, "world_recipes", lambda: recipes)
    monkeypatch.setattr(demo, "WORLD", {"num_items": 150, "num_creators": 20, "num_candidates": 20})
    for name, value in (("USERS", 80), ("DAYS", 3), ("AUDIENCE", 20), ("TEST_DAYS", 2)):
        monkeypatch.setattr(demo, name, value)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    assert "done in" in text
    page = (tmp_path / "demo" / "report.html").read_text()
    online = (tmp_path / "demo" / "online.html").read_text()
    assert list(recipes) == ["popularity", "item_knn", "sasrec", "generator", "onerec_v2"]
    for title in ("popularity", "item-kNN", "SASRec", "generator", "OneRec-V2"):
        assert f">{title}</th>" in page
        assert f">{title}</t" in online  # of the picture, or of the table
    assert " of 100 next items in its first ten" in text
    record = json.loads((tmp_path / "demo" / "online.json").read_text())
    assert record["reference"] == "sasrec"
    assert not any(record["lost"].values())
    (command,) = (line.split(None, 1)[1] for line in text.splitlines() if line.startswith("ask:"))
    assert main(command.split()[1:]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_demo_world_is_small_and_every_recipe_asks_the_same_rows() -> None:
    assert world_config("easy", demo.WORLD).num_items <= 3000
    for recipe in demo.world_recipes().values():
        assert recipe.data.positive == "long_view"
        assert (recipe.eval.max_rows, recipe.eval.seed) == (1000, 0)


def test_on_a_data_folder_the_recipes_follow_the_number_of_items() -> None:
    small, large = demo.data_recipes(500), demo.data_recipes(50_000)
    assert set(small) - set(large) == {"tiger"}
    assert small["sasrec"].fit.epochs > large["sasrec"].fit.epochs
    assert large["popularity"].eval.max_rows == 5000
