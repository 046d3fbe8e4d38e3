"""Accuracy claims: recipes run with several seeds, measured on the test rows, written as one result file.

    python benchmarks/beauty_generator.py [--quick]

Every script of the accuracy claims names its contestants and its bar and calls :func:`run_claim`. Runs are kept under
``runs/bench`` and reused by digest, so contestants that several claims share are trained once. Recipes are used as they
are; ``--quick`` alone shortens training, samples the rows and replaces MiniLM by TF-IDF (encoding takes minutes where
nothing is cached), and says so in its line.

The trials behind the recipes (chosen on validation rows) are listed in ``results/trials.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import arguments, finish, single_thread
from result_tables import result_file

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SEEDS = (0, 1, 2)
QUICK: dict[str, dict[str, Any]] = {
    "fit": {"max_minutes": 0.65, "clock": "cpu", "eval_every_epochs": 0, "precision": "f32"},
    "eval": {"max_rows": 1000, "valid_rows": 500, "latency_rows": 0, "free_rows": 0, "bootstrap": 200},
}


@dataclass(frozen=True)
class Contestant:
    """One row of a table: a recipe with overrides, trained once per seed."""

    label: str
    recipe: str  # below recipes/
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    fits: tuple[str, ...] = ("train",)  # "train+valid": the same run refitted with its validation events


@dataclass(frozen=True)
class Claim:
    """Which figures of which contestant must reach what."""

    name: str
    title: str
    data: str  # folder below the shared data
    contestants: Sequence[Contestant]
    claimed: str  # label of the contestant that the bar is for
    bars: Mapping[str, float] = field(default_factory=dict)  # "keep/recall@10", "refit/keep/recall@10" -> at least
    above: Sequence[str] = ()  # labels over which its paired NDCG@10 is clearly above 0, in every mode and fit
    at_least: Sequence[str] = ()  # labels that its paired NDCG@10 is not below, in every mode and fit
    max_cpu_minutes: float | None = None  # that its training may take
    quick: Sequence[str] = ()  # labels that --quick runs; empty: the claimed one
    quick_overrides: Sequence[str] = ()  # of --quick, behind QUICK: for models that need a smaller share of a minute


def run_claim(claim: Claim, doc: str | None, flags: Callable[[argparse.ArgumentParser], object] | None = None) -> None:
    """Train and measure what is missing, write ``results/NAME.json``, print the claim's line.

    ``flags`` adds the options that the caller has read already, so that they are known here and in the command kept.
    """

    def all_flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seeds", type=int, help="only so many seeds")
        parser.add_argument("--one-seed", type=int, help="only train and measure this seed, for a later whole run")
        if flags is not None:
            flags(parser)

    options = arguments(doc, all_flags)
    single_thread()
    data = DATA / claim.data
    if not data.is_dir():
        raise SystemExit(f"{data} is absent: this claim needs the public data folder beside the checkout")
    wanted = claim.quick or (claim.claimed,) if options.quick else [one.label for one in claim.contestants]
    evaluations = []
    for contestant in claim.contestants:
        if contestant.label in wanted:
            seeds = contestant.seeds[:1] if options.quick else contestant.seeds[: options.seeds]
            if options.one_seed is not None:
                seeds = tuple(seed for seed in seeds if seed == options.one_seed)
            evaluations += [
                evaluate_seed(contestant, data, seed, options.quick, claim.quick_overrides, fit)
                for seed in seeds
                for fit in contestant.fits[: 1 if options.quick else None]
            ]
    if options.one_seed is not None:
        return
    value = means(evaluations, claim.claimed)
    details = result(claim, evaluations)
    minutes = [one.info["training"].get("cpu_minutes", 0.0) for one in evaluations if one.name == claim.claimed]
    unclear = not_above(claim, details["paired_first_seed"])
    passed = all(value.get(name, 0.0) >= bar for name, bar in claim.bars.items()) and not unclear
    passed = passed and (claim.max_cpu_minutes is None or max(minutes) <= claim.max_cpu_minutes)
    context = {
        "protocol": protocol(evaluations),
        "seeds": {label: len({one.info.get("seed") for one in evaluations if one.name == label}) for label in wanted},
        "cpu_minutes": max(minutes),
        "not_clearly_above": unclear,
    }
    limit = {} if claim.max_cpu_minutes is None else {"cpu_minutes, at most": claim.max_cpu_minutes}
    finish(claim.name, value, {**claim.bars, **limit} or None, passed, context, options.quick, details=details)


def evaluate_seed(
    contestant: Contestant, data: Path, seed: int, quick: bool, quick_overrides: Sequence[str] = (), fit: str = "train"
) -> Any:
    """Train (or reuse) one contestant with one seed and measure it on the test rows.

    A refit goes on from a copy of the run that was fitted without the validation events.
    """
    import shutil
    from dataclasses import replace

    from sidera.train.recipe import Recipe
    from sidera.train.stages import run

    overrides = [*contestant.overrides, f"fit.seed={seed}"]
    if quick:
        overrides += [
            f"{section}.{key}={_toml(value)}" for section, keys in QUICK.items() for key, value in keys.items()
        ]
        kinds = Recipe.read(ROOT / "recipes" / contestant.recipe, overrides).catalog.vectors
        overrides += quick_overrides
        overrides.append(f"catalog.vectors={[kind.replace('text', 'tfidf') for kind in kinds]}")
    recipe = Recipe.read(ROOT / "recipes" / contestant.recipe, overrides)
    stem = contestant.recipe.removesuffix(".toml")
    folder = f"{data.name}/{recipe.data.split}/{stem}/{contestant.label}-{seed}".replace(" ", "_")
    out = Path(os.environ.get("SIDERA_BENCH_RUNS", ROOT / "runs" / "bench")) / ("quick" if quick else "full") / folder
    if fit != "train":
        plain, out = out, out.with_name(f"{out.name}-refit")
        if not out.exists():
            shutil.copytree(plain, out, ignore=shutil.ignore_patterns("evaluation*", "baselines"))
        recipe = replace(recipe, fit=replace(recipe.fit, refit=True))
    found = run(recipe, data, out)
    assert found is not None, "benchmark recipes have no piece limit"
    return replace(found, name=contestant.label)


def means(evaluations: Sequence[Any], label: str) -> dict[str, float]:
    """seen/metric -> mean over the label's seeds; refit/seen/metric where it was fitted on validation events too."""
    from sidera.eval.evaluation import fit_of

    by_fit: dict[str, list[Any]] = {}
    for one in evaluations:
        if one.name == label:
            by_fit.setdefault("" if fit_of(one) == "train" else "refit/", []).append(one)
    return {
        f"{prefix}{seen}/{metric}": round(statistics.mean(one.value(metric, seen) for one in mine), 5)
        for prefix, mine in by_fit.items()
        for seen in mine[0].metrics
        for metric in ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@50")
        if metric in mine[0].metrics[seen]
    }


