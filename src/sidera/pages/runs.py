"""What lies in run folders: evaluations with their labels, catalogues, training logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidera.artifacts import MANIFEST, kind_at
from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.eval.compare import SAME, check_comparable
from sidera.eval.evaluation import KIND, Evaluation, fit_of, load_evaluation
from sidera.pages.names import distinct, model_title
from sidera.train.baselines import COMPANIONS
from sidera.train.cold_start import KIND as COLD_START
from sidera.train.cold_start import read_cold

BASELINES = "baselines"  # the folder beside an evaluation with what was measured on its rows


@dataclass(frozen=True)
class Measured:
    """An evaluation and what the page calls it."""

    label: str
    run: Evaluation
    folder: Path  # of the run: where its model lies
    baseline: bool  # measured beside a run, by the run

    @property
    def trained(self) -> bool:
        """Not one of those that only count."""
        return self.run.name not in COMPANIONS


@dataclass(frozen=True)
class Runs:
    """Everything below one or several run folders."""

    measured: list[Measured]  # test first, generators before scorers, baselines last
    catalogs: dict[str, Catalog]
    trainings: dict[str, list[dict[str, Any]]]  # label -> lines of metrics.jsonl
    cold: dict[str, dict[str, Any]]  # label -> record of a cold start

    def groups(self) -> list[list[Measured]]:
        """Those that answered the same questions, together."""
        groups: dict[str, list[Measured]] = {}
        for one in self.measured:
            groups.setdefault(json.dumps([one.run.protocol[key] for key in SAME]), []).append(one)
        return list(groups.values())


def holds_lists(path: str | Path) -> bool:
    """Whether an evaluation of recommended lists lies below a folder; a ranker's run has none."""
    return any(kind_at(file.parent) == KIND for file in Path(path).rglob(MANIFEST))


def read_runs(paths: Sequence[str | Path]) -> Runs:
    """Read every evaluation, catalogue and training log below the folders.

    InputError when nothing was evaluated in one of them, and when several were measured on other rows or data.
    """
    several = len(paths) > 1
    evaluations: list[tuple[Evaluation, Path, str, bool]] = []
    catalogs: dict[str, Catalog] = {}
    trainings: dict[str, list[dict[str, Any]]] = {}
    cold: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"no run folder at {str(path)!r}", fix="give a folder that `sidera run` wrote")
        before = len(evaluations)
        for manifest in sorted(path.rglob(MANIFEST)):
            folder = manifest.parent
            if any(part.startswith(".") for part in folder.relative_to(path).parts):
                continue  # an artifact being written, or the remains of one
            kind = kind_at(folder)
            if kind == COLD_START:
                cold[_label(folder.parent, path, several)] = read_cold(folder)
            if _of_cold_start(folder):
                continue  # what was trained to measure it is no run of its own
            if kind == KIND:
                baseline = BASELINES in folder.relative_to(path).parts
                evaluations.append((load_evaluation(folder), folder.parent, _label(folder, path, several), baseline))
            elif kind == "catalog":
                catalogs[_label(folder, path, several)] = Catalog.load(folder)
        if len(evaluations) == before:
            raise InputError(f"{str(path)!r} holds no evaluation", fix="run `sidera evaluate` on it first")
        for file in sorted(file for file in path.rglob("metrics.jsonl") if not _of_cold_start(file.parent)):
            trainings[_label(file.parent, path, several)] = _lines(file)
        if before:
            first, other = (next(one for one in part if not one[3]) for part in (evaluations, evaluations[before:]))
            check_comparable(first[0], other[0], [str(paths[0]), str(path)])
    return Runs(_named(evaluations), catalogs, trainings, cold)


def _of_cold_start(folder: Path) -> bool:
    beside = folder.parent / "report"
    return (beside / MANIFEST).is_file() and kind_at(beside) == COLD_START


def _named(evaluations: list[tuple[Evaluation, Path, str, bool]]) -> list[Measured]:
    """In order and with distinct labels. An own run of a model takes the place of the baseline of that name."""
    own = {_kind(one) for one, _, _, baseline in evaluations if not baseline}
    shown: dict[object, tuple[Evaluation, Path, str, bool]] = {}
    for position, (one, folder, label, baseline) in enumerate(evaluations):
        if not baseline:
            shown[position] = (one, folder, label, baseline)
        elif _kind(one) not in own:
            shown.setdefault(_kind(one), (one, folder, "", baseline))
    order = sorted(
        shown.values(),
        key=lambda one: (one[0].protocol["which"] != "test", one[3], one[0].protocol["kind"] != "generator",
                         not _trained(one[0]), one[0].name),
    )  # fmt: skip
    titles = [_title(one) for one, _, _, _ in order]
    labels = [title if baseline else label for title, (_, _, label, baseline) in zip(titles, order, strict=True)]
    named = distinct(titles, labels)
    return [
        Measured(label, run, folder, baseline) for label, (run, folder, _, baseline) in zip(named, order, strict=True)
    ]


def _trained(run: Evaluation) -> bool:
    return run.name not in COMPANIONS


def _title(run: Evaluation) -> str:
    """Figures have no column for it: what has learned the validation events too says so in its name."""
    return model_title(run.name) + ("" if fit_of(run) == "train" else f", fit on {fit_of(run)}")


def _kind(run: Evaluation) -> tuple[str, str, str]:
    """What an own run and a baseline have in common where one stands for the other."""
    return run.name, fit_of(run), _questions(run)


def _questions(run: Evaluation) -> str:
    return json.dumps([run.protocol[key] for key in SAME])


def _label(folder: Path, root: Path, several: bool) -> str:
    """The part of the path that tells runs apart: runs/demo/tiger/train -> tiger, or demo/tiger among several runs."""
    inside = "/".join(folder.relative_to(root).parts[:-1])
    name = root.resolve().name
    return "/".join(part for part in (name if several else "", inside) if part) or name


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
