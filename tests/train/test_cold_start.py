"""Cold start: nothing that is asked for was seen, new items come as a message brings them, and the page shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidera.cli import main
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.tiny import tiny_log
from sidera.data.withheld import among_all, questions_about, withhold, without_new
from sidera.eval.cold import COLD, Measured, cold_rows, summary
from sidera.train.cold_start import ColdConfig, read_cold

LOG = tiny_log(150, 80)
PARTS = withhold(LOG, 0.1, 0.3, 0)


def pairs(dataset: Dataset) -> set[tuple[str, str, int]]:
    users, items = dataset.user_keys[dataset.event_users], dataset.item_keys[dataset.item_ids]
    return set(zip(users, items, dataset.times.tolist(), strict=True))


def test_what_is_withheld_is_in_no_part_of_the_training() -> None:
    new = set(PARTS.whole.item_keys[PARTS.first_new :])
    assert len(new) == 8
    asked = set(LOG.user_keys[PARTS.asked_mask])
    assert pairs(PARTS.whole) == pairs(LOG)
    expected = {one for one in pairs(LOG) if one[0] not in asked and one[1] not in new}
    assert pairs(PARTS.known) == expected
    assert PARTS.known.items["key"].to_pylist() == PARTS.whole.item_keys[: PARTS.first_new].tolist()
    titles = dict(zip(LOG.item_keys, LOG.items["title"].to_pylist(), strict=True))
    assert PARTS.whole.items["title"].to_pylist() == [titles[key] for key in PARTS.whole.item_keys]
    again, other = withhold(LOG, 0.1, 0.3, 0), withhold(LOG, 0.1, 0.3, 1)
    assert set(again.whole.item_keys[again.first_new :]) == new != set(other.whole.item_keys[other.first_new :])


def test_questions_are_of_asked_users_alone_and_grouped_by_history() -> None:
    asked = questions_about(PARTS.whole, PARTS.asked_mask, PARTS.first_new, 40, 0)
    assert list(asked) == [COLD, "1", "2", "3-5", "6+"]
    for group, rows in asked.items():
        assert PARTS.asked_mask[rows.user_ids].all()
        np.testing.assert_array_equal(PARTS.whole.item_ids[rows.ends], rows.target_ids)
        np.testing.assert_array_equal(PARTS.whole.offsets[rows.user_ids], rows.starts)
        assert ((rows.target_ids >= PARTS.first_new) == (group == COLD)).all()
        assert 0 < len(rows) <= (40 if group == COLD else 10)
        low, high = {COLD: (1, 99), "1": (1, 1), "2": (2, 2), "3-5": (3, 5), "6+": (6, 99)}[group]
        assert ((rows.ends - rows.starts >= low) & (rows.ends - rows.starts <= high)).all()


def test_questions_move_between_views_of_the_log() -> None:
    mask = np.random.default_rng(0).random(PARTS.whole.num_events) < 0.7
    kept = PARTS.whole.keep(mask)
    for rows in questions_about(kept, PARTS.asked_mask, PARTS.first_new, 40, 0).values():
        moved = among_all(rows, PARTS.whole, mask)
        np.testing.assert_array_equal(PARTS.whole.item_ids[moved.ends], rows.target_ids)
        np.testing.assert_array_equal(PARTS.whole.times[moved.ends], kept.times[rows.ends])
        log, bare = without_new(kept, rows, PARTS.first_new)
        assert (log.item_ids < PARTS.first_new).all()
        for row in range(len(rows)):
            history = kept.item_ids[rows.starts[row] : rows.ends[row]]
            expected = history[history < PARTS.first_new]
            np.testing.assert_array_equal(log.item_ids[bare.starts[row] : bare.ends[row]], expected)


def test_figures_are_counted_from_the_ranks() -> None:
    asked = questions_about(PARTS.whole, PARTS.asked_mask, PARTS.first_new, 12, 0)
    ranks = {group: np.zeros(len(rows), np.int32) for group, rows in asked.items()}
    first = {**ranks, COLD: np.where(np.arange(len(asked[COLD])) % 2, 15, 1).astype(np.int32)}
    record = summary({"a": Measured(first, 0.2, 0.3), "b": Measured(ranks, 0.0, 0.0)}, asked, 20, 80, 8, "b", 50)
    cold, share = record["models"]["a"]["groups"][COLD], np.mean(first[COLD] == 1)
    assert cold["recall@20"]["value"] == 1
    assert cold["recall@10"]["value"] == pytest.approx(share)
    assert record["models"]["a"]["times_chance"] == pytest.approx(80 / 20)
    assert record["models"]["a"]["against"]["difference"] == 1
    head, rows = cold_rows(record | {"model": "a"})
    assert [row[0] for row in rows] == ["a", "b", "uniform"]
    assert all(len(row) == len(head) for row in rows)


@pytest.mark.parametrize(
    ("shares", "words"), [((0.001, 0.2), "0.001 of 80 items"), ((0.999, 0.2), "cannot be withheld")]
)
def test_shares_that_leave_nothing_are_refused(shares: tuple[float, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        withhold(LOG, *shares, seed=0)
    for bad in ({"item_share": 0.0}, {"quota": 1.0}, {"k": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            ColdConfig(**bad)


RECIPE = """[catalog]
vectors = ["tfidf"]
[catalog.quantizer]
num_levels = 2
codebook_size = 8
[model]
name = "{name}"
{keys}
[fit]
max_steps = 60
eval_every_epochs = 0
batch_size = 64
lr = 5e-3
[eval]
bootstrap = 20
latency_rows = 0
free_rows = 0
baselines = ["popularity"]
"""
SIDERA = "width = 16\nnum_layers = 1\nnum_heads = 1\ndropout = 0.0\nmax_history = 12"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cold")
    LOG.save(place / "log")
    (place / "r.toml").write_text(RECIPE.format(name="sidera", keys=SIDERA))
    assert main(["run", "-q", str(place / "r.toml"), "--data", str(place / "log"), "--out", str(place / "run")]) == 0
    return place / "run"


def cold(run: Path, *flags: str) -> int:
    return main(["cold", str(run), "--data", str(run.parent / "log"), "--rows", "60", "--user-share", "0.3", *flags])


def test_a_run_is_measured_cold_once_and_stands_on_its_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cold(run) == 0
    said = capsys.readouterr()
    record = read_cold(run / "cold" / "report")
    assert list(record["models"]) == [
        "sidera", "content_knn", "transitions_text", "item_knn", "popularity", "sidera + quota",
    ]  # fmt: skip
    models = record["models"]
    assert models["content_knn"]["times_chance"] > 1
    assert models["sidera"]["groups"][COLD]["recall@50"]["value"] > 0
    assert models["popularity"]["groups"][COLD]["recall@10"]["value"] == 0
    assert models["sidera + quota"]["new_share@50"] >= models["sidera"]["new_share@50"]
    assert "uniform" in said.out
    assert set(record["quota"]) == {"new", "known"}
    assert record["quota"]["new"]["difference"] >= 0
    page = (run / "report.html").read_text()
    assert page.count("<h2>Cold start</h2>") == 1
    assert "8 of 80 items came after the training" in page
    assert page.count("<h2>Training</h2>") == 1
    before = {
        file: file.stat().st_mtime_ns
        for file in (run / "cold").rglob("*")
        if file.is_file() and file.name != "recipe.json"
    }
    assert cold(run) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before  # nothing was made again
    json.loads((run / "cold" / "report" / "cold.json").read_text())


def test_models_that_read_no_new_item_are_measured_too(run: Path) -> None:
    place = run.parent / "knn"
    shutil.copytree(run, place)
    shutil.rmtree(place / "cold", ignore_errors=True)
    section: Any = json.loads((place / "recipe.json").read_text())
    section["model"] = {"name": "item_knn"}
    (place / "recipe.json").write_text(json.dumps(section))
    assert cold(place) == 0
    record = read_cold(place / "cold" / "report")
    assert record["models"]["item_knn"]["groups"][COLD]["recall@50"]["value"] == 0
    assert record["models"]["item_knn"]["groups"]["6+"]["recall@10"]["value"] > 0


def test_bad_flags_and_rankers_are_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cold(run, "--item-share", "1.5") == 2
    assert "item_share = 1.5 is out of range" in capsys.readouterr().err
    place = run.parent / "ranker"
    place.mkdir()
    section: Any = json.loads((run / "recipe.json").read_text())
    (place / "recipe.json").write_text(json.dumps(section | {"model": {"name": "pscore"}}))
    assert cold(place) == 2
    assert "'pscore' answers no lists" in capsys.readouterr().err
