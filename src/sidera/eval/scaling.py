"""Scaling laws: L(N) = E + A / N^a from one-pass runs of several sizes, and L(C) along their compute frontier.

Procedure (OneRec-V2, 2508.20900, 3.4; Hoffmann et al. 2203.15556, approach 3): every run sees the same rows once; the
loss is measured on one later slice of the log, the same for all; the largest run is left out of the fit and predicted.

The fit minimises a Huber loss of relative residuals (to first order those of log L), so that one bad run does not bend
the curve. For a given exponent the rest is a convex problem in (E, A), solved by reweighted least squares; the exponent
is searched on a grid that is refined twice. There is no start to choose and no local minimum to be caught in.

Intervals are percentile bootstraps that redraw the *users* of the slice, alike for all runs (whose losses go up and
down together), and the *runs* themselves. Traps: three numbers fitted to seven points are loosely held (E and a trade
against each other), so a prediction can be sharp where its exponent is not; and a loss that hardly falls is easy to
predict, so the error is also given beside that of "as good as the next smaller one".

Shape legend: R runs · U blocks of users · S resamples · P points of a fit · X exponents of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.eval.bootstrap import Estimate

MIN_SIZES = 4  # three numbers are fitted: fewer leave nothing to judge the fit by
HUBER = 1e-3  # relative residuals beyond this count linearly
EXPONENTS = np.geomspace(0.01, 4.0, 61)
ITERATIONS = 15  # of the reweighting

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SizeRun:
    """One training of one size: what the fits need of it."""

    name: str  # "64x4": width x layers
    seed: int
    parameters: int  # without embeddings
    flops: float  # of the whole training, forward and backward
    loss_sums: tuple[float, ...]  # (U,) summed loss of the slice by block of users
    counts: tuple[int, ...]  # (U,) targets of each block
    curve: tuple[tuple[float, float], ...] = ()  # (FLOPs so far, loss on the validation slice)

    @property
    def loss(self) -> float:
        """Mean over the slice's targets."""
        return sum(self.loss_sums) / sum(self.counts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"loss": self.loss}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SizeRun:
        plain = {name: values[name] for name in ("name", "seed", "parameters", "flops")}
        curve = tuple((float(flops), float(loss)) for flops, loss in values["curve"])
        return cls(**plain, loss_sums=tuple(values["loss_sums"]), counts=tuple(values["counts"]), curve=curve)


@dataclass(frozen=True)
class PowerLaw:
    """``E + A / x^a``."""

    E: float
    A: float
    a: float

    def __call__(self, x: float | Array) -> Any:
        return self.E + self.A * np.asarray(x, dtype=np.float64) ** -self.a


def fit_power_law(x: Sequence[float] | Array, losses: Sequence[float] | Array) -> PowerLaw:
    """The curve through points (P,); InputError for fewer than four different x, or losses that are no numbers."""
    x, losses = _checked(x, losses)
    E, A, a = _fit_many(x, losses[None], np.ones((1, len(x))))
    return PowerLaw(float(E[0]), float(A[0]), float(a[0]))


@dataclass(frozen=True)
class Prediction:
    """The largest run, predicted by the others."""

    name: str
    parameters: int
    predicted: Estimate
    observed: float
    next_smaller: float  # loss of the largest size that was fitted
    gap: Estimate  # (predicted - observed) / observed, both on the same drawn users

    @property
    def error(self) -> float:
        """|predicted - observed| / observed."""
        return abs(self.predicted.value - self.observed) / self.observed

    @property
    def error_without_law(self) -> float:
        """The error of expecting no gain over the next smaller size."""
        return abs(self.next_smaller - self.observed) / self.observed

    def summary(self) -> str:
        """One line for the terminal and the page."""
        return (
            f"{self.name} (N = {self.parameters:,}) was left out: predicted {self.predicted.value:.4f}, measured"
            f" {self.observed:.4f}, {100 * self.error:.2f} % off; no gain over the next smaller size would be"
            f" {100 * self.error_without_law:.2f} % off"
        )


