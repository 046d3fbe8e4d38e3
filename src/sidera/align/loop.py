"""The loop that every method shares: snapshot to the engine, the method's step, next tokens beside it, gates.

    result = align(policy, engine, AlignConfig(method="ecpo"), ntp=source, requests=source, reward=p_score, probe=probe)

``policy`` is trained in place; ``engine`` is a Recommender around a *copy* of it and rolls out. A step: method loss on
fresh rollouts or logged exposures + weight x next-token loss -> gradient -> update. Every ``check_every`` steps the
probe looks at the current weights through the engine; a run that leaves its gates stops, and policy and engine go back
to the last weights that were good. Nothing stops a run for its reward.

A reward that raises and a gradient that is not finite end the run too, in one line, at the last good weights.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch import Tensor, nn

from sidera.align.config import AlignConfig
from sidera.align.diagnostics import Probe
from sidera.align.gates import Gates
from sidera.align.methods import Method, method_of
from sidera.align.rewards import Reward
from sidera.align.step import AlignStep
from sidera.batch import Batch
from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.fit.checkpoint import FOLDER, save_checkpoint
from sidera.fit.loop import BatchSource
from sidera.fit.schedule import make_optimizer
from sidera.fit.seeding import seed_everything
from sidera.roles import Generator

Record = dict[str, Any]


@dataclass(frozen=True)
class AlignResult:
    """How a run ended; policy and engine hold the weights of ``good_step``."""

    steps: int  # that were taken
    good_step: int  # of the last weights that passed the gates
    stopped: str  # "" when all steps were taken, or one line why not
    start: Mapping[str, float]  # the probe before the first step
    checks: tuple[Record, ...]  # probe and step means of every look


def engine_for(policy: nn.Module, like: Recommender) -> Recommender:
    """A Recommender around a copy of ``policy``, in all else as ``like``."""
    return Recommender(
        copy.deepcopy(policy),
        like.catalog,
        model_section=like.model_section,
        beam=like.beam,
        device=like.device,
        num_known=like.num_known,
    )


def align(
    policy: nn.Module,
    engine: Recommender,
    config: AlignConfig,
    *,
    ntp: BatchSource | None = None,
    requests: BatchSource | None = None,
    reward: Reward | None = None,
    probe: Probe | None = None,
    gates: Gates | None = None,
    run_dir: str | Path | None = None,
    on_progress: Callable[[Record], None] | None = None,
) -> AlignResult:
    """Align ``policy`` in place.

    ``ntp``: batches of the next-token loss, as the policy trains on; needed unless its weight is 0. ``requests``:
    batches of ``config.requests`` histories for the method (for learning from logs: every exposure with feedback).
    ``probe`` None looks at no held-out figure, and only what the steps report can break a gate. ``run_dir`` receives
    ``metrics.jsonl`` and ``checkpoint/`` with the last good weights.
    """
    run = _Run(policy, engine, config, ntp, requests, reward, probe, gates or Gates(), run_dir, on_progress)
    try:
        return run.go()
    finally:
        run.close()


class _Run:
    """One call of :func:`align`."""

    def __init__(
        self, policy: nn.Module, engine: Recommender, config: AlignConfig, ntp: BatchSource | None,
        requests: BatchSource | None, reward: Reward | None, probe: Probe | None, gates: Gates,
        run_dir: str | Path | None, on_progress: Callable[[Record], None] | None,
    ) -> None:  # fmt: skip
        self.method: Method = method_of(config.method)
        self.policy, self.engine, self.config, self.reward = policy.to(engine.device), engine, config, reward
        self.probe, self.gates, self.on_progress = probe, gates, on_progress
        self._check(ntp, requests)
        self.ntp = _endless(ntp) if ntp is not None and config.next_token_weight else None
        self.requests = _endless(requests) if requests is not None and self.method.step else None
        self.optimizer = make_optimizer(policy, config.fit())
        self.step, self.good_step = 0, 0
        self.good = _copied(policy)
        self.start: dict[str, float] = {}
        self.first: dict[str, float] = {}  # step means of the first look
        self.window: list[Mapping[str, float]] = []  # figures of the steps since the last look
        self.checks: list[Record] = []
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.file: TextIO | None = None
        if self.run_dir is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.file = (self.run_dir / "metrics.jsonl").open("w", encoding="utf-8")

    def _check(self, ntp: BatchSource | None, requests: BatchSource | None) -> None:
        if self.engine.model is self.policy:
            raise InputError("policy and engine share one model: its rollouts would be no snapshot", fix="engine_for")
        if not isinstance(self.policy, Generator):
            raise InputError("only a generator can be aligned")
        if ntp is None and self.config.next_token_weight:
            raise InputError("the next-token loss has no batches", fix="give ntp=..., or ntp_weight = 0")
        if self.method.step is None and not self.config.next_token_weight:
            raise InputError(f"method {self.config.method!r} is the next-token loss alone, and its weight is 0")
        if self.method.step is not None and requests is None:
            raise InputError(f"method {self.config.method!r} has no requests to work on", fix="give requests=...")
        if self.method.needs_reward and self.reward is None:
            raise InputError(f"method {self.config.method!r} needs a reward", fix="give reward=...")

    def go(self) -> AlignResult:
        self._snapshot()
        if self.probe is not None:
            self.start = self.probe.measure(self.engine)
        self._write({"event": "start", "step": 0, **self.start})
        self._keep()
        stopped = ""
        while self.step < self.config.steps and not stopped:
            if self.step % self.config.snapshot_every == 0:
                self._snapshot()
            stopped = self._take_step()
            if not stopped and (self.step % self.config.check_every == 0 or self.step == self.config.steps):
                stopped = self._look()
        if stopped:
            stopped = f"stopped at step {self.step}: {stopped}; the weights are those of step {self.good_step}"
            self._write({"event": "stopped", "step": self.step, "why": stopped})
        self._return_to_good()
        return AlignResult(self.step, self.good_step, stopped, self.start, tuple(self.checks))

    def _take_step(self) -> str:
        """One update; why the run has to stop, if it has to."""
        seed_everything(self.config.seed, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        figures: dict[str, float] = {}
        if self.requests is not None:
            assert self.method.step is not None
            self.policy.eval()
            batch = next(self.requests).to(self.engine.device)
            policy = cast(Generator, self.policy)
            try:
                outcome = self.method.step(AlignStep(policy, self.engine, self.reward, self.config, batch, self.step))
            except InputError as error:  # a reward that raised, is no number, or has no shape
                self._return_to_good()
                problem = f"{error.problem} (step {self.step}; the weights are those of step {self.good_step})"
                raise type(error)(problem, allowed=error.allowed, fix=error.fix) from error
            losses.append(self.config.method_weight * outcome.loss)
            figures |= outcome.figures
        if self.ntp is not None:
            self.policy.train()
            loss = cast(Generator, self.policy).loss(next(self.ntp).to(self.engine.device))
            losses.append(self.config.next_token_weight * loss.total / max(1, loss.count))
            figures["ntp_loss"] = float(loss.total.detach()) / max(1, loss.count)
        total = torch.stack(losses).sum()
        if total.requires_grad:  # a step whose groups all taught nothing has no gradient
            total.backward()
        limit = self.config.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.policy.parameters(), limit)) if total.requires_grad else 0.0
        self.step += 1
        figures["grad_norm"] = norm
        if not (math.isfinite(norm) and math.isfinite(float(total.detach()))):
            return f"the loss is {float(total.detach()):.3g} and its gradient has norm {norm:.3g}"
        self.optimizer.step()
        self.window.append(figures)
        self._write({"event": "step", "step": self.step, **figures})
        return ""

    def _look(self) -> str:
        """Measure the current weights; why the run has to stop, if it has to."""
        now = _means(self.window)
        self.window = []
        self.first = self.first or now
        if self.probe is not None:
            self._snapshot()
            now |= self.probe.measure(self.engine)
        record: Record = {"event": "check", "step": self.step, **now}
        self.checks.append(record)
        self._write(record)
        broken = self.gates.broken(self.start, now, self.first)
        if not broken:
            self._keep()
        return broken

    def _snapshot(self) -> None:
        self.engine.load_weights(self.policy.state_dict(), f"{self.config.method}-{self.step}")

    def _keep(self) -> None:
        """The weights of now are good."""
        self.good, self.good_step = _copied(self.policy), self.step
        if self.run_dir is not None:
            tensors = {f"model.{name}": tensor for name, tensor in self.good.items()}
            save_checkpoint(self.run_dir / FOLDER, tensors, {"step": self.step}, {"align": asdict(self.config)})

    def _return_to_good(self) -> None:
        self.policy.load_state_dict(self.good)
        self.policy.eval()
        self.engine.load_weights(self.good, f"{self.config.method}-{self.good_step}")

    def _write(self, record: Record) -> None:
        if self.file is not None:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        if self.on_progress is not None:
            self.on_progress(record)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _endless(source: BatchSource) -> Iterator[Batch]:
    epoch = 0
    while True:
        if not source.num_batches(epoch):
            raise InputError("there is nothing to align on: the source gives no batch", fix="use a larger log")
        yield from source.batches(epoch)
        epoch += 1


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _means(window: list[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every figure over the steps that had it; the largest of those that end in _max."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for figures in window for name in figures):
        values = [figures[name] for figures in window if name in figures and not math.isnan(figures[name])]
        if values:
            found[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return found
