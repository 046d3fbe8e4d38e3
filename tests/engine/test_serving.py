"""What `sidera serve` opens beside a run, opened from Python by the same names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import sidera
from sidera import ServeConfig
from sidera.core import ArtifactError, InputError, Request
from sidera.data.dataset import Dataset
from sidera.data.tiny import checkerboard
from sidera.engine.recommender import Recommender
from sidera.store.exposures import ExposureLog

KEYS = [f"item{item:04d}" for item in range(24)]


def test_nothing_stands_beside_a_run_by_default(trained_run: Path) -> None:
    with sidera.load(str(trained_run)) as recommender:
        assert (recommender.behaviour, recommender.exposures, recommender.pipeline.steps) == (None, None, ())


def test_a_store_and_a_log_are_opened_filled_and_closed(trained_run: Path, tmp_path: Path) -> None:
    checkerboard().save(tmp_path / "data")
    user = str(Dataset.load(tmp_path / "data").user_keys[0])
    serve = ServeConfig(store=tmp_path / "store", fill=tmp_path / "data", exposures=tmp_path / "log")
    with sidera.load(str(trained_run), serve=serve) as recommender:
        assert recommender.behaviour is not None
        assert recommender.behaviour.store.num_users == checkerboard().num_users
        (answer,) = recommender.recommend([Request(user=user, k=3)])
        catalog = recommender.catalog
        assert not answer.cold_start
    log = ExposureLog.open(tmp_path / "log", codebook_id=catalog.codebook_id, num_levels=catalog.num_levels)
    table = log.read()  # closing wrote what was gathered
    assert table["item"].to_pylist() == list(answer.item_keys)
    assert set(table["request"].to_pylist()) == {answer.request}
    with sidera.load(str(trained_run), serve=ServeConfig(store=tmp_path / "store", beam=7)) as again:
        assert again.beam == 7
        assert again.recommend([Request(user=user, k=3)])[0].item_keys == answer.item_keys


def test_what_cannot_be_opened_is_named_and_the_rest_closed(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fill data without a store; fix: name the store's folder"):
        ServeConfig(fill="data")
    with pytest.raises(InputError, match="exposures log without a store"):
        ServeConfig(exposures="log")
    with pytest.raises(ArtifactError, match="no ranker at"):
        sidera.load(str(trained_run), serve=ServeConfig(rerank=8))
    with pytest.raises(InputError, match="no item of the catalogue is in the quota's set"):
        sidera.load(str(trained_run), serve=ServeConfig(cold_share=0.1))
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "recipe.json").unlink()
    checkerboard().save(tmp_path / "data")
    serve = ServeConfig(store=tmp_path / "store", fill=tmp_path / "data", beam=9)
    with pytest.raises(ArtifactError, match=r"no recipe.json, which says how its data folder is read"):
        Recommender.load(run, serve=serve)
    shutil.copyfile(trained_run / "recipe.json", run / "recipe.json")
    with Recommender.load(run, serve=serve) as opened:  # the store was not left open
        assert opened.behaviour is not None
