"""In which number format and on how many threads a training runs: settled once, before its first step.

``precision = "auto"`` and ``num_threads = 0`` are answered by trying: a few whole steps (forward, backward, update) of
a *copy* of the model on the batches that come next. The model, its optimizer and the random numbers stay as they were.
The answer is kept in the checkpoint: a resumed training repeats it, on another processor too.

The ranks of a ``torchrun`` share the cores and would disturb each other's clocks: there nothing is timed.
"""

from __future__ import annotations

import copy
import math
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from sidera.core import InputError
from sidera.fit import distributed
from sidera.fit.config import FitConfig
from sidera.fit.protocols import BatchSource, Objective, TrainingBatch, restore, states
from sidera.fit.schedule import make_optimizer
from sidera.fit.seeding import seed_everything
from sidera.fit.state import Clock, TrainState
from sidera.ops.cores import fixed_threads
from sidera.ops.processor import PAYS, Precision, resolve_precision
from sidera.ops.threads import ROUNDS, Choice, choose_threads, in_turns, num_threads, usable_threads

SHORT = 50  # steps of a training that is over soon: it is timed with one round


@dataclass(frozen=True)
class Steps:
    """What is trained, and how long."""

    model: nn.Module
    objective: Objective
    source: BatchSource
    total: int


def settle(steps: Steps, config: FitConfig, state: TrainState, clock: Clock, device: torch.device) -> str:
    """Settle precision and threads into ``state``, set the threads, and return what is to be said of it.

    What a resumed ``state`` holds is repeated; only threads that recipe or command line name go before it. The seconds
    that timing takes are part of the training, but of no step's rate.
    """
    if state.num_threads:
        threads = config.num_threads or fixed_threads() or state.num_threads
        again = ", as before" if threads == state.num_threads else f", {state.num_threads} before"
        state.num_threads = threads
        torch.set_num_threads(threads)
        return f"{state.precision}, threads: {threads}{again}"
    state.precision, choice, line = _settle(steps, config, state, device)
    state.num_threads = choice.threads
    torch.set_num_threads(choice.threads)
    clock.tick(state)
    state.window.wall_start = state.wall_seconds
    return line


def _settle(steps: Steps, config: FitConfig, state: TrainState, device: torch.device) -> tuple[Precision, Choice, str]:
    precision, limit = resolve_precision(config.precision, device), usable_threads()
    alone = distributed.world_size() == 1
    neighbours = 1 if alone else int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    asked = config.num_threads or fixed_threads()
    choice = Choice(asked or max(1, limit // neighbours), max(limit, asked))
    times_threads = alone and device.type == "cpu" and not asked and limit > 1
    times_precision = alone and config.precision == "auto" and precision == "bf16"
    if not times_threads and not times_precision:
        return precision, choice, f"{precision}, {choice.describe()}"
    rounds, aside = ROUNDS if steps.total >= SHORT else 1, ""
    with _same_random_numbers(device), _same_state(steps.objective):
        trial = _Trial(steps, list(islice(steps.source.batches(state.epoch, state.batch), rounds + 1)), config, device)
        try:
            if times_threads:
                choice = choose_threads(partial(trial.step, precision), limit, rounds)
            if times_precision:
                precision, aside = trial.faster_precision(choice.threads, rounds)
        except InputError:  # of a reward, say: the training's own step says it, with its number
            return precision, choice, f"{precision}, {choice.describe()}"
    return precision, choice, f"{precision}{aside}, {choice.describe(trial.unit)}"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Products in the number format of the training."""
    return nullcontext() if precision == "f32" else torch.autocast(device.type, dtype=torch.bfloat16)


class _Trial:
    """Whole steps of a copy of the model; their learning rate is 0, which costs the same and cannot diverge."""

    def __init__(self, steps: Steps, batches: list[TrainingBatch], config: FitConfig, device: torch.device) -> None:
        self.model, self.objective = copy.deepcopy(steps.model).train(), steps.objective
        self.batches, self.config, self.device = batches, config, device
        self.optimizer = make_optimizer(self.model, config)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.unit = "step" if config.accumulate == 1 else "batch"

    def step(self, precision: str, number: int) -> None:
        """A step on batch ``number``, the same whoever asks."""
        seed_everything(self.config.seed, 0, number, 0)
        batch = self.batches[number % len(self.batches)].to(self.device)
        with autocast(self.device, precision):
            loss = self.objective(self.model, batch, 0)
        if loss.total.requires_grad:  # an objective may have found nothing to learn from
            (loss.total.float() / max(1, loss.count)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def faster_precision(self, threads: int, rounds: int) -> tuple[Precision, str]:
        """bf16 where it makes this model's steps shorter; small layers spend more on casts than they save."""
        formats: tuple[Precision, Precision] = ("f32", "bf16")
        with num_threads(threads):
            spent = in_turns({name: partial(self.step, name) for name in formats}, rounds)
        shown = ", ".join(f"{name} {1000 * spent[name]:.3g} ms a {self.unit}" for name in formats)
        return ("bf16" if PAYS * spent["bf16"] <= spent["f32"] else "f32"), f" ({shown})"


@contextmanager
def _same_state(objective: Objective) -> Iterator[None]:
    """What the objective keeps (a snapshot of weights, counts of a reward) is afterwards what it was."""
    kept = copy.deepcopy(states({"objective": objective}))
    try:
        yield
    finally:
        restore({"objective": objective}, kept)


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """The global generators of torch, numpy and Python go on afterwards as if nothing had been drawn."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