@dataclass(frozen=True)
class Scaling:
    """Everything that the runs say."""

    law: Mapping[str, Estimate]  # E, A, a of all runs
    held_out: Mapping[str, Estimate]  # E, A, a without the largest size
    prediction: Prediction
    frontier: tuple[tuple[float, float, str], ...]  # (FLOPs, loss, size) of the best points for their compute
    compute_law: Mapping[str, Estimate]  # E, A, a of L(C)
    seed_spread: float | None  # standard deviation of the loss over seeds of one size; None: one seed each

    def to_json(self) -> dict[str, Any]:
        shares = {"error": self.prediction.error, "error_without_law": self.prediction.error_without_law}
        values = asdict(self)
        values["prediction"] |= shares
        return values


def fit_scaling(runs: Sequence[SizeRun], resamples: int = 500, seed: int = 0) -> Scaling:
    """Both laws with intervals, and the largest size predicted from the others.

    InputError for fewer than four sizes below the largest, for losses that are no numbers, and for runs that were not
    measured on the same rows.
    """
    runs = sorted(runs, key=lambda run: (run.parameters, run.seed))
    _check_runs(runs)
    sizes = np.array([run.parameters for run in runs], dtype=np.float64)
    losses, weights = _resampled(runs, resamples, seed)  # (1 + S, R) each; the first is the data as it is
    smaller = sizes < sizes[-1]
    whole = _estimates(_fit_many(sizes, losses, weights))
    fitted = _fit_many(sizes, losses, weights * smaller)
    E, A, a = fitted
    forecast = E + A * sizes[-1] ** -a
    of_size = {name: [run.loss for run in runs if run.name == name] for name in dict.fromkeys(run.name for run in runs)}
    means = [float(np.mean(sample)) for sample in of_size.values()]
    observed = losses[:, ~smaller].mean(1)
    prediction = Prediction(
        name=runs[-1].name,
        parameters=runs[-1].parameters,
        predicted=_estimate(forecast),
        observed=means[-1],
        next_smaller=means[-2],
        gap=_estimate(forecast / observed - 1),
    )
    several = [np.var(sample, ddof=1) for sample in of_size.values() if len(sample) > 1]
    points, compute_law = _along_frontier(runs, min(resamples, 200), seed)
    return Scaling(
        law=whole,
        held_out=_estimates(fitted),
        prediction=prediction,
        frontier=points,
        compute_law=compute_law,
        seed_spread=float(np.sqrt(np.mean(several))) if several else None,
    )


def compute_frontier(runs: Sequence[SizeRun]) -> tuple[tuple[float, float, str], ...]:
    """(FLOPs, loss, size) of every point of the learning curves that no cheaper or equally cheap point beats."""
    points = sorted((flops, loss, run.name) for run in runs for flops, loss in run.curve)
    best, frontier = np.inf, []
    for flops, loss, name in points:
        if loss < best:
            best = loss
            frontier.append((flops, loss, name))
    return tuple(frontier)


def _along_frontier(
    runs: Sequence[SizeRun], resamples: int, seed: int
) -> tuple[tuple[tuple[float, float, str], ...], dict[str, Estimate]]:
    """The frontier, and L(C) on it with intervals from redrawn runs."""
    points = compute_frontier(runs)
    rng = np.random.default_rng((seed, 1))
    laws = []
    for number in range(resamples + 1):
        drawn = rng.integers(len(runs), size=len(runs)) if number else np.arange(len(runs))
        frontier = points if number == 0 else compute_frontier([runs[position] for position in drawn])
        if number and len(frontier) < MIN_SIZES:
            continue
        x, y = [flops for flops, _, _ in frontier], [loss for _, loss, _ in frontier]
        law = fit_power_law(x, y)
        laws.append((law.E, law.A, law.a))
    return points, _estimates(tuple(np.array(laws).T))


def _resampled(runs: Sequence[SizeRun], resamples: int, seed: int) -> tuple[Array, Array]:
    """Losses and weights of the runs, (1 + S, R) each: as they are, then with users and runs drawn again."""
    rng = np.random.default_rng(seed)
    sums = np.array([run.loss_sums for run in runs])  # (R, U)
    counts = np.array(runs[0].counts, dtype=np.float64)  # (U,)
    names = np.array([run.parameters for run in runs])
    smaller = names < names[-1]
    losses, weights = [sums.sum(1) / counts.sum()], [np.ones(len(runs))]
    while len(losses) <= resamples:
        drawn_users = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts))
        drawn_runs = np.bincount(rng.integers(len(runs), size=len(runs)), minlength=len(runs))
        if len(set(names[smaller & (drawn_runs > 0)])) < MIN_SIZES or drawn_users @ counts == 0:
            continue  # no fit can be made of these
        losses.append(sums @ drawn_users / (counts @ drawn_users))
        weights.append(drawn_runs.astype(np.float64))
    return np.stack(losses), np.stack(weights)


