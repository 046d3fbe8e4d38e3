"""Where a training is: everything a resumed run needs beside tensors, and what ``fit`` returns in the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sidera.fit.config import FitConfig
from sidera.fit.cooldown import CoolDown


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
    """Sums over some steps: those since the last line of the log, or since the last look."""

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    wall_start: float = 0.0  # TrainState.wall_seconds when it was opened
    parts: dict[str, list[float]] = field(default_factory=dict)  # name -> [weighted sum, weight]

    def add(self, loss: float, grad_norm: float, tokens: float, flops: float) -> None:
        self.steps += 1
        self.loss += loss
        self.grad_norm += grad_norm
        self.tokens += tokens
        self.flops += flops

    def add_parts(self, parts: Mapping[str, float], weight: float) -> None:
        """Parts of a batch's loss that is ``weight`` of a step; a part that is NaN says nothing."""
        for name, value in parts.items():
            if math.isnan(value):
                continue
            total = self.parts.setdefault(name, [-math.inf if name.endswith("_max") else 0.0, 0.0])
            if name.endswith("_max"):
                total[0] = max(total[0], float(value))
            else:
                total[0] += weight * float(value)
            total[1] += weight

    def means(self) -> dict[str, float]:
        """Each figure's mean over the steps that had it; the largest of those that end in _max."""
        if not self.steps:
            return {}
        parts = {n: total if n.endswith("_max") else total / weight for n, (total, weight) in self.parts.items()}
        return {"loss": self.loss / self.steps, "grad_norm": self.grad_norm / self.steps, **parts}


@dataclass
class TrainState:
    """A position that plain JSON can hold."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    batch: int = 0  # batches of this epoch used up
    evaluation_due: bool = False
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    wall_seconds: float = 0.0  # over all pieces
    cpu_seconds: float = 0.0
    evaluation_seconds: float = 0.0  # of the last evaluation, wall
    evaluation_cpu: float = 0.0
    window: Window = field(default_factory=Window)  # since the last line of the log
    since_look: Window = field(default_factory=Window)
    memory: dict[str, Any] = field(default_factory=dict)  # what objective and watch keep, without tensors
    log_bytes: int = 0
    cool_down: CoolDown | None = None  # the last phase, once it has begun
    ending: str = ""  # why it ends once the last evaluation is made
    finished: str = ""  # why the whole training ended; "" while it has not
    precision: str = ""  # in which the steps run, and on how many threads: settled before the first (fit/tuning.py)
    num_threads: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        windows = {name: Window(**values[name]) for name in ("window", "since_look")}
        begun = values.get("cool_down")
        return cls(**{**values, **windows, "cool_down": CoolDown(**begun) if begun else None})

    def seconds(self, config: FitConfig) -> float:
        """What ``max_minutes`` counts."""
        return self.cpu_seconds if config.clock == "cpu" else self.wall_seconds

    def reserve(self, config: FitConfig) -> float:
        """What of ``max_minutes`` the evaluation at the end will want, by the last one."""
        return self.evaluation_cpu if config.clock == "cpu" else self.evaluation_seconds

    def time_share(self, config: FitConfig, seconds: float, budget: float) -> float:
        """Share gone of the time for steps: of ``budget`` seconds (inf: 0) less the evaluation after the last step.

        In a cool-down: of what was left when it began."""
        begun = self.cool_down.seconds if self.cool_down else 0.0
        seconds, budget = seconds - begun, budget - begun
        return seconds / max(budget - min(self.reserve(config), budget / 2), 1e-9) if budget < math.inf else 0.0

    def close_window(self, lr: float, peak_tflops: Callable[[float], float]) -> dict[str, Any]:
        """Means over the open window as a line for the log; a new window is opened.

        ``peak_tflops`` takes the rate that was reached and gives the peak that it is a share of, TFLOP/s both.
        """
        window, means = self.window, self.window.means()
        seconds = max(self.wall_seconds - window.wall_start, 1e-9)
        record = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": means.pop("loss"),
            "lr": lr,
            "grad_norm": means.pop("grad_norm"),
            "tokens_per_second": round(window.tokens / seconds, 1),
            "seconds": round(self.wall_seconds, 3),
            **means,
        }
        if window.flops:
            record["tflops"] = window.flops / seconds / 1e12
            record["mfu"] = record["tflops"] / peak_tflops(record["tflops"])
        self.window = Window(wall_start=self.wall_seconds)
        return record

    def result(self, reason: str) -> FitResult:
        """What ``fit`` returns, ``stopped_because`` of the reason."""
        return FitResult(
            best_metrics=dict(self.best_metrics),
            best_step=self.best_step if self.best_step >= 0 else self.step,
            steps=self.step,
            history=list(self.evaluations),
            stopped_because=reason,
            finished=bool(self.finished),
            cpu_seconds=self.cpu_seconds,
            wall_seconds=self.wall_seconds,
            precision=self.precision,
            num_threads=self.num_threads,
            weights_steps=self.weights_steps,
        )

    @property
    def weights_steps(self) -> int:
        """Steps behind the kept weights; a cool-down from the best ones leaves out the steps after them."""
        kept, begun = (self.best_step if self.best_step >= 0 else self.step), self.cool_down
        return kept if begun is None or kept <= begun.step else begun.weights_of + kept - begun.step


@dataclass(frozen=True)
class FitResult:
    """How a training went, over all its pieces."""

    best_metrics: dict[str, float]  # of the weights that the model now holds; empty without an evaluation
    best_step: int  # optimizer steps taken when it held them
    steps: int  # optimizer steps taken
    history: list[dict[str, Any]]  # one entry an evaluation: step, epoch, seconds and the figures
    stopped_because: str  # "epochs", "max_steps", "max_minutes", "piece_minutes", or what the watch said ("patience")
    finished: bool  # False after "piece_minutes": call fit again with the same arguments
    cpu_seconds: float  # processor time of rank 0, evaluations included
    wall_seconds: float
    precision: str = ""  # of the steps: "f32" or "bf16"
    num_threads: int = 0  # of the steps
    weights_steps: int = 0  # of these, the ones behind the weights that the model now holds
