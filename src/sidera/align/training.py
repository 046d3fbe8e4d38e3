"""Alignment as a training: the method's loss and the next-token loss as the objective, gates as the watch of ``fit``.

    result = align(policy, engine, AlignConfig(method="ecpo"), ntp=source, requests=source, reward=p_score, probe=probe)

``policy`` is trained in place; ``engine`` is a Recommender around a *copy* of it and rolls out. A step: method loss on
fresh rollouts or logged exposures + weight x next-token loss -> gradient -> update. Every ``check_every`` steps the
probe looks at the current weights through the engine; a run that leaves its gates stops, and policy and engine go back
to the last weights that were good. Nothing stops a run for its reward.

A reward that raises and a gradient that is not finite end the run too, in one line, at the last good weights. A run
that is killed goes on from its checkpoint: weights, optimizer, the engine's snapshot, the reward's counters and what
the gates compare with are in it, and draws are a function of (seed, batch). Several processes draw and learn as one
does on all their requests; a reward that keeps something between steps keeps it for the requests of its own process.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidera.align.config import AlignConfig
from sidera.align.diagnostics import Probe
from sidera.align.gates import Gates
from sidera.align.joint import JointBatch, JointSource
from sidera.align.methods import Method, method_of
from sidera.align.rewards import Reward
from sidera.align.step import AlignStep
from sidera.core import InputError
from sidera.engine.recommender import Recommender
from sidera.fit import distributed
from sidera.fit.diverged import Diverged
from sidera.fit.loop import fit
from sidera.fit.protocols import BatchSource, Look, restore, states, under
from sidera.roles import Generator, Loss

Record = dict[str, Any]


@dataclass(frozen=True)
class AlignResult:
    """How a run ended; policy and engine hold the weights of ``good_step``."""

    steps: int  # that were taken
    good_step: int  # of the last weights that passed the gates
    stopped: str  # "" when all steps were taken, or one line why not
    start: Mapping[str, float]  # the probe before the first step
    checks: tuple[Record, ...]  # probe and step means of every look
    cpu_seconds: float = 0.0  # of all calls together; 0 where the run diverged


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
    identity: Mapping[str, Any] | None = None,
    on_progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> AlignResult:
    """Align ``policy`` in place.

    ``ntp``: batches of the next-token loss, as the policy trains on; needed unless its weight is 0. ``requests``:
    batches of ``config.requests`` histories for the method (for learning from logs: every exposure with feedback).
    ``probe`` None looks at no held-out figure, and only what the steps report can break a gate. ``run_dir`` receives
    ``metrics.jsonl`` and ``checkpoint/``, and a checkpoint found there is continued; None keeps nothing. ``identity``:
    what else decides the result (the start, the reward).
    """
    method = method_of(config.method)
    _check(policy, engine, config, method, ntp=ntp, requests=requests, reward=reward)
    objective = PolicyObjective(engine, config, reward, is_probed=probe is not None)
    watch = GateWatch(objective, probe, gates or Gates())
    source = JointSource(
        config.steps * config.accumulate,
        requests if method.step else None,
        ntp if config.next_token_weight else None,
    )
    with contextlib.ExitStack() as stack:
        folder = run_dir if run_dir is not None else stack.enter_context(tempfile.TemporaryDirectory())
        try:
            result = fit(
                policy, source, config.fit(), folder, objective=objective, watch=watch, device=engine.device,
                identity={"align": config.identity(), **(identity or {})}, on_progress=on_progress,
            )  # fmt: skip
            steps, why, cpu_seconds = result.steps, "", result.cpu_seconds
        except Diverged as error:  # on all ranks alike
            steps, cpu_seconds = error.step, 0.0
            why = f"the loss is {error.loss:.3g} and its gradient has norm {error.norm:.3g}"
            distributed.share_weights(policy)
        finally:
            policy.eval()
            engine.load_weights(policy.state_dict(), f"{config.method}-{watch.good_step}")
    watch.restore(distributed.share(watch.state()))  # only rank 0's has looked
    engine.sign(f"{config.method}-{watch.good_step}")
    why = why or watch.broken
    stopped = f"stopped at step {steps}: {why}; the weights are those of step {watch.good_step}" if why else ""
    return AlignResult(steps, watch.good_step, stopped, watch.start, tuple(watch.checks), cpu_seconds)


def _check(policy: nn.Module, engine: Recommender, config: AlignConfig, method: Method, **given: Any) -> None:
    if engine.model is policy:
        raise InputError("policy and engine share one model: its rollouts would be no snapshot", fix="engine_for")
    if not isinstance(policy, Generator):
        raise InputError("only a generator can be aligned")
    if given["ntp"] is None and config.next_token_weight:
        raise InputError("the next-token loss has no batches", fix="give ntp=..., or ntp_weight = 0")
    if method.step is None and not config.next_token_weight:
        raise InputError(f"method {config.method!r} is the next-token loss alone, and its weight is 0")
    if method.step is not None and given["requests"] is None:
        raise InputError(f"method {config.method!r} has no requests to work on", fix="give requests=...")
    if method.needs_reward and given["reward"] is None:
        raise InputError(f"method {config.method!r} needs a reward", fix="give reward=...")


class PolicyObjective:
    """The objective of ``fit``: the method on a snapshot's rollouts, and next tokens."""

    def __init__(self, engine: Recommender, config: AlignConfig, reward: Reward | None, is_probed: bool) -> None:
        self.engine, self.config, self.reward, self.is_probed = engine, config, reward, is_probed
        self.method = method_of(config.method)
        self.snapshot_step = -1  # steps behind the weights that the engine holds

    def __call__(self, model: nn.Module, batch: JointBatch, step: int) -> Loss:
        """A mean over the batch; each rank gives its part of it."""
        config = self.config
        assert isinstance(model, Generator)
        assert isinstance(model, nn.Module)
        # a probe has looked through the engine at this step's weights: on rank 0 alone, and ranks roll out alike
        if step % config.snapshot_every == 0 or (self.is_probed and step % config.check_every == 0):
            self.take_snapshot(model, step)
        losses: list[Tensor] = []
        figures: dict[str, float] = {}
        if batch.requests is not None and batch.requests.num_histories:
            assert self.method.step is not None
            model.eval()
            align_step = AlignStep(model, self.engine, self.reward, config, batch.requests, batch.number)
            outcome = self.method.step(align_step)
            losses.append(config.method_weight * outcome.loss)
            figures |= outcome.figures
        if batch.next_tokens is not None and batch.next_tokens.num_histories:
            model.train()
            loss = model.loss(batch.next_tokens)
            count = max(1, batch.next_tokens.global_count or loss.count)
            losses.append(config.next_token_weight * loss.total / count)
            figures["ntp_loss"] = float(loss.total.detach()) / count * distributed.world_size()
        return Loss(torch.stack(losses).sum(), 1, over_ranks(figures))

    def take_snapshot(self, model: nn.Module, step: int) -> None:
        """The engine rolls out with the weights of now."""
        if self.snapshot_step != step:
            self.engine.load_weights(model.state_dict(), f"{self.config.method}-{step}")
            self.snapshot_step = step

    def state(self) -> Mapping[str, Any]:
        snapshot = {f"snapshot/{name}": tensor for name, tensor in self.engine.model.state_dict().items()}
        return {"step": self.snapshot_step, **snapshot, **states({"reward": self.reward})}

    def restore(self, state: Mapping[str, Any]) -> None:
        restore({"reward": self.reward}, state)
        self.snapshot_step = state["step"]
        self.engine.load_weights(under("snapshot/", state), f"{self.config.method}-{self.snapshot_step}")