def _fit_many(x: Array, losses: Array, weights: Array) -> tuple[Array, Array, Array]:
    """E, A, a (S,) of every row of losses (S, P), points weighted by weights (S, P)."""
    scale = float(np.exp(np.log(x).mean()))  # so that A is of the losses' size while it is searched
    exponents = np.broadcast_to(EXPONENTS, (len(losses), len(EXPONENTS)))
    rows = np.arange(len(losses))
    for _ in range(3):
        cost, E, A = _given_exponents(x / scale, losses, weights, exponents)
        best = cost.argmin(1)
        low = exponents[rows, np.maximum(best - 1, 0)]
        high = exponents[rows, np.minimum(best + 1, exponents.shape[1] - 1)]
        E, A, a = E[rows, best], A[rows, best], exponents[rows, best]
        exponents = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 31)
    return E, A * scale**a, a


def _given_exponents(x: Array, losses: Array, weights: Array, exponents: Array) -> tuple[Array, Array, Array]:
    """Cost, E and A (S, X) of the best curve with each exponent (S, X); E and A are not negative."""
    power = x ** -exponents[..., None]  # (S, X, P)
    y = losses[:, None]  # (S, 1, P)
    base = np.broadcast_to((weights / losses**2)[:, None], power.shape)  # relative residuals
    w = base
    for _ in range(ITERATIONS):
        E, A = _two_numbers(power, y, w)
        size = np.abs(E[..., None] + A[..., None] * power - y) / y
        w = base * np.minimum(1.0, HUBER / np.maximum(size, 1e-300))
    huber = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
    return (weights[:, None] * huber).sum(-1), E, A


def _two_numbers(power: Array, y: Array, w: Array) -> tuple[Array, Array]:
    """Weighted least squares of ``E + A power = y`` over the last axis, with E >= 0 and A >= 0."""
    w_sum, wp, wpp = w.sum(-1), (w * power).sum(-1), (w * power**2).sum(-1)
    wy, wpy = (w * y).sum(-1), (w * power * y).sum(-1)
    determinant = np.maximum(w_sum * wpp - wp**2, 1e-300)
    E, A = (wpp * wy - wp * wpy) / determinant, (w_sum * wpy - wp * wy) / determinant
    A = np.where(E < 0, wpy / wpp, A)
    E = np.where(A < 0, wy / w_sum, np.maximum(E, 0.0))
    return E, np.maximum(A, 0.0)


def _estimate(drawn: Array) -> Estimate:
    low, high = np.percentile(drawn[1:] if len(drawn) > 1 else drawn, [2.5, 97.5])
    return Estimate(float(drawn[0]), float(low), float(high))


def _estimates(numbers: tuple[Array, ...]) -> dict[str, Estimate]:
    return {name: _estimate(drawn) for name, drawn in zip(("E", "A", "a"), numbers, strict=True)}


def _checked(x: Sequence[float] | Array, losses: Sequence[float] | Array) -> tuple[Array, Array]:
    x, losses = np.asarray(x, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    for name, values in (("size", x), ("loss", losses)):
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise InputError(f"a {name} is {values[bad][0]}", allowed="finite numbers above 0", fix="leave the run out")
    if len(set(x.tolist())) < MIN_SIZES:
        raise InputError(
            f"{len(set(x.tolist()))} sizes are too few to fit three numbers", allowed=f"{MIN_SIZES} or more"
        )
    return x, losses


def _check_runs(runs: Sequence[SizeRun]) -> None:
    for run in runs:
        if run.counts != runs[0].counts:
            raise InputError(
                f"runs {runs[0].name} and {run.name} were measured on other rows", fix="give runs of one data folder"
            )
    largest = max((run.parameters for run in runs), default=0)
    smaller = [run for run in runs if run.parameters < largest]
    if len({run.parameters for run in smaller}) < MIN_SIZES:
        raise InputError(
            f"{len({run.parameters for run in runs})} sizes are too few: the largest is predicted from the others",
            allowed=f"{MIN_SIZES + 1} or more",
            fix="add sizes, e.g. --sizes 16x2 24x2 32x3 48x3 64x4 96x5",
        )
    _checked([run.parameters for run in runs], [run.loss for run in runs])
