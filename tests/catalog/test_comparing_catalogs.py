"""The verbs of catalogues: a table over several, what changed between two, whether one is sound, items at the shell."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidera.catalog.build import build_catalog
from sidera.catalog.catalog import Catalog
from sidera.catalog.compare import audit, churn, figures
from sidera.catalog.config import CatalogConfig
from sidera.cli import main
from sidera.cli.catalogs import catalog_at
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.ops.columns import Column

RECIPE = """
[catalog]
vectors = ["tfidf", "behaviour"]
vector_dim = 8
[catalog.quantizer]
num_levels = 2
codebook_size = 5
[model]
name = "sidera"
max_history = 8
width = 16
num_layers = 1
num_heads = 1
[fit]
max_steps = 4
batch_size = 16
eval_every_epochs = 0
[eval]
bootstrap = 10
latency_rows = 2
free_rows = 5
ks = [5, 10]
"""


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    dataset = tiny_log(60, 30)
    config = CatalogConfig(
        vectors=("tfidf", "behaviour"), vector_dim=8, quantizer={"num_levels": 2, "codebook_size": 5}
    )
    return build_catalog(dataset, leave_one_out(dataset), config)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its data and its run, trained for a few steps."""
    place = tmp_path_factory.mktemp("shop")
    tiny_log(60, 30).save(place / "data")
    (place / "mine.toml").write_text(RECIPE)
    words = ["--data", str(place / "data"), "--out", str(place / "run")]
    assert main(["train", str(place / "mine.toml"), *words]) == 0
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def answer(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def refusal(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err.strip()


def test_figures_are_those_of_the_codes(catalog: Catalog) -> None:
    found = figures(catalog)
    codes = np.asarray(catalog.codes)
    prefixes = len(np.unique(codes[:, :1], axis=0)), len(np.unique(codes[:, :2], axis=0)), len(codes)
    assert found["trie_nodes"] == sum(prefixes)
    assert found["children"] == pytest.approx([prefixes[0], prefixes[1] / prefixes[0], prefixes[2] / prefixes[1]])
    assert found["used"][0] == prefixes[0] / 5
    assert found["relative_error"] == catalog.report["relative_error"]


def test_churn_knows_names_from_groups(catalog: Catalog) -> None:
    """Codes that are only called otherwise are recoded and have not moved; one item in another group has."""
    codes = np.asarray(catalog.codes).copy()
    codes[:, 0] = (codes[:, 0] + 1) % 5
    renamed = replace(catalog, codes=Column.of(codes))
    found = churn(catalog, renamed)
    assert found["recoded"] == [1.0, 1.0, 1.0]
    assert found["moved"] == [0.0, 0.0, 0.0]
    largest = np.bincount(codes[:, 0]).argmax()
    item = int(np.flatnonzero(codes[:, 0] == largest)[0])
    codes = codes.copy()
    codes[item, 0] = (largest + 1) % 5
    moved = churn(renamed, replace(catalog, codes=Column.of(codes)))
    assert moved["recoded"][0] == pytest.approx(1 / 30)
    assert moved["moved"][0] == pytest.approx(1 / 30)


def test_churn_lists_what_came_and_went(catalog: Catalog) -> None:
    later = catalog.with_items(["late"], np.zeros((1, catalog.quantizer.dim))).without([str(catalog.item_keys[3])])
    found = churn(catalog, later)
    assert (found["added"], found["removed"], found["common"]) == (["late"], [str(catalog.item_keys[3])], 29)
    assert found["recoded"] == [0.0, 0.0, 0.0]
    assert found["same_codebook"]


def test_a_living_catalogue_is_sound(catalog: Catalog) -> None:
    later = catalog.with_items(["late"], np.zeros((1, catalog.quantizer.dim))).without([str(catalog.item_keys[3])])
    found = audit(later)
    assert found["problems"] == []
    assert (found["num_items"], found["num_removed"], found["num_semantic_ids"]) == (30, 1, 30)


def test_an_audit_finds_what_is_wrong(catalog: Catalog) -> None:
    codes = np.asarray(catalog.codes).copy()
    codes[1] = codes[0]
    (problem,) = audit(replace(catalog, codes=Column.of(codes)))["problems"]
    assert problem.startswith("2 items share their semantic ID although collision = 'extra_digit', first")
    codes = np.asarray(catalog.codes).copy()
    codes[4, 1] = 5
    assert (
        "1 items have a code that is none of their level"
        in audit(replace(catalog, codes=Column.of(codes)))["problems"][0]
    )
    stale = replace(catalog, removed=~np.arange(30).astype(bool))
    object.__setattr__(stale, "__dict__", {**stale.__dict__, "trie": catalog.trie})
    assert audit(stale)["problems"][0] == "the trie lacks 0 items and holds 1 that are removed"


def test_items_come_and_go_at_the_shell(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.csv").write_text("item_id,title,brand\nnew-1,A blue cup,Acme\nnew-2,A red cup,Acme\n")
    found = answer(capsys, "catalog", "add", run, tmp_path / "new.csv", "--version", 7)
    assert (found["added"], found["applied"]) == (2, True)
    assert not answer(capsys, "catalog", "add", run, tmp_path / "new.csv", "--version", 7)["applied"]
    assert "was applied with other content" in refusal(capsys, "catalog", "remove", run, "new-1", "--version", 7)
    before = Catalog.load(run / "catalog")
    assert answer(capsys, "catalog", "remove", run, "new-1", before.item_keys[0])["removed"] == 2
    now = catalog_at(str(run))
    assert now.find_ids(["new-2"])[0] == 31
    assert [int(item) for item in np.flatnonzero(now.removed)] == [0, 30]
    save = tmp_path / "kept"
    before.save(save)
    difference = answer(capsys, "catalog", "diff", save, run)
    assert (difference["added"], difference["removed"]) == (["new-2"], [str(before.item_keys[0])])
    assert answer(capsys, "catalog", "audit", run)["num_removed"] == 2


def test_what_is_wrong_at_the_shell_is_one_line(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "catalog", "remove", run, "nobody", "item0")
    assert "the catalogue holds no item 'nobody'" in said
    assert not catalog_at(str(run)).removed.any()
    assert answer(capsys, "catalog", "remove", run, "nobody", "--absent-ok")["absent"] == 1
    (tmp_path / "new.csv").write_text("item_id,title\nnew-1,A cup\nnew-2,\n")
    assert "nothing is said of item 'new-2' (1 of 2)" in refusal(capsys, "catalog", "add", run, tmp_path / "new.csv")
    (tmp_path / "new.csv").write_text("item_id,title\nnew-1,A cup\nnew-1,A tin\n")
    assert "'new-1' is named twice" in refusal(capsys, "catalog", "add", run, tmp_path / "new.csv")
    assert "no item to remove" in refusal(capsys, "catalog", "remove", run)
    assert "no run folder" in refusal(capsys, "catalog", "add", tmp_path, tmp_path / "new.csv")
    assert "nothing to compare" in refusal(capsys, "catalog", "compare")
    words = ("catalog", "compare", trained / "mine.toml", "--data", trained / "data", "--out", tmp_path / "out")
    assert "'latent' is no KEY=VALUE" in refusal(capsys, *words, "--quantizers", "rq_vae,latent")
    assert "is not known" in refusal(capsys, *words, "--quantizers", "rq_kmeans", "rq_tree")
    assert not (tmp_path / "out").exists()


def test_one_table_over_quantizers(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("catalog", "compare", trained / "mine.toml", "--data", trained / "data", "--out", tmp_path / "out")
    words = (
        *words,
        "--quantizers",
        "rq_kmeans,codebook_size=4",
        "opq,codebook_size=4,rotations=1",
        "--runs",
        trained / "run",
    )
    rows = answer(capsys, *words, "--steps", 2)["catalogues"]
    assert [row["quantizer"] for row in rows] == [
        "rq_kmeans,codebook_size=4",
        "opq,codebook_size=4,rotations=1",
        str(trained / "run"),
    ]
    assert rows[0]["level_sizes"][:3] == [4, 4, 4]
    assert all(0 <= share <= 1 for row in rows[:2] for share in row["churn"])
    assert all(0 <= row["downstream"]["keep"]["recall@10"] <= 1 for row in rows[:2])
    again = answer(capsys, *words, "--steps", 2)["catalogues"]  # what is there is reused
    assert again == rows
