"""What :func:`sidera.fit.fit` is given: batches, an objective that makes a loss of them, a watch of the weights.

An objective or watch that keeps something between steps (a reference model, counters) is :class:`Resumable`: what its
``state()`` names goes into the checkpoint, so a training that was killed goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import nn

from sidera.roles import Loss


class TrainingBatch(Protocol):
    """What the loop needs of a batch: :class:`sidera.batch.Batch` is one, so is what ``align`` makes of two."""

    @property
    def global_count(self) -> int | None:
        """Targets over all ranks; the step's loss is divided by their sum."""

    @property
    def num_histories(self) -> int: ...

    @property
    def num_events(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...


class BatchSource(Protocol):
    """Training data in a fixed order: the same (epoch, start) gives the same batches, today and after a crash.

    A source may have a ``digest: str`` that names its data and settings; a checkpoint of other data is then refused.
    """

    def num_batches(self, epoch: int) -> int: ...

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """TrainingBatches ``start``... of the epoch, this rank's cut of each, with ``global_count`` set."""


Objective = Callable[[nn.Module, Any, int], Loss]  # (model, batch, step) -> the loss of this rank's batch


def model_loss(model: nn.Module, batch: Any, step: int) -> Loss:
    """The objective of ordinary training."""
    loss: Loss = model.loss(batch)  # type: ignore[operator]
    return loss


@dataclass(frozen=True)
class Look:
    """What a watch saw."""

    figures: Mapping[str, float]  # for the log and ``FitResult.history``
    better: bool  # these weights take the place of those kept so far: the model holds the kept ones in the end
    stop: str = ""  # why the training ends with this look; "" while it goes on
    cools_down: bool = False  # it ends after a cool-down from the kept weights (fit/cooldown.py), not at once


class Watch(Protocol):
    """Looks at the weights of now; only rank 0 calls it. ``at_start``: before the first step too."""

    at_start: bool

    def __call__(self, model: nn.Module, step: int, means: Mapping[str, float]) -> Look:
        """``means``: loss, gradient norm and the parts of the loss, averaged over the steps since the last look."""


@runtime_checkable
class Resumable(Protocol):
    """An objective, watch or reward that keeps something between steps."""

    def state(self) -> Mapping[str, Any]:
        """Tensors, and values that JSON can hold."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""


def states(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What the Resumable ones of ``parts`` keep, as "name/key"."""
    kept = {name: part.state() for name, part in parts.items() if isinstance(part, Resumable)}
    return {f"{name}/{key}": value for name, state in kept.items() for key, value in state.items()}


def restore(parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Put back what :func:`states` gave."""
    for name, part in parts.items():
        if isinstance(part, Resumable):
            part.restore(under(f"{name}/", state))


def under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
