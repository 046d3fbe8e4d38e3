"""How many validation rows a training asks, and how the budget counts what comes before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidera.artifacts import read_manifest
from sidera.core import ArtifactError
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.train import validation as validation_module
from sidera.train.budget import spent_seconds
from sidera.train.recipe import Recipe
from sidera.train.stages import train
from sidera.train.validation import FEW, affordable


def recipe(**fit: Any) -> Recipe:
    sections = {
        "data": {},
        "catalog": {},
        "model": {"name": "sasrec", "width": 16},
        "fit": {"epochs": 2, "batch_size": 16, "eval_every_epochs": 1, **fit},
        "eval": {"valid_rows": "auto", "bootstrap": 10, "latency_rows": 0},
    }
    return Recipe.parse(sections)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny"
    tiny_log(120, 48).save(path)
    return path


@pytest.mark.parametrize(
    ("num_rows", "seconds", "per_row", "expected"),
    [
        (500, 0.0, 1.0, 500),  # few: all, whatever it costs
        (38_000, 100.0, 1e-3, 8192),  # a tenth of 100 s pays for 10,000
        (38_000, 1.0, 1.0, FEW),  # never fewer
        (38_000, 1e6, 1e-3, 38_000),
        (10_000, 90.0, 1e-3, 10_000),  # 8,192 of 10,000 are worth the rest
    ],
)
def test_a_tenth_of_the_training_pays_for_rows(num_rows: int, seconds: float, per_row: float, expected: int) -> None:
    assert affordable(num_rows, seconds, per_row) == expected


def test_the_rows_are_chosen_once_said_and_asked_again_after_a_break(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation_module, "FEW", 16)
    monkeypatch.setattr(validation_module, "PILOT", 8)
    asked: list[int | None] = []
    measured = validation_module.quick_metrics

    def counting(*args: Any, max_rows: int | None, **kwargs: Any) -> Mapping[str, float]:
        asked.append(max_rows)
        return measured(*args, max_rows=max_rows, **kwargs)

    monkeypatch.setattr(validation_module, "quick_metrics", counting)
    monkeypatch.setattr(validation_module, "affordable", lambda *_: 32)
    said: list[str] = []
    piece = recipe(max_steps=6, eval_every_steps=2, piece_minutes=1e-6)
    found, pieces = None, 0
    while found is None:
        found, pieces = train(piece, data, tmp_path / "run", say=said.append)[1], pieces + 1
    assert pieces > 2
    assert asked[:2] == [8, 8]  # timed once, over all pieces
    assert set(asked[2:]) == {32}
    (line,) = [line for line in said if line.startswith("validation:")]
    assert "32 of 120 rows" in line
    assert not (tmp_path / "run" / "fit" / "validation.json").exists()  # the next training chooses anew


def test_a_damaged_or_foreign_choice_is_made_anew(tmp_path: Path) -> None:
    rows = tiny_log(60, 48)
    valid = leave_one_out(rows).valid

    def kept(content: str) -> int | None:
        (tmp_path / "validation.json").write_text(content)
        config = replace(recipe().eval)
        made = validation_module.Validation(
            None, rows, valid, config, filter_too=False, folder=tmp_path, identity="me", say=print  # type: ignore[arg-type]
        )  # fmt: skip
        return made.number

    good = {"rows": 20, "of": len(valid), "identity": "me"}
    assert kept(json.dumps(good)) == 20
    for bad in ("", "{", "[]", json.dumps({**good, "identity": "you"}), json.dumps({**good, "rows": -1}),
                json.dumps({**good, "of": 7}), json.dumps({**good, "rows": None})):  # fmt: skip
        assert kept(bad) is None


def test_another_budget_goes_on_and_another_rate_does_not(data: Path, tmp_path: Path) -> None:
    piece = recipe(epochs=50, piece_minutes=1e-6, max_minutes=5.0, checkpoint_minutes=0.0)
    assert train(piece, data, tmp_path / "run")[1] is None
    with pytest.raises(ArtifactError, match=r"fit\.lr"):
        train(replace(piece, fit=replace(piece.fit, lr=0.5)), data, tmp_path / "run")
    shorter = replace(piece.fit, max_minutes=1e-4, piece_minutes=None)  # less than is gone: one step, then the end
    assert train(replace(piece, fit=shorter), data, tmp_path / "run")[1] is not None
    training = read_manifest(tmp_path / "run" / "model", "model").info["training"]
    assert training["stopped_because"] == "max_minutes"
    assert 2 <= training["steps"] < 50


def test_the_catalogue_counts_and_leaves_a_tenth() -> None:
    built = SimpleNamespace(report={"build_seconds": {"wall": 120.0, "cpu": 30.0}})
    said: list[str] = []
    for config, expected in (
        (recipe().fit, 0.0),
        (recipe(max_minutes=10.0).fit, 120.0),
        (recipe(max_minutes=10.0, clock="cpu").fit, 30.0),
    ):
        assert spent_seconds(built, config, said.append) == expected  # type: ignore[arg-type]
    assert not said
    assert spent_seconds(built, recipe(max_minutes=1.0).fit, said.append) == pytest.approx(54.0)  # type: ignore[arg-type]
    assert "2.0 of the 1 minutes" in said[0]
