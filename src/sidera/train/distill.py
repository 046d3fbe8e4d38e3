"""Distillation: models of other seeds teach the one that answers; it is about as good as their mean and costs one.

``[fit] teachers = 2`` trains two models as the recipe says, from other seeds. The model then learns from the log and,
to one half, from the mean of their distributions (Hinton et al., arXiv 1503.02531). The first teacher finds the number
of steps; the other trainings take as many and look at validation once, at their end. Should the model fall far below
the first teacher on the validation rows, that one stays.

All of it has its place inside ``max_minutes``. A training that fills its budget alone is worth more than several short
ones: there are as many teachers as the time that the first one left has room for, and where that is none, it is the
result.

On Amazon Scientific (validation, NDCG@10): two seeds .0968 and .0945, and .0992 for the one that they taught
(``benchmarks/results/trials_generator.json``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sidera.engine.ranking import Ranking
from sidera.engine.recommender import Recommender
from sidera.fit.config import FitConfig
from sidera.fit.protocols import Objective, model_loss
from sidera.roles import Loss
from sidera.train.budget import spent_seconds
from sidera.train.recipe import Recipe
from sidera.train.validation import FILE as VALIDATION

SHARE = 0.5  # of the loss that is the teachers'
FORWARD = 0.25  # time of a teacher's forward pass / of a training step
SEEDS = 1000  # between the seeds of teachers
LEAST = 0.9  # of the first teacher's validation figure, that the model has to reach

Trained = Recommender | Ranking
Train = Callable[[Recipe, Trained, Path, Objective], "dict[str, Any] | None"]


class FromTeachers:
    """The objective: what the log says, and what the teachers say of it."""

    def __init__(self, teachers: list[nn.Module]) -> None:
        self.teachers = [teacher.requires_grad_(False).eval() for teacher in teachers]

    def __call__(self, model: nn.Module, batch: Any, step: int) -> Loss:
        loss: Loss = model.loss(batch, self.teachers, SHARE)  # type: ignore[operator]
        return loss


def distilled(
    recipe: Recipe, trained: Trained, build: Callable[[Recipe], Trained], train: Train, folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any] | None:  # fmt: skip
    """Train ``trained``, after its teachers where the recipe wants some -> its record; None when it is unfinished.

    ``build(recipe)`` makes an untrained teacher; ``train(recipe, model, folder, objective)`` trains one, and goes on
    where it was stopped.
    """
    config = recipe.fit
    if not config.teachers:
        return train(recipe, trained, folder, model_loss)
    spent = spent_seconds(trained.catalog, config, lambda _: None)  # each training says it
    teachers, records = list[Trained](), list[dict[str, Any]]()
    number = 0
    while number < config.teachers:
        place = folder / f"teacher-{number}"
        one = replace(recipe, fit=replace(config, seed=config.seed + SEEDS * (number + 1), teachers=0))
        if number:
            one = _as_long(one, records[0], _minutes(config, spent, records[0], 1.0))
        say(f"train: teacher {number + 1} of {config.teachers}")
        teachers.append(build(one))
        if (record := train(one, teachers[-1], place, model_loss)) is None:
            return None
        records.append(record)
        if not number:
            recipe = replace(recipe, eval=replace(recipe.eval, valid_rows=_rows(place, recipe.eval.valid_rows)))
            config = replace(config, teachers=affordable_teachers(config, spent, record))
            if not config.teachers:
                say("train: max_minutes leaves no room for a second training: the first one stays")
                trained.model.load_state_dict(teachers[0].model.state_dict())
                return record | {"teachers": []}
        number += 1
    say("train: the model, from its teachers")
    last = _as_long(recipe, records[0], _minutes(config, spent, records[0], _student(config)))
    record = train(last, trained, folder, FromTeachers([one.model for one in teachers]))
    return None if record is None else _better(config, trained, teachers[0], [record, *records], say)


def _better(
    config: FitConfig, trained: Trained, first: Trained, records: list[dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    """The record of what stays: the model, or the first of its teachers where the model fell far below it.

    A closer contest says nothing: the teacher's figure is its best of many looks, the model's is its only one.
    """
    taught, alone = (record["validation"][config.monitor] for record in records[:2])
    minutes = {name: round(sum(one[name] for one in records), 2) for name in ("cpu_minutes", "wall_minutes")}
    kept = records[0]
    if LEAST * taught > alone if config.lower_is_better else taught < LEAST * alone:
        say(f"train: {config.monitor} {taught:.4f} with teachers, {alone:.4f} of the first of them, which stays")
        trained.model.load_state_dict(first.model.state_dict())
        kept = records[1]
    return kept | minutes | {"teachers": [one["validation"] for one in records[1:]]}


def _student(config: FitConfig) -> float:
    """Time of a step with teachers / of one without."""
    return 1 + FORWARD * config.teachers


def affordable_teachers(config: FitConfig, spent_seconds: float, first: dict[str, Any]) -> int:
    """How many of the teachers fit, with the model's own training, into what the first one left of ``max_minutes``."""
    if config.max_minutes is None:
        return config.teachers
    used = first[f"{config.clock}_minutes"]
    left = config.max_minutes - spent_seconds / 60 - used
    one = used * first["weights_steps"] / max(1, first["steps"])
    for number in range(config.teachers, 0, -1):
        if (number - 1 + _student(replace(config, teachers=number))) * one <= left:
            return number
    return 0


def _minutes(config: FitConfig, spent_seconds: float, first: dict[str, Any], weight: float) -> float | None:
    """``max_minutes`` of a later training: its part of what the first one left, and what is spent for all."""
    if config.max_minutes is None:
        return None
    left = config.max_minutes - spent_seconds / 60 - first[f"{config.clock}_minutes"]
    return spent_seconds / 60 + max(left, 1e-3) * weight / (config.teachers - 1 + _student(config))


def _as_long(recipe: Recipe, first: dict[str, Any], minutes: float | None) -> Recipe:
    """The recipe with the steps that the first teacher chose, and no look at validation but the last."""
    steps = max(1, first["weights_steps"])
    config = replace(
        recipe.fit, teachers=0, epochs=steps, max_steps=steps, min_steps=0, patience=0, eval_every_epochs=0,
        eval_every_steps=0, max_minutes=minutes,
    )  # fmt: skip
    return replace(recipe, fit=config)


def _rows(place: Path, asked: Any) -> Any:
    """The number of validation rows that the first teacher's training took, so that all are asked the same."""
    if asked != "auto":
        return asked
    return int(json.loads((place / VALIDATION).read_text(encoding="utf-8"))["rows"])
