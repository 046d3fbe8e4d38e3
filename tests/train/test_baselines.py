"""Popularity and item-kNN stand beside every trained model, on its rows, and are as good as runs of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.eval.compare import compare
from sidera.eval.config import EvalConfig
from sidera.eval.evaluation import Evaluation, load_evaluation
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate
from sidera.train.baselines import check_baselines
from sidera.train.recipe import Recipe
from sidera.train.stages import run

SMALL = {"num_items": 120, "num_topics": 8, "num_creators": 20, "num_candidates": 20, "arrival_days": 3.0}
CATALOG = {"vectors": ["behaviour"], "quantizer": {"num_levels": 1, "codebook_size": 8}}
EVAL = {"bootstrap": 10, "latency_rows": 0, "free_rows": 0}
FIT = {"epochs": 1, "batch_size": 64}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside") / "log"
    simulate(world_config("easy", SMALL), 80, 3, folder, seed=0)
    return folder


def run_of(model: str, log: Path, out: Path, said: list[str] | None = None, **evaluation: object) -> Evaluation:
    sections = {
        "data": {"positive": "long_view"}, "catalog": CATALOG, "model": {"name": model}, "fit": FIT,
        "eval": {**EVAL, **evaluation},
    }  # fmt: skip
    found = run(Recipe.parse(sections), log, out, say=said.append if said is not None else lambda _: None)
    assert found is not None
    return found


def beside(out: Path) -> dict[str, Evaluation]:
    folder = out / "baselines" / "evaluation"
    return {path.name: load_evaluation(path) for path in folder.iterdir()} if folder.is_dir() else {}


@pytest.mark.parametrize("model", ["sasrec", "onerec_v2"])
def test_a_trained_model_has_both_beside_it_on_the_same_rows(model: str, log: Path, tmp_path: Path) -> None:
    own = run_of(model, log, tmp_path / "run")
    found = beside(tmp_path / "run")
    titled = any(Catalog.load(tmp_path / "run" / "catalog").titles)
    assert set(found) == {"item_knn", "transitions", "popularity", *(["transitions_text"] if titled else [])}
    for name, baseline in found.items():
        assert compare(own, baseline).tests  # refused for other rows; OneRec reads other events than the two
        alone = run_of(name, log, tmp_path / name)
        assert baseline.metrics == alone.metrics
        for column in alone.ranks.column_names:
            assert np.array_equal(baseline.ranks[column].to_numpy(), alone.ranks[column].to_numpy())


def test_what_only_counts_gets_nothing_dearer_beside_it(log: Path, tmp_path: Path) -> None:
    for model, expected in (("popularity", set()), ("item_knn", {"transitions", "popularity"})):
        run_of(model, log, tmp_path / model)
        assert set(beside(tmp_path / model)) == expected


def test_they_are_measured_once_and_can_be_left_out(log: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = run_of("sasrec", log, tmp_path / "run", said, baselines=[])
    assert not beside(tmp_path / "run")
    again = run_of("sasrec", log, tmp_path / "run", said)
    number = sum("beside, " in line for line in said)
    assert number >= 3
    assert sum("verdict: sasrec " in line or "verdict: undecided between sasrec and" in line for line in said) == 2
    assert sum("evaluate: reused" in line for line in said) == 1  # whether they are wanted changes no figure of the run
    assert again.metrics == first.metrics
    run_of("sasrec", log, tmp_path / "run", said)
    assert sum("beside, " in line for line in said) == number


def test_they_are_chosen_and_have_a_budget(log: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run_of("sasrec", log, tmp_path / "run", said, baselines=["transitions", "popularity"], baseline_minutes=0)
    assert set(beside(tmp_path / "run")) <= {"popularity"}  # the first may begin before the clock has moved
    assert any("left out, [eval] baseline_minutes = 0 were over: " in line for line in said)
    run_of("sasrec", log, tmp_path / "run", said, baselines=["transitions"])
    assert "transitions" in beside(tmp_path / "run")
    for bad in (["sasrec"], ["item_knn", "item_knn"], ["unheard_of"]):
        with pytest.raises(InputError, match=r"\[eval\] baselines = .*allowed: each once of popularity, item_knn"):
            EvalConfig(baselines=tuple(bad))


def test_a_missing_library_is_said_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidera.train.baselines.find_spec", lambda name: None)
    check_baselines(EvalConfig())
    with pytest.raises(InputError, match=r"names 'als', which needs the library implicit; .*sidera\[baselines\]"):
        check_baselines(EvalConfig(baselines=("als",)))
