"""However a training ends (its steps, its time, patience), its learning rate has fallen to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_fit_loop import FAST, lines, new_model, train
from torch import nn
from toy_training import RingSource

from sidera.fit import FitConfig
from sidera.fit.cooldown import CoolDown, cool_down_steps, stable_share
from sidera.fit.schedule import learning_rate

CONFIG = replace(FAST, lr=0.01, warmup_steps=0, min_lr_ratio=0.1, cooldown=0.5)


def figures(*values: float) -> tuple[list[torch.Tensor], object]:
    """An ``evaluate`` that gives these, then 0, and the weights that it has seen."""
    seen: list[torch.Tensor] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append(next(model.parameters()).detach().clone())
        return {"accuracy": values[len(seen) - 1] if len(seen) <= len(values) else 0.0}

    return seen, evaluate


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_patience_begins_a_cool_down_from_the_best_weights(tmp_path: Path, schedule: str) -> None:
    """Looks every 7 steps; the second is the best, the fourth is the second worse one: 28 steps, then 14 more."""
    seen, evaluate = figures(0.1, 0.5, 0.4, 0.3, 0.45, 0.6)
    model, said = new_model(), []
    config = replace(CONFIG, schedule=schedule, patience=2, epochs=30)
    result = train(tmp_path, config, model=model, evaluate=evaluate, say=said.append)
    assert (result.stopped_because, result.steps, result.best_step) == ("patience", 42, 42)
    assert result.weights_steps == 14 + 14
    rates = [line["lr"] for line in lines(tmp_path)]
    assert rates[27] > 0.005
    assert rates[28:] == sorted(rates[28:], reverse=True)
    assert rates[-1] == pytest.approx(0.001)
    (phase,) = lines(tmp_path, "phase")
    assert (phase["step"], phase["steps"], phase["because"], phase["weights_of"]) == (28, 14, "patience", 14)
    assert any("patience at step 28: cool-down" in line and "weights of step 14" in line for line in said)
    moved = [(seen[later] - seen[1]).norm() for later in (3, 4)]
    assert moved[1] < moved[0], "the cool-down has not gone on from the best weights"


def test_the_best_weights_return_where_the_cool_down_brings_none_that_are_better(tmp_path: Path) -> None:
    seen, evaluate = figures(0.1, 0.5, 0.4, 0.3)
    model = new_model()
    result = train(tmp_path, replace(CONFIG, patience=2, epochs=30), model=model, evaluate=evaluate)
    assert (result.stopped_because, result.steps, result.best_step) == ("patience", 42, 14)
    assert torch.equal(next(model.parameters()), seen[1])


def test_looks_before_min_steps_try_no_ones_patience(tmp_path: Path) -> None:
    _, evaluate = figures(0.5)
    config = replace(CONFIG, patience=2, epochs=1, min_steps=70, cooldown=0.0)
    result = train(tmp_path, config, evaluate=evaluate)
    assert (result.steps, result.stopped_because) == (70, "epochs")
    _, evaluate = figures(0.5)
    result = train(tmp_path / "more", replace(config, epochs=30, min_steps=35), evaluate=evaluate)
    assert (result.steps, result.stopped_because) == (42, "patience"), "the look at step 35 counts, and the next"


def test_wsd_is_level_and_falls_at_the_end_of_its_steps(tmp_path: Path) -> None:
    config = replace(CONFIG, schedule="wsd", cooldown=0.25, max_steps=50, patience=0)
    result = train(tmp_path, config)
    rates = [line["lr"] for line in lines(tmp_path)]
    assert (result.steps, result.stopped_because) == (50, "max_steps")
    assert rates[:40] == [0.01] * 40
    assert rates[40:] == pytest.approx([0.01 - 0.0009 * k for k in range(1, 11)])
    assert lines(tmp_path, "phase")[0]["step"] == 40


def test_wsd_falls_in_time_for_the_end_of_the_budget(tmp_path: Path) -> None:
    config = replace(CONFIG, schedule="wsd", epochs=1000, patience=0, max_minutes=1.5 / 60, clock="wall")
    result = train(tmp_path, config, RingSource(pause=0.01), evaluate=figures()[1])
    rates = [line["lr"] for line in lines(tmp_path)]
    assert result.stopped_because == "max_minutes"
    assert rates[0] == 0.01
    assert rates[-1] == pytest.approx(0.001)
    assert lines(tmp_path, "phase")[0]["because"] == "max_minutes"
    assert 0.5 < lines(tmp_path, "phase")[0]["seconds"] < 1.5


def test_a_cool_down_stays_inside_the_steps_and_schedules_without_an_end_have_none() -> None:
    assert cool_down_steps(FitConfig(cooldown=0.2), 100, 1000) == 20
    assert cool_down_steps(FitConfig(cooldown=0.2), 990, 1000) == 10
    assert cool_down_steps(FitConfig(cooldown=0.0), 100, 1000) == 0
    for schedule in ("constant", "inverse_sqrt"):
        assert cool_down_steps(FitConfig(schedule=schedule), 100, 1000) == 0
    assert stable_share(FitConfig(cooldown=0.25)) == 0.8


def test_the_rate_is_a_function_of_the_step_and_of_where_the_phase_began() -> None:
    config = FitConfig(lr=1.0, min_lr_ratio=0.1)
    begun = CoolDown(step=100, steps=10, weights_of=60, lr=0.5, seconds=0.0, because="patience")
    rates = [learning_rate(config, step, 1000, 0.0, begun) for step in range(100, 110)]
    assert rates == pytest.approx([0.5 - 0.04 * k for k in range(1, 11)])
    assert learning_rate(config, 100, 1000, 1.0, begun) == pytest.approx(0.1), "the time is gone before the steps"
    low = replace(begun, lr=0.05)
    assert learning_rate(config, 105, 1000, 0.0, low) == 0.05, "a rate below the floor does not rise"


def test_a_short_training_warms_up_in_a_quarter_of_it() -> None:
    rates = [learning_rate(FitConfig(lr=1.0, warmup_steps=100), step, 40) for step in range(40)]
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.05)