def not_above(claim: Claim, paired: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Contestants, fits and modes over which the claimed one's paired NDCG@10 is not clearly above 0, or is below."""

    def is_of(name: str, labels: Sequence[str]) -> bool:
        return any(name.startswith(f"{claim.claimed} - {label}") for label in labels)

    return [
        f"{name}, {figure}"
        for name, figures in paired.items()
        for figure, (difference, low, _) in figures.items()
        if figure.endswith("ndcg@10")
        and ((is_of(name, claim.above) and low <= 0) or (is_of(name, claim.at_least) and difference < 0))
    ]


def protocol(evaluations: Sequence[Any]) -> str:
    from sidera.eval.evaluation import protocol_line

    return protocol_line(*(one.protocol for one in evaluations))


def result(claim: Claim, evaluations: Sequence[Any]) -> dict[str, Any]:
    """The result file: every seed's figures, the paired differences, the trials that chose the recipe."""
    from sidera import __version__
    from sidera.eval.compare import compare
    from sidera.eval.evaluation import fit_of

    first_of_fits = {(one.name, fit_of(one)): one for one in reversed(evaluations)}
    first_seeds = {name: one for (name, fit), one in first_of_fits.items() if fit == "train"}
    paired = {}
    for (other, fit), evaluation in first_of_fits.items():  # like with like: both without, or both with a refit
        if other != claim.claimed and (claim.claimed, fit) in first_of_fits:
            tests = compare(first_of_fits[claim.claimed, fit], evaluation).tests
            paired[f"{claim.claimed} - {other}" + ("" if fit == "train" else f", fit: {fit}")] = {
                f"{seen}/{metric}": [round(float(x), 5) for x in (test.difference, test.low, test.high)]
                for (seen, metric), test in tests.items()
                if metric in ("recall@10", "ndcg@10")
            }
    return result_file(
        claim.title,
        evaluations,
        version=__version__,
        paired_first_seed=paired,
        trials="benchmarks/results/trials.json",
        slices={label: {seen: _slice(one.slices[seen]) for seen in one.slices} for label, one in first_seeds.items()},
    )


def _slice(slices: Mapping[str, Any]) -> dict[str, Any]:
    """Recall@10 and NDCG@10 by target popularity, cold targets apart."""
    return {
        name: {"rows": part.rows}
        | {metric: round(part.metrics[metric].value, 5) for metric in ("recall@10", "ndcg@10") if part.metrics}
        for name, part in slices["popularity"].items()
    }


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)
