"""``[fit] refit``: validation chooses, then its events are learned too; test events never are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkerboard_recipe import CHECKERBOARD_RECIPE
from sidera.artifacts import read_manifest
from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.data.split import (
    check_leaks,
    fitted_sequences,
    fitted_split,
    leave_one_out,
    temporal,
    train_sequences,
)
from sidera.data.tiny import checkerboard, tiny_log
from sidera.engine.recommender import Recommender
from sidera.eval.compare import compare
from sidera.eval.evaluation import load_evaluation
from sidera.eval.lines import evaluation_lines
from sidera.fit.config import FitConfig
from sidera.models import MODELS, build_model, fit_once
from sidera.train.recipe import Recipe
from sidera.train.refit import SHARE, first_config, refit_config
from sidera.train.stages import evaluate_stage, prepare, run, train


def recipe(**fit: Any) -> Recipe:
    return Recipe.parse({**CHECKERBOARD_RECIPE, "fit": {**CHECKERBOARD_RECIPE["fit"], "refit": True, **fit}})


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def refitted(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the trained run, refitted and evaluated; and what was said."""
    folder, said = tmp_path_factory.mktemp("refit") / "run", []
    shutil.copytree(trained_run, folder)
    assert run(recipe(), trained_run.parent / "data", folder, say=said.append) is not None
    return folder, said


def test_leave_one_out_learns_all_but_the_last_event() -> None:
    log = tiny_log(30, 20)
    split = leave_one_out(log)
    fitted = fitted_split(log, split, "train+valid")
    asked = split.test.user_ids
    np.testing.assert_array_equal(fitted.train_ends[asked], split.test.ends)
    np.testing.assert_array_equal(fitted.train_ends[asked], split.train_ends[asked] + 1)
    assert not len(fitted.valid)
    check_leaks(log, fitted)
    items, offsets = fitted_sequences(log, split, "train+valid")
    assert len(items) == len(train_sequences(log, split)[0]) + len(split.valid) == offsets[-1]
    for user in asked[:5]:
        events = log.item_ids[log.offsets[user] : log.offsets[user + 1]]
        np.testing.assert_array_equal(items[offsets[user] : offsets[user + 1]], events[:-1])
    np.testing.assert_array_equal(fitted_sequences(log, split, "train")[0], train_sequences(log, split)[0])


def test_a_temporal_refit_ends_before_the_test_window_also_where_times_are_equal() -> None:
    log = tiny_log(30, 20)
    days = replace(log, times=log.times // 86_400 * 86_400)
    for data in (log, days):
        split = temporal(data, 0.2, 0.2)
        assert split.cut_times is not None
        fitted = fitted_split(data, split, "train+valid")
        learned = np.arange(data.num_events) < fitted.train_ends[data.event_users]
        assert data.times[learned].max() < split.cut_times[1]
        assert learned.sum() == (data.times < split.cut_times[1]).sum() > (data.times < split.cut_times[0]).sum()


def test_without_validation_rows_there_is_no_refit(tmp_path: Path) -> None:
    checkerboard(30, length=2).save(tmp_path / "data")
    with pytest.raises(InputError, match=r"refit = true, but .* no validation rows.*fit\.refit=false"):
        train(recipe(), tmp_path / "data", tmp_path / "run", say=quiet)
    assert not (tmp_path / "run" / "fit").exists(), "it was trained before it was refused"


def test_the_chosen_model_is_gone_on_from_and_the_artifact_says_what_it_has_seen(
    trained_run: Path, refitted: tuple[Path, list[str]]
) -> None:
    folder, said = refitted
    assert any(line.startswith("train: reused") for line in said), "the same recipe without a refit was trained again"
    before, after = (read_manifest(path / "model", "model") for path in (trained_run, folder))
    one, two = before.info["training"], after.info["training"]
    assert (one["fit"], two["fit"]) == ("train", "train+valid")
    assert two["refit_steps"] == round(SHARE * one["weights_steps"])
    assert two["validation"] == one["validation"]
    assert two["seen_until"] > one["seen_until"]
    assert after.digest != before.digest
    plain, fitted = (Recommender.load(path).model.state_dict() for path in (trained_run, folder))
    assert any(not torch.equal(plain[name], fitted[name]) for name in plain)
    assert not (folder / "fit" / "refit").exists()


def test_every_figure_says_its_fit(trained_run: Path, refitted: tuple[Path, list[str]]) -> None:
    plain, fitted = (load_evaluation(folder / "evaluation") for folder in (trained_run, refitted[0]))
    assert (plain.protocol["fit"], fitted.protocol["fit"]) == ("train", "train+valid")
    assert "fit: train+valid" in evaluation_lines(fitted)
    text = compare(plain, fitted, resamples=20).to_text()
    assert "(fit: train)" in text
    assert "(fit: train+valid)" in text
    assert "note: fit: A on train, B on train+valid" in text


def test_baselines_count_what_the_model_has_learned(trained_run: Path, refitted: tuple[Path, list[str]]) -> None:
    beside = "baselines/evaluation/transitions"
    plain, fitted = (load_evaluation(folder / beside) for folder in (trained_run, refitted[0]))
    assert (plain.protocol["fit"], fitted.protocol["fit"]) == ("train", "train+valid")


def test_a_refitted_model_is_not_asked_what_it_has_learned(trained_run: Path, refitted: tuple[Path, list[str]]) -> None:
    prepared = prepare(recipe(), trained_run.parent / "data", quiet)
    trained = Recommender.load(refitted[0])
    with pytest.raises(InputError, match=r"knows the answers of the validation rows.*fit\.refit=false"):
        evaluate_stage(recipe(), prepared, trained, refitted[0], "valid", say=quiet)


def test_a_refit_that_is_stopped_goes_on_to_the_same_weights(trained_run: Path, tmp_path: Path) -> None:
    data, weights = trained_run.parent / "data", []
    for name, pieces in (("whole", {}), ("pieces", {"piece_minutes": 1e-6})):
        shutil.copytree(trained_run, tmp_path / name)
        done, calls = None, 0
        while done is None:
            done, calls = train(recipe(**pieces), data, tmp_path / name, say=quiet)[1], calls + 1
        weights.append(done.model.state_dict())
        assert (calls > 3) == bool(pieces)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_training_and_refit_share_the_budget() -> None:
    config = FitConfig(refit=True, max_minutes=10.0, lr=0.01)
    first, second = first_config(config, 60.0), refit_config(config, 60.0, {"weights_steps": 1000})
    assert (first.refit, second.refit) == (False, False)
    assert first.max_minutes - 1.0 + second.max_minutes == pytest.approx(9.0), "a minute went into the catalogue"
    assert second.max_steps == round(1000 * SHARE)
    assert second.lr == config.lr
    assert second.schedule == "linear"
    assert first_config(FitConfig(refit=True), 60.0).max_minutes is None


def test_transitions_keep_what_validation_chose_and_count_its_events(trained_run: Path) -> None:
    prepared = prepare(recipe(), trained_run.parent / "data", quiet)
    catalog = Catalog.load(trained_run / "catalog")
    models = {}
    for fit in ("train", "train+valid"):
        models[fit] = build_model("transitions", MODELS["transitions"].Config(), catalog)
        fit_once(models[fit], prepared.view, fit)
    assert torch.equal(models["train"].chosen, models["train+valid"].chosen)
    assert not torch.equal(models["train"].votes, models["train+valid"].votes)
