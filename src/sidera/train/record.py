"""What is written down of a trained model: what decided it, what it has seen, what its training cost and reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidera.config import digest
from sidera.data.batches import trained_mask
from sidera.data.config import View
from sidera.fit.loop import FitResult
from sidera.train.recipe import Recipe


@dataclass(frozen=True)
class ModelIdentity:
    """What decides a model beside its recipe, and the artifacts that it was made from."""

    inputs: tuple[str, ...]
    parents: dict[str, str]

    def digest(self, recipe: Recipe) -> str:
        return digest([*self.inputs, recipe.model_section, recipe.fit.identity()])


def seen_until(view: View) -> int | None:
    """The second after the newest training event; None where the log has an order and no times."""
    trained = trained_mask(view.dataset, view.split)
    if view.dataset.time_kind != "seconds" or not trained.any():
        return None
    return int(view.dataset.times[trained].max()) + 1


def training_record(result: FitResult, mfu: float | None) -> dict[str, Any]:
    """Of a finished training."""
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "weights_steps": result.weights_steps,
        "validation": dict(result.best_metrics),
        "cpu_minutes": round(result.cpu_seconds / 60, 2),
        "wall_minutes": round(result.wall_seconds / 60, 2),
        "stopped_because": result.stopped_because,
        "precision": result.precision,
        "num_threads": result.num_threads,
        "mfu": None if mfu is None else round(mfu, 4),
    }


def refit_record(training: Mapping[str, Any], result: FitResult) -> dict[str, Any]:
    """What a refit adds to the record of a training."""
    spent = (("cpu_minutes", result.cpu_seconds), ("wall_minutes", result.wall_seconds))
    minutes = {name: round(training[name] + seconds / 60, 2) for name, seconds in spent}
    return {"refit_steps": result.steps, **minutes}


def training_line(result: FitResult, mfu: float | None) -> str:
    """For the terminal."""
    best = ", ".join(f"{name} {value:.4f}" for name, value in result.best_metrics.items())
    return (
        f"train: {result.stopped_because} after {result.steps:,} steps, {result.cpu_seconds / 60:.1f} CPU-minutes"
        + (f"; best at step {result.best_step:,}: {best}" if best else "")
        + ("" if mfu is None else f"; MFU {100 * mfu:.1f} %")
    )
