"""How a policy is aligned: what a step rolls out, which objective it follows, how strongly next tokens hold it back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sidera.config import check_counts, check_value
from sidera.engine.rollouts import MAX_COUNT, RolloutMode
from sidera.fit.config import FREE_TO_CHANGE, FitConfig

NTP_WEIGHTS = {"safe": 1.0, "aggressive": 0.3}  # docs/understand/alignment.md: what each costs


@dataclass(frozen=True)
class AlignConfig:
    method: str = "ecpo"  # a name of methods.METHODS
    steps: int = 300  # optimizer steps
    ntp: Literal["safe", "aggressive"] = "safe"  # weight of the next-token loss beside the method: 1 or 0.3
    ntp_weight: float | None = None  # another weight than `ntp` names; 0: no next-token loss
    method_weight: float = 1.0  # of the method's loss beside the next-token loss
    requests: int = 32  # requests of a step that the method works on; the next-token batch has its own size
    ntp_batch: int = 128  # histories of a step's next-token batch
    group: int = 32  # rollouts of each request
    rollout: RolloutMode = "masked"  # how: drawn in the trie, drawn without it, or the most likely
    temperature: float = 1.0  # of the draws
    snapshot_every: int = 10  # steps between two copies of the weights to the engine that rolls out
    level: Literal["token", "item"] = "token"  # a probability ratio for every code, or one for the item
    clip: float = 0.2  # eps of PPO's clip
    delta: float = 0.1  # ECPO: how far beyond the clip a ratio of a bad item may go
    beta: float = 0.1  # DPO: strength of the tie to the snapshot
    rejected: int = 3  # S-DPO and SPRec: rejected items per chosen one
    format_weight: float = 1.0  # of the format reward; 0: none
    format_members: int = 5  # free rollouts of each request that the format reward looks at
    positive: str = "long_view"  # logged feedback: this label without `negative` is worth +1
    negative: str = "dislike"  # logged feedback: this label is worth -1
    lr: float = 3e-4  # AdamW, constant
    weight_decay: float = 0.01  # decoupled decay, on matrices only
    clip_norm: float = 1.0  # gradients of a larger global norm are scaled down to it; 0: no clipping
    accumulate: int = 1  # batches (of requests and of next tokens) whose gradients are summed before one step
    precision: Literal["f32", "bf16"] = "f32"  # of matrix products of policy and rollouts (autocast), never of rewards
    check_every: int = 50  # steps between looks at the diagnostics and gates
    checkpoint_minutes: float = 3.0  # wall minutes between checkpoints: what a crash can cost; 0: after every step
    seed: int = 0  # of draws, batches and dropout

    def __post_init__(self) -> None:
        check_counts("[align]", self, "steps", "requests", "ntp_batch", "snapshot_every", "rejected", "check_every")
        check_counts("[align]", self, "accumulate")
        self._check("group", 2 <= self.group <= MAX_COUNT, f"2 to {MAX_COUNT}")
        self._check("format_members", 1 <= self.format_members <= MAX_COUNT, f"1 to {MAX_COUNT}")
        for name in ("method_weight", "format_weight", "weight_decay", "clip_norm", "delta", "checkpoint_minutes"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "a finite number >= 0")
        for name in ("temperature", "beta", "lr"):
            self._check(name, 0 < getattr(self, name) < math.inf, "a finite number > 0")
        self._check("clip", 0 < self.clip < 1, "0 < x < 1")
        weight = self.ntp_weight
        self._check("ntp_weight", weight is None or 0 <= weight < math.inf, "a finite number >= 0, or leave it out")
        self._check("ntp", self.ntp in NTP_WEIGHTS, ", ".join(NTP_WEIGHTS))

    def _check(self, name: str, good: bool, allowed: str) -> None:
        check_value("[align]", name, getattr(self, name), good, allowed)

    @property
    def next_token_weight(self) -> float:
        return NTP_WEIGHTS[self.ntp] if self.ntp_weight is None else self.ntp_weight

    def identity(self) -> dict[str, Any]:
        """The keys that decide the result."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_TO_CHANGE}

    def fit(self) -> FitConfig:
        """The training that this is: every step in the log, a look every ``check_every`` steps and after the last."""
        return FitConfig(
            epochs=1, max_steps=self.steps, accumulate=self.accumulate, lr=self.lr, weight_decay=self.weight_decay,
            schedule="constant", warmup_steps=0, clip_norm=self.clip_norm, precision=self.precision, seed=self.seed,
            eval_every_epochs=0, eval_every_steps=self.check_every, checkpoint_minutes=self.checkpoint_minutes,
            log_every=1,
        )  # fmt: skip
