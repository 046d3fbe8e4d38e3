"""``[fit] teachers``: models of other seeds teach the one that answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from checkerboard_recipe import CHECKERBOARD_RECIPE
from sidera.artifacts import read_manifest
from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.fit.config import FitConfig
from sidera.nn.soft_targets import cross_entropy, uniform
from sidera.train.distill import SEEDS, _better, _minutes, affordable_teachers
from sidera.train.recipe import Recipe
from sidera.train.stages import train


def recipe(**fit: Any) -> Recipe:
    shorter = {**CHECKERBOARD_RECIPE["fit"], "epochs": 2, "eval_every_epochs": 1}
    return Recipe.parse({**CHECKERBOARD_RECIPE, "fit": {**shorter, "teachers": 2, **fit}})


def quiet(_: str) -> None:
    pass


def test_soft_targets_of_one_item_are_the_cross_entropy_with_it() -> None:
    logits = torch.randn(5, 4)
    logits[2, 3] = float("-inf")
    target = torch.tensor([0, 1, 2, 3, 0])
    one_hot = F.one_hot(target, 4).float()
    torch.testing.assert_close(cross_entropy(logits, one_hot), F.cross_entropy(logits, target, reduction="sum"))
    torch.testing.assert_close(uniform(logits)[2], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))


def test_two_teachers_of_other_seeds_teach_and_a_stopped_training_goes_on(trained_run: Path, tmp_path: Path) -> None:
    data, weights, said = trained_run.parent / "data", [], []
    for name, pieces in (("whole", {}), ("pieces", {"piece_minutes": 1e-6, "checkpoint_minutes": 0.0})):
        done, calls = None, 0
        while done is None:
            done, calls = train(recipe(**pieces), data, tmp_path / name, say=said.append)[1], calls + 1
        weights.append(done.model.state_dict())
        assert (calls > 3) == bool(pieces)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any("teacher 2 of 2" in line for line in said)
    training = read_manifest(tmp_path / "whole" / "model", "model").info["training"]
    first, second = training["teachers"]
    assert first["ndcg@10"] > 0.3
    assert second["ndcg@10"] > 0.3
    assert training["validation"]["ndcg@10"] >= 0.9 * first["ndcg@10"]
    assert not list((tmp_path / "whole" / "fit").glob("teacher-*"))
    plain = train(recipe(teachers=0), data, tmp_path / "plain", say=quiet)[1]
    assert plain is not None
    assert any(not torch.equal(weights[0][key], value) for key, value in plain.model.state_dict().items())
    assert SEEDS > 100, "seeds of neighbouring runs share no teacher"


def test_a_training_that_fills_its_budget_stays_alone(trained_run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = recipe(max_minutes=0.02, epochs=10_000)
    assert train(config, trained_run.parent / "data", tmp_path / "run", say=said.append)[1] is not None
    assert any("no room for a second training" in line for line in said)
    training = read_manifest(tmp_path / "run" / "model", "model").info["training"]
    assert (training["teachers"], training["stopped_because"]) == ([], "max_minutes")


def test_the_other_trainings_share_what_the_first_one_left() -> None:
    first = {"weights_steps": 600, "steps": 1000, "wall_minutes": 2.0, "cpu_minutes": 5.0}
    config = FitConfig(teachers=2, max_minutes=10.0)  # 1 teacher and a model of 1.5 times its time, 0.6 of 2 minutes
    assert affordable_teachers(config, 60.0, first) == 2
    assert affordable_teachers(replace(config, max_minutes=5.5), 60.0, first) == 1
    assert affordable_teachers(replace(config, clock="cpu"), 60.0, first) == 1
    assert affordable_teachers(replace(config, max_minutes=4.0), 60.0, first) == 0
    left = [_minutes(config, 60.0, first, weight) for weight in (1.0, 1.5)]
    assert left[0] is not None
    assert left[1] is not None
    assert sum(minutes - 1.0 for minutes in left) == pytest.approx(10.0 - 1.0 - 2.0)


@pytest.mark.parametrize(("taught", "stays"), [(0.095, "model"), (0.080, "teacher")])
def test_the_first_teacher_stays_where_the_model_fell_far_below_it(
    trained_run: Path, taught: float, stays: str
) -> None:
    models = [Recommender.load(trained_run) for _ in range(2)]
    with torch.no_grad():
        for parameter in models[1].model.parameters():
            parameter.add_(1.0)
    before = next(models[0].model.parameters()).clone()
    records = [
        {"validation": {"ndcg@10": value}, "steps": steps, "cpu_minutes": 1.0, "wall_minutes": 2.0}
        for value, steps in ((taught, 70), (0.1, 100), (0.09, 60))
    ]
    record = _better(FitConfig(teachers=2), *models, records, quiet)
    kept = next(models[0].model.parameters())
    assert torch.equal(kept, before) == (stays == "model")
    assert record["steps"] == (70 if stays == "model" else 100)
    assert (record["cpu_minutes"], record["wall_minutes"]) == (3.0, 6.0)
    assert [one["ndcg@10"] for one in record["teachers"]] == [0.1, 0.09]


def test_a_model_that_learns_from_no_teachers_is_named_before_any_work() -> None:
    sections = {**CHECKERBOARD_RECIPE, "model": {"name": "sasrec", "width": 16}, "fit": {"teachers": 2}}
    with pytest.raises(InputError, match=r"teachers = 2, but \[model\] name = 'sasrec' learns from none"):
        Recipe.parse(sections)
