from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sidera.config import parse_section
from sidera.core import InputError
from sidera.fit.config import FREE_TO_CHANGE, FitConfig
from sidera.fit.schedule import learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("max_steps", 0),
        ("min_steps", -1),
        ("batch_size", -1),
        ("accumulate", 0),
        ("lr", 0.0),
        ("lr", math.inf),
        ("weight_decay", -0.1),
        ("betas", [0.9]),
        ("betas", [0.9, 1.0]),
        ("schedule", "cosin"),
        ("warmup_steps", -1),
        ("cooldown", -0.1),
        ("min_lr_ratio", 1.5),
        ("clip_norm", -1.0),
        ("precision", "f16"),
        ("seed", -1),
        ("patience", -1),
        ("max_minutes", 0.0),
        ("piece_minutes", math.inf),
        ("monitor", ""),
    ],
)
def test_a_value_out_of_range_is_named(key: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        parse_section(FitConfig, {key: value}, "[fit]")
    assert f"[fit] {key} = " in str(caught.value)
    assert "allowed: " in str(caught.value)


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "use" / "training.md").read_text(encoding="utf-8")
    table = page.split("## The keys of `[fit]`")[1].split("\n## ")[0]
    assert [field.name for field in fields(FitConfig) if f"`{field.name}" not in table] == []


def test_only_keys_that_leave_the_result_alone_are_outside_the_identity() -> None:
    config = FitConfig()
    assert "lr" in config.identity()
    assert "max_minutes" in config.identity()
    assert not set(FREE_TO_CHANGE) & set(config.identity())


def rates(total: int, time_shares: dict[int, float] | None = None, **keys: Any) -> list[float]:
    config = FitConfig(lr=1.0, **keys)
    return [learning_rate(config, step, total, (time_shares or {}).get(step, 0.0)) for step in range(total)]


def test_cosine_rises_then_falls_to_its_floor() -> None:
    curve = rates(101, warmup_steps=10, min_lr_ratio=0.1)
    assert curve[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert curve[55] == pytest.approx(0.55)  # half way between step 10 and step 100
    assert curve[-1] == pytest.approx(0.1)
    assert curve[10:] == sorted(curve[10:], reverse=True)


def test_linear_constant_and_inverse_sqrt() -> None:
    assert rates(11, schedule="linear", warmup_steps=0, min_lr_ratio=0.0) == pytest.approx(
        [1 - k / 10 for k in range(11)]
    )
    assert rates(8, schedule="constant", warmup_steps=2) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1])
    curve = rates(400, schedule="inverse_sqrt", warmup_steps=100, min_lr_ratio=0.0)
    assert max(curve) == curve[99] == pytest.approx(1.0)
    assert curve[399] == pytest.approx(0.5)
    assert rates(400, schedule="inverse_sqrt", warmup_steps=100, min_lr_ratio=0.7)[399] == pytest.approx(0.7)


def test_a_time_budget_brings_the_tail_forward() -> None:
    """Only 50 of 1000 steps fit into the budget: the rate must still run down to its floor."""
    curve = rates(1000, {step: step / 50 for step in range(51)}, warmup_steps=5, min_lr_ratio=0.0)
    assert curve[25] == pytest.approx(0.5)
    assert curve[50] == pytest.approx(0.0)


@pytest.mark.parametrize(("decay_embeddings", "decayed"), [(True, {"0.weight", "1.weight"}), (False, {"1.weight"})])
def test_decay_is_for_matrices(decay_embeddings: bool, decayed: set[str]) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(model, FitConfig(weight_decay=0.3, decay_embeddings=decay_embeddings))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert by_decay[0.3] == decayed
    assert by_decay[0.0] == set(names.values()) - decayed


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(InputError, match="no trainable parameters"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), FitConfig())
