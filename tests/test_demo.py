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
    recipes = demo.world_recipes()
    for sections in recipes.values():
        sections["fit"] = {**sections["fit"], "epochs": 1}
        sections["eval"] = {"max_rows": 50, "valid_rows": 50, "latency_rows": 2, "bootstrap": 10, "free_rows": 5}
    recipes["onerec_v2"]["catalog"] = {**demo.CODES, "codebook_size": 8, "vector_dim": 8}
    monkeypatch.setattr(demo, "world_recipes", lambda: recipes)
    monkeypatch.setattr(demo, "WORLD", {"num_items": 150, "num_creators": 20, "num_candidates": 20})
    for name, value in (("USERS", 80), ("DAYS", 3), ("AUDIENCE", 20), ("TEST_DAYS", 2)):
        monkeypatch.setattr(demo, name, value)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    assert "done in" in text
    page = (tmp_path / "demo" / "report.html").read_text()
    online = (tmp_path / "demo" / "online.html").read_text()
    for name in recipes:
        assert name in page
        assert name in online
    record = json.loads((tmp_path / "demo" / "online.json").read_text())
    assert record["reference"] == "sasrec"
    assert not any(record["lost"].values())
    (command,) = (line.split(None, 1)[1] for line in text.splitlines() if line.startswith("ask:"))
    assert main(command.split()[1:]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_demo_world_is_small_and_every_recipe_asks_the_same_rows() -> None:
    assert world_config("easy", demo.WORLD).num_items <= 3000
    positives = {sections["data"]["positive"] for sections in demo.world_recipes().values()}
    assert positives == {"long_view"}
