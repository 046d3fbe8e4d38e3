"""The section ``[fit]`` of a recipe: how long, how fast and how carefully a model is trained.

Two time limits that are easy to confuse: ``max_minutes`` is the budget of the *whole* training, over all its pieces,
and the learning rate runs down to its end within it; ``piece_minutes`` is the limit of *this call*, which stops with an
unfinished checkpoint and is continued by calling again. Only the first changes the result. Between two pieces either
may change: another budget plans the rest of the training anew, from the time that is gone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sidera.config import check_counts, check_value

# Changing one of these between two pieces of a training leaves its result as it was (num_threads: up to rounding).
BUDGET = ("max_minutes", "clock")  # decide the result, and may change all the same: the rest is planned anew
FREE_TO_CHANGE = ("piece_minutes", "checkpoint_minutes", "num_threads", "tensorboard", "peak_tflops")


@dataclass(frozen=True)
class FitConfig:
    """Every key of ``[fit]``, with its unit and default."""

    epochs: int = 20  # passes over the training data; whichever of epochs and max_steps comes first ends the training
    min_steps: int = 0  # optimizer steps that small data gets at least: epochs are added until there are so many
    max_steps: int | None = None  # optimizer steps; default: no limit
    batch_size: int = 256  # histories per batch over all ranks; a step sees batch_size x accumulate of them
    accumulate: int = 1  # batches whose gradients are summed before one optimizer step
    lr: float = 1e-3  # peak learning rate of AdamW
    weight_decay: float = 0.01  # decoupled decay, on matrices only (never on biases, norms and other vectors)
    decay_embeddings: bool = True  # False: the tables of nn.Embedding are not decayed either
    betas: tuple[float, ...] = (0.9, 0.999)  # decay of AdamW's two running means
    schedule: Literal["cosine", "inverse_sqrt", "constant", "linear", "wsd"] = "cosine"  # of the rate after warm-up
    cooldown: float = 0.2  # steps of the decay behind "wsd", and behind patience / steps before it; 0: none
    warmup_steps: int = 100  # optimizer steps of linear rise from 0 to lr, at most a quarter of all
    min_lr_ratio: float = 0.05  # learning rate at the end / lr; the floor of "inverse_sqrt"
    clip_norm: float = 1.0  # gradients of a larger global norm are scaled down to it; 0: no clipping
    precision: Literal["auto", "f32", "bf16"] = "auto"  # of matrix products (autocast); "auto": what is faster here
    seed: int = 0  # of dropout and sampled negatives; the order of the data has the data source's own seed
    eval_every_epochs: int = 1  # epochs between evaluations; 0: only by steps and at the end
    eval_every_steps: int = 0  # optimizer steps between evaluations; 0: only by epochs and at the end
    patience: int = 5  # evaluations after min_steps without a better `monitor` that end the training; 0: never
    teachers: int = 0  # models of other seeds that the model learns from as well (train/distill.py)
    refit: bool = False  # True: once validation has chosen, its events are learned too (train/refit.py)
    monitor: str = "ndcg@10"  # validation figure that chooses the best weights; a name ending in "loss" is minimised
    max_minutes: float | None = None  # budget of catalogue and training, validation counted, minutes of `clock`
    piece_minutes: float | None = None  # wall minutes after which this call stops, to be continued; default: none
    clock: Literal["wall", "cpu"] = "wall"  # what max_minutes counts; "cpu": processor time of all threads of rank 0
    num_threads: int = 0  # threads of a CPU operation; 0: found by timing a few steps
    checkpoint_minutes: float = 3.0  # wall minutes between checkpoints: what a crash can cost; 0: after every step
    log_every: int = 20  # optimizer steps averaged into one line of metrics.jsonl
    tensorboard: bool = False  # True: also write TensorBoard events (needs the extra `track`)
    peak_tflops: float = 0.0  # peak of one device, TFLOP/s, that the MFU is measured against; 0: of a measured product

    def __post_init__(self) -> None:
        check_counts("[fit]", self, "epochs", "batch_size", "accumulate", "log_every")
        self._check("max_steps", self.max_steps is None or self.max_steps >= 1, "a whole number >= 1, or leave it out")
        check_counts("[fit]", self, "min_steps", "patience", "warmup_steps", "num_threads", "seed", "teachers", low=0)
        check_counts("[fit]", self, "eval_every_epochs", "eval_every_steps", low=0)
        for name in ("max_minutes", "piece_minutes"):
            value = getattr(self, name)
            self._check(name, value is None or (value > 0 and math.isfinite(value)), "minutes > 0, or leave it out")
        for name in ("weight_decay", "clip_norm", "checkpoint_minutes", "peak_tflops", "cooldown"):
            value = getattr(self, name)
            self._check(name, value >= 0 and math.isfinite(value), "a finite number >= 0")
        self._check("lr", self.lr > 0 and math.isfinite(self.lr), "a finite number > 0")
        self._check("min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "0 to 1")
        self._check(
            "betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"
        )
        self._check("monitor", bool(self.monitor), "the name of a validation figure")

    def _check(self, name: str, good: bool, allowed: str) -> None:
        check_value("[fit]", name, getattr(self, name), good, allowed)

    @property
    def lower_is_better(self) -> bool:
        return self.monitor.endswith("loss")

    def identity(self) -> dict[str, Any]:
        """The keys that decide the result."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_TO_CHANGE}

    def resumable(self) -> dict[str, Any]:
        """Of these, the ones that a checkpoint is continued under: all but the budget."""
        return {name: value for name, value in self.identity().items() if name not in BUDGET}
