"""Where a training is: everything a resumed run needs beside tensors, and what ``fit`` returns in the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sidera.core import InputError
from sidera.fit.config import FitConfig


class Clock:
    """Wall and processor time of this call; the sums over all pieces are in the TrainState."""

    def __init__(self) -> None:
        self.started = self._wall = self._saved_at = time.perf_counter()
        self._cpu = time.process_time()
        self.saved_step = 0

    def tick(self, state: TrainState) -> None:
        """Add what has passed since the last tick."""
        wall, cpu = time.perf_counter(), time.process_time()
        state.wall_seconds += wall - self._wall
        state.cpu_seconds += cpu - self._cpu
        self._wall, self._cpu = wall, cpu

    def in_call(self) -> float:
        return time.perf_counter() - self.started

    def since_save(self) -> float:
        return time.perf_counter() - self._saved_at

    def saved(self, step: int) -> None:
        self._saved_at, self.saved_step = time.perf_counter(), step


@dataclass
class Window:
    """Sums since the last line of the log."""

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    wall_start: float = 0.0  # TrainState.wall_seconds when it was opened
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, grad_norm: float, tokens: float, flops: float) -> None:
        self.steps += 1
        self.loss += loss
        self.grad_norm += grad_norm
        self.tokens += tokens
        self.flops += flops

    def add_parts(self, parts: Mapping[str, float], weight: float) -> None:
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + weight * float(value)


@dataclass
class TrainState:
    """A position that plain JSON can hold."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    batch: int = 0  # batches of this epoch used up
    evaluation_due: bool = False
    best_step: int = -1
    best_value: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    num_worse: int = 0  # evaluations since the best one
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    wall_seconds: float = 0.0  # over all pieces
    cpu_seconds: float = 0.0
    evaluation_seconds: float = 0.0  # of the last evaluation, wall
    evaluation_cpu: float = 0.0
    window: Window = field(default_factory=Window)
    log_bytes: int = 0
    ending: str = ""  # why it ends once the last evaluation is made
    finished: str = ""  # why the whole training ended; "" while it has not
    precision: str = ""  # in which the steps run, and on how many threads: settled before the first (fit/tuning.py)
    num_threads: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        return cls(**{**values, "window": Window(**values["window"])})

    def seconds(self, config: FitConfig) -> float:
        """What ``max_minutes`` counts."""
        return self.cpu_seconds if config.clock == "cpu" else self.wall_seconds

    def reserve(self, config: FitConfig) -> float:
        """What of ``max_minutes`` the evaluation at the end will want, by the last one."""
        return self.evaluation_cpu if config.clock == "cpu" else self.evaluation_seconds

    def time_share(self, config: FitConfig, seconds: float, budget: float) -> float:
        """Share gone of the time for steps: of ``budget`` seconds (inf: 0) less the evaluation after the last step."""
        return seconds / max(budget - min(self.reserve(config), budget / 2), 1e-9) if budget < math.inf else 0.0

    def close_window(self, lr: float, peak_tflops: Callable[[float], float]) -> dict[str, Any]:
        """Means over the open window as a line for the log; a new window is opened.

        ``peak_tflops`` takes the rate that was reached and gives the peak that it is a share of, TFLOP/s both.
        """
        window, steps = self.window, self.window.steps
        seconds = max(self.wall_seconds - window.wall_start, 1e-9)
        record = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": window.loss / steps,
            "lr": lr,
            "grad_norm": window.grad_norm / steps,
            "tokens_per_second": round(window.tokens / seconds, 1),
            "seconds": round(self.wall_seconds, 3),
            **{name: value / steps for name, value in window.parts.items()},
        }
        if window.flops:
            record["tflops"] = window.flops / seconds / 1e12
            record["mfu"] = record["tflops"] / peak_tflops(record["tflops"])
        self.window = Window(wall_start=self.wall_seconds)
        return record

    def judge(self, metrics: dict[str, float], config: FitConfig) -> bool:
        """Take in an evaluation; True when it is the best so far."""
        if config.monitor not in metrics:
            raise InputError(f"[fit] monitor = {config.monitor!r} is not evaluated", allowed=", ".join(sorted(metrics)))
        value = metrics[config.monitor]
        if not math.isfinite(value):
            raise InputError(f"validation {config.monitor} = {value} at step {self.step}", fix="lower [fit] lr")
        sign = -1.0 if config.lower_is_better else 1.0
        better = self.best_value is None or sign * value > sign * self.best_value
        if better:
            self.best_step, self.best_value, self.best_metrics = self.step, value, metrics
        self.num_worse = 0 if better else self.num_worse + 1
        return better


@dataclass(frozen=True)
class FitResult:
    """How a training went, over all its pieces."""

    best_metrics: dict[str, float]  # of the weights that the model now holds; empty without an evaluation
    best_step: int  # optimizer steps behind those weights
    steps: int  # optimizer steps taken
    history: list[dict[str, Any]]  # one entry an evaluation: step, epoch, seconds and the figures
    stopped_because: str  # "epochs", "max_steps", "patience", "max_minutes" or "piece_minutes"
    finished: bool  # False after "piece_minutes": call fit again with the same arguments
    cpu_seconds: float  # processor time of rank 0, evaluations included
    wall_seconds: float
    precision: str = ""  # of the steps: "f32" or "bf16"
    num_threads: int = 0  # of the steps
