"""``sidera scale`` on a log of seconds: rows seen once, sizes kept and reused, refusals before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidera.cli import main
from sidera.core import InputError
from sidera.data.batches import RequestRows
from sidera.eval.scaling_record import read_runs
from sidera.sim.config import world_config
from sidera.sim.simulate import simulate
from sidera.train.recipe import Recipe
from sidera.train.scale import ScaleOptions, factor_at, lr_rule, one_pass, open_stream, sized

RECIPE = Path(__file__).parents[2] / "recipes" / "world" / "scaling.toml"
QUICK = ["catalog.quantizer.codebook_size=8", "model.max_history=8", "model.short_term=8", "fit.warmup_steps=5"]
SIZES = ("8x1", "16x1", "16x2", "24x2", "32x2")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few items, users and days."""
    folder = tmp_path_factory.mktemp("scale") / "log"
    small = {"num_items": 200, "num_topics": 8, "num_creators": 40, "num_candidates": 20, "arrival_days": 3.0}
    simulate(world_config("easy", small), 150, 4, folder)
    return folder


def quick_recipe(*overrides: str) -> Recipe:
    return Recipe.read(RECIPE, [*QUICK, *overrides])


def arguments(log: Path, out: Path, *more: str) -> list[str]:
    sets = [part for override in QUICK for part in ("--set", override)]
    plan = ["--sizes", *SIZES, "--lr-factors", "1", "2", "--seeds", "2", "--repeated", "1", "--rows", "400"]
    return ["scale", str(RECIPE), "--data", str(log), "--out", str(out), *plan, *sets, *more]


def test_scale_from_the_shell_and_again(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(arguments(log, out)) == 0
    said = capsys.readouterr().out
    assert said.count("trial") == 6  # three sizes, two factors
    assert "32x2 (N = " in said
    record = json.loads((out / "scaling.json").read_text())
    runs = read_runs(out / "scaling.json")
    assert [run.name for run in runs] == ["8x1", *SIZES]  # the smallest twice
    assert record["facts"][0]["seed"] != record["facts"][1]["seed"]
    assert all(np.isfinite(run.loss) and run.loss < np.log(8) + 0.5 for run in runs)
    assert all(run.curve[-1][0] == run.flops for run in runs)  # the last point is the whole run
    assert [run.parameters for run in runs] == sorted(run.parameters for run in runs)
    assert {sum(run.counts) for run in runs} == {record["context"]["slice_targets"]}
    rates = {row["name"]: row["lr"] for row in record["facts"]}
    assert rates["8x1"] > rates["32x2"]
    logged = [json.loads(line) for line in (out / "fit" / "8x1-s0" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["mfu"] > 0 for line in logged if line["event"] == "train")

    assert main(arguments(log, out)) == 0
    again = capsys.readouterr().out
    assert again.count("reused") == 1 + len(runs)  # the catalogue too
    assert json.loads((out / "scaling.json").read_text()) == record


def test_every_row_is_seen_once_in_the_order_of_time(log: Path, tmp_path: Path) -> None:
    stream = open_stream(quick_recipe(), log, tmp_path, None, lambda _: None)
    config = one_pass(quick_recipe("fit.epochs=7", "fit.patience=3").fit, 1e-3, 0, stream.train.num_batches())
    assert (config.epochs, config.patience, config.max_minutes) == (1, 0, None)
    seen = [batch.requests.as_of for batch in stream.train.batches(0)]
    assert sum(len(moments) for moments in seen if moments is not None) == stream.train.num_rows
    ends = [moments.max() for moments in seen if moments is not None]
    starts = [moments.min() for moments in seen if moments is not None]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    moments = [rows.reading.dataset.times[rows.ends] for rows in (stream.train, stream.valid, stream.test)]
    assert moments[0].max() < moments[1].min() <= moments[1].max() < moments[2].min()
    shared = set(stream.train.targets) & set(stream.test.targets)
    assert not shared


def test_rows_keep_the_newest(log: Path, tmp_path: Path) -> None:
    whole, part = (open_stream(quick_recipe(), log, tmp_path, rows, lambda _: None) for rows in (None, 100))
    assert 100 <= part.train.num_rows < 110  # requests of one second stay together
    assert part.train.ends.tolist() == sorted(set(whole.train.ends.tolist()) & set(part.train.ends.tolist()))
    kept = whole.train.reading.dataset.times[part.train.ends].min()
    assert (whole.train.reading.dataset.times[whole.train.ends] >= kept).sum() == part.train.num_rows
    assert part.train.digest != whole.train.digest


def test_between_cuts_rows_and_keeps_their_targets(log: Path, tmp_path: Path) -> None:
    rows = open_stream(quick_recipe(), log, tmp_path, None, lambda _: None).train
    assert isinstance(rows, RequestRows)
    middle = int(np.median(rows.reading.dataset.times[rows.ends]))
    early, late = rows.between(-np.inf, middle), rows.between(middle, np.inf)
    assert early.num_rows + late.num_rows == rows.num_rows
    both = np.concatenate([early.targets, late.targets])
    assert sorted(both.tolist()) == rows.targets.tolist()
    with pytest.raises(InputError, match="nothing to train on"):
        rows.between(0, 1)


def test_models_of_another_kind_are_refused() -> None:
    sections = {"data": {}, "catalog": {}, "model": {"name": "sasrec"}, "fit": {}, "eval": {}}
    with pytest.raises(InputError, match="cannot size"):
        sized(Recipe.parse(sections), "64x2")


def test_sizes_keep_head_width_and_ratio() -> None:
    recipe = quick_recipe("model.num_kv_groups=4", "model.num_experts=4", "model.expert_width=32")
    config = sized(recipe, "128x6").model_config
    assert (config.width, config.num_layers, config.num_heads, config.num_kv_groups) == (128, 6, 16, 8)
    assert (config.ff_width, config.expert_width) == (256, 64)
    assert lr_rule(5e-4, int(0.1e9), int(8e9)) == pytest.approx(5.59e-5, rel=1e-3)  # OneRec-V2, table 3


def test_rates_follow_a_slope_between_the_sizes_that_were_tried() -> None:
    best = {1_000: 4.0, 100_000: 1.0}
    assert factor_at(1_000, best) == pytest.approx(4.0)
    assert factor_at(10_000, best) == pytest.approx(2.0)
    assert factor_at(10, best) == pytest.approx(4.0)
    assert factor_at(10**7, best) == pytest.approx(1.0)
    assert factor_at(5, {7: 2.0}) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sizes": ("16x1", "16x2", "32x2")}, "3 sizes are too few"),
        ({"seeds": 0}, "--seeds = 0"),
        ({"rows": 0}, "--rows = 0"),
        ({"lr_factors": (0.0,)}, "--lr-factors"),
        ({"cpu_hours": 0.0}, "--cpu-hours"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        replace(ScaleOptions(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--device", "tpu"], "device 'tpu'"),
        (["--sizes", "8x1", "9x1", "16x1", "24x1", "32x1"], "'9x1'"),
        (["--sizes", "8x1", "wide", "16x1", "24x1", "32x1"], "'wide' is no size"),
        (["--set", "data.split=leave_one_out"], "a stream is cut in time"),
        (["--cpu-hours", "1e-6"], "the plan needs about"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert main(arguments(log, tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert named in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out" / "scaling.json").exists()
