"""Laws that are known are found again; what cannot be fitted is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidera.core import ArtifactError, InputError
from sidera.eval.scaling import PowerLaw, SizeRun, compute_frontier, fit_power_law, fit_scaling
from sidera.eval.scaling_record import read_runs, save_record, scaling_record

SIZES = np.array([20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_300_000])
LAW = PowerLaw(E=2.4, A=30.0, a=0.4)


def runs_of(law: PowerLaw, noise: float = 0.0, seeds: int = 1, seed: int = 0, blocks: int = 50) -> list[SizeRun]:
    """Runs on a law: blocks of users that are easy or hard for every size alike, and a random shift of each run."""
    rng = np.random.default_rng(seed)
    users = rng.normal(0, 0.2, blocks)
    users -= users.mean()
    counts = tuple([40] * blocks)
    runs = []
    for number in range(seeds):
        for size in SIZES:
            loss = float(law(size)) * (1 + noise * rng.normal())
            curve = tuple((float(size) * 1e7 * share, loss + 0.3 * (1 - share)) for share in (0.25, 0.5, 1.0))
            sums = tuple(((loss + users) * 40).tolist())
            runs.append(SizeRun(f"s{size}", number, int(size), float(size) * 1e7, sums, counts, curve))
    return runs


@pytest.mark.parametrize("law", [LAW, PowerLaw(0.5, 4.0, 0.1), PowerLaw(3.13, 3660.0, 0.489), PowerLaw(0.0, 9.0, 0.2)])
def test_known_constants_are_recovered(law: PowerLaw) -> None:
    found = fit_power_law(SIZES, law(SIZES))
    assert found.a == pytest.approx(law.a, rel=0.01)
    assert law.E - 0.02 < found.E < law.E + 0.02
    assert found(3e6) == pytest.approx(float(law(3e6)), rel=1e-3)


def test_the_law_of_onerec_v2_from_its_own_table() -> None:
    """2508.20900: 3.13 + 3660 / N^0.489 from the seven dense sizes; the losses are printed to 0.01."""
    parameters = [0.1e9, 0.2e9, 0.5e9, 1e9, 2e9, 4e9, 8e9]
    found = fit_power_law(parameters, [3.57, 3.46, 3.33, 3.27, 3.23, 3.20, 3.19])
    assert abs(found.E - 3.13) < 0.03
    assert found.a == pytest.approx(0.489, abs=0.1)


def test_one_bad_run_does_not_bend_the_curve() -> None:
    losses = LAW(SIZES)
    losses[2] *= 1.05
    found = fit_power_law(SIZES, losses)
    assert found(1.3e6) == pytest.approx(float(LAW(1.3e6)), rel=0.002)


def test_losses_that_do_not_fall_give_a_flat_law() -> None:
    found = fit_power_law(SIZES, 2.0 + 0.01 * np.arange(7))
    assert found(1e4) == pytest.approx(found(1e7), rel=1e-6)


def test_largest_run_is_foretold_and_its_loss_not_looked_at() -> None:
    runs = runs_of(LAW)
    found = fit_scaling(runs, resamples=20)
    assert found.prediction.name == f"s{SIZES[-1]}"
    assert found.prediction.error < 1e-3 < found.prediction.error_without_law
    spoiled = replace(runs[-1], loss_sums=tuple(2 * value for value in runs[-1].loss_sums))
    again = fit_scaling([*runs[:-1], spoiled], resamples=20)
    assert again.prediction.predicted.value == found.prediction.predicted.value
    assert again.law["E"].value != found.law["E"].value


def test_intervals_cover_the_truth() -> None:
    """Of repeated experiments with noisy runs, nearly all put the true loss of the largest size into the interval."""
    covered = 0
    for seed in range(10):
        found = fit_scaling(runs_of(LAW, noise=0.002, seeds=2, seed=seed, blocks=5), resamples=40).prediction
        covered += found.predicted.low <= LAW(SIZES[-1]) <= found.predicted.high
    assert covered >= 8


def test_more_noise_gives_wider_intervals() -> None:
    quiet, loud = (fit_scaling(runs_of(LAW, noise, seeds=2), resamples=40).prediction.gap for noise in (1e-4, 1e-2))
    assert loud.half_width > 5 * quiet.half_width


def test_spread_over_seeds() -> None:
    assert fit_scaling(runs_of(LAW), resamples=10).seed_spread is None
    spread = fit_scaling(runs_of(LAW, noise=0.01, seeds=3), resamples=10).seed_spread
    assert spread == pytest.approx(0.01 * LAW(1e5), rel=0.5)


def test_frontier_holds_only_points_that_nothing_cheaper_beats() -> None:
    small = SizeRun("s", 0, 10, 2.0, (1.0,), (1,), ((1.0, 5.0), (2.0, 4.0)))
    large = SizeRun("l", 0, 20, 8.0, (1.0,), (1,), ((2.0, 4.5), (4.0, 3.0), (8.0, 3.1)))
    assert compute_frontier([small, large]) == ((1.0, 5.0, "s"), (2.0, 4.0, "s"), (4.0, 3.0, "l"))


def test_what_cannot_be_fitted_is_refused() -> None:
    runs = runs_of(LAW)
    with pytest.raises(InputError, match="3 sizes are too few"):
        fit_power_law(SIZES[:3], LAW(SIZES[:3]))
    with pytest.raises(InputError, match="4 sizes are too few"):
        fit_scaling(runs[:4])
    with pytest.raises(InputError, match="0 sizes are too few"):
        fit_scaling([])
    with pytest.raises(InputError, match="a loss is nan"):
        fit_power_law(SIZES, [*LAW(SIZES[:-1]), float("nan")])
    with pytest.raises(InputError, match="a loss is nan"):
        fit_scaling([*runs[:-1], replace(runs[-1], loss_sums=tuple([float("nan")] * 50))])
    with pytest.raises(InputError, match="other rows"):
        fit_scaling([*runs[:-1], replace(runs[-1], counts=tuple([41] * 50))])


def test_record_and_runs(tmp_path: Path) -> None:
    runs = runs_of(LAW)
    result = fit_scaling(runs, resamples=10)
    facts = [{"name": run.name, "seed": 0, "lr": 1e-3, "cpu_seconds": 1.0} for run in runs]
    file = save_record(scaling_record(result, runs, facts, {"rows": 10, "slice_targets": 5}), tmp_path)
    assert read_runs(file) == runs
    record = json.loads(file.read_text())
    assert record["fit"]["prediction"]["error"] == result.prediction.error
    file.write_text('{"runs": [{}]}')
    with pytest.raises(ArtifactError, match="holds no runs"):
        read_runs(file)
