"""The recipes for any log run on any log: with feedback or without, with texts or without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sidera.cli import main
from sidera.core import InputError
from sidera.data.config import DataConfig, make_views, usual_positive
from sidera.data.dataset import Dataset
from sidera.data.tiny import tiny_exposures, tiny_log
from sidera.recipes import recipe_names
from sidera.train.recipe import Recipe
from sidera.train.stages import prepare, run

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["fit.max_steps=3", "fit.num_threads=1", "eval.bootstrap=10", "eval.latency_rows=2", "eval.free_rows=5"]
SMALL = {"any/tiger": ["fit.precision=f32", "model.num_layers=1", "model.width=32", "model.head_width=8"]}
SMALL["any/tiger"] += ["model.num_heads=2", "model.ff_width=32"]
SMALL["any/tiger_mtp"] = SMALL["any/tiger_mlp"] = SMALL["any/tiger"]
ANY = [name for name in recipe_names() if name.startswith("any/")]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example log with its texts, and a CSV of exposures: marks in 0 and 1, watch time, no titles."""
    folder = tmp_path_factory.mktemp("any")
    events, items = ROOT / "examples" / "events.csv", ROOT / "examples" / "items.jsonl"
    assert main(["import", str(events), "--items", str(items), "--out", str(folder / "examples"), "-q"]) == 0
    rng = np.random.default_rng(0)
    lines = ["user,item,time,is_click,watch_time"]
    for user in range(40):
        for step in range(12):
            item, click = int(rng.integers(25)), int(rng.random() < 0.5)
            lines.append(
                f"u{user},i{item},{1_700_000_000 + 3600 * (20 * user + step)},{click},{rng.exponential(9):.1f}"
            )
    (folder / "exposures.csv").write_text("\n".join(lines) + "\n")
    assert main(["import", str(folder / "exposures.csv"), "--out", str(folder / "exposures"), "-q"]) == 0
    return {name: folder / name for name in ("examples", "exposures")}


@pytest.mark.parametrize("log", ["examples", "exposures"])
@pytest.mark.parametrize("name", ANY)
def test_every_recipe_for_any_log_runs(
    name: str, log: str, logs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidera.catalog.build.has_text_encoder", lambda: False)  # seconds of imports, no other path
    recipe = Recipe.read(name, [*QUICK, *SMALL.get(name, [])])
    if recipe.catalog.vectors == ("tfidf",) and log == "exposures":  # TIGER reads content: one line says what to do
        with pytest.raises(InputError, match="no item has any text"):
            run(recipe, logs[log], tmp_path / "run", say=lambda _: None)
        return
    result = run(recipe, logs[log], tmp_path / "run", say=lambda _: None)
    assert result is not None
    assert result.protocol["rows"] > 0
    manifest = json.loads((tmp_path / "run" / "model" / "manifest.json").read_text())
    assert manifest["recipe"]["model"]["name"] == Recipe.read(name).model_name


def test_auto_takes_the_mark_that_says_most(logs: dict[str, Path]) -> None:
    said: list[str] = []
    prepared = prepare(Recipe.read("any/onerec_v2"), logs["exposures"], said.append)
    assert "  positive events: is_click" in said
    assert prepared.schema.positive == "is_click"
    assert prepared.positives.dataset.num_events < prepared.dataset.num_events
    assert "  positive events: all" in (prepare(Recipe.read("any/onerec_v2"), logs["examples"], said.append), said)[1]


def test_what_auto_finds() -> None:
    exposures, plain = tiny_exposures(), tiny_log(20, 12)
    assert usual_positive(plain) == ""
    assert usual_positive(exposures) == "long_view"
    everything, positives = make_views(exposures, DataConfig(positive="auto"))
    named = make_views(exposures, DataConfig(positive="long_view"))
    assert (everything.dataset.digest, positives.dataset.digest) == tuple(view.dataset.digest for view in named)
    never = plain.with_feedback("click", np.zeros(plain.num_events, bool))
    assert usual_positive(never) == ""  # a mark that nobody set says nothing
    assert usual_positive(_with(never, "purchase")) == "purchase"


def _with(dataset: Dataset, name: str) -> Dataset:
    return dataset.with_feedback(name, np.arange(dataset.num_events) % 2 == 0)