def over_ranks(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of a step over the requests of all ranks: quantiles too are means, extremes stay extremes."""
    everyone = distributed.gather_objects(dict(figures))
    merged = {}
    for name in sorted({name for one in everyone for name in one}):
        values = [one[name] for one in everyone if name in one and not math.isnan(one[name])] or [math.nan]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged


class GateWatch:
    """The watch of ``fit``: weights that pass the gates are kept, and the first ones that do not end the run."""

    at_start = True

    def __init__(self, objective: PolicyObjective, probe: Probe | None, gates: Gates) -> None:
        self.objective, self.probe, self.gates = objective, probe, gates
        self.start: dict[str, float] = {}
        self.first: dict[str, float] = {}  # step means of the first look
        self.checks: list[Record] = []
        self.good_step, self.broken = 0, ""

    def __call__(self, model: nn.Module, step: int, means: Mapping[str, float]) -> Look:
        seen: dict[str, float] = {}
        if self.probe is not None:
            self.objective.take_snapshot(model, step)
            seen = self.probe.measure(self.objective.engine)
        if step == 0:
            self.start = seen
            return Look(seen, better=True)
        self.first = self.first or dict(means)
        now = {**means, **seen}
        self.checks.append({"step": step, **now})
        self.broken = self.gates.broken(self.start, now, self.first)
        if not self.broken:
            self.good_step = step
        return Look(now, not self.broken, self.broken)

    def state(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in ("start", "first", "checks", "good_step", "broken")}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
