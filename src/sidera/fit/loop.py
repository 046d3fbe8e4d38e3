"""The training loop: steps, evaluations, early stopping, checkpoints, and continuing after any of them.

    result = fit(model, source, config, "runs/x/fit", evaluate=lambda model: {"ndcg@10": ...})

Order within a step: batches -> gradients of the *sum* of losses over the *number* of targets (over micro-batches and
ranks) -> agreement of the ranks on clock and signals -> clip -> update. Then, if due: log line, evaluation, checkpoint.
Everything that a step depends on is in the checkpoint or is a function of (seed, step), so a training that was killed
and resumed takes the same steps as one that was not (docs/use/training.md says what this covers).

The loop knows modules and batches and nothing of recommending. The *objective* makes the loss of a batch: by default
``model.loss(batch)``, with ``model.flops_per_batch(batch)`` (forward and backward) for the MFU where a model has it.
The *watch* looks at the weights of now, says which are worth keeping, and may end the training: validation with
patience (``evaluate=``) is one, alignment's gates are another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidera.core import InputError
from sidera.fit import distributed
from sidera.fit.checkpoint import (
    FOLDER,
    describe,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    tidy,
)
from sidera.fit.config import FitConfig
from sidera.fit.cooldown import CoolDown, cool_down_steps, stable_share
from sidera.fit.diverged import Diverged
from sidera.fit.log import TrainingLog
from sidera.fit.memory import check_fits
from sidera.fit.peak import measured_tflops
from sidera.fit.protocols import (
    BatchSource,
    Look,
    Objective,
    TrainingBatch,
    Watch,
    model_loss,
    restore,
    states,
    under,
)
from sidera.fit.schedule import count_steps, learning_rate, make_optimizer
from sidera.fit.seeding import EVALUATION, seed_everything
from sidera.fit.signals import Interrupted, StopNow, StopSignals
from sidera.fit.state import Clock, FitResult, TrainState, Window
from sidera.fit.tuning import Steps, autocast, settle
from sidera.fit.watch import Evaluate, Monitor
from sidera.ops.allocator import release_memory
from sidera.ops.threads import num_threads

OnProgress = Callable[[Mapping[str, Any]], None]


def fit(
    model: nn.Module,
    source: BatchSource,
    config: FitConfig,
    run_dir: str | Path,
    *,
    objective: Objective = model_loss,
    evaluate: Evaluate | None = None,
    watch: Watch | None = None,
    device: str = "cpu",
    identity: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] | None = None,
    spent_seconds: float = 0.0,
) -> FitResult:
    """Train ``model`` in place; afterwards it holds the weights that the watch kept (the last without one).

    ``objective(model, batch, step)`` gives the loss. ``evaluate(model)`` gives validation figures, of which
    ``config.monitor`` chooses the best weights; ``watch`` stands in its place where more is to be decided.
    ``run_dir`` receives ``checkpoint/`` and ``metrics.jsonl``. A checkpoint found there is continued: at once when it
    is a finished one. ``identity`` is whatever else decides the result (recipe, catalogue digest): a checkpoint with
    another one is refused. ``on_progress`` gets every line of the log, ``say`` the precision and the number of threads
    that were settled. ``spent_seconds`` of ``max_minutes`` are gone before the training begins (by ``config.clock``).

    Raises ``Interrupted`` (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when the step is done and saved; ``Diverged``
    when the loss is no longer finite. After an InputError of a step the model holds the weights that were kept.
    """
    check_fits(model, device)
    run_dir = Path(run_dir)
    if distributed.rank() == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {run_dir}: {error.strerror}", fix="choose another one") from error
        tidy(run_dir / FOLDER)
    distributed.barrier()
    if watch is None and evaluate is not None:
        watch = Monitor(evaluate, config)
    with num_threads(0), StopSignals() as signals:
        run = _Run(model, source, config, run_dir, objective, watch, device, signals)
        run.budget -= spent_seconds
        run.restore(identity or {})
        try:
            return run.go(on_progress, say)
        finally:
            model.eval()


class _Run:
    """One call of :func:`fit`."""

    def __init__(
        self, model: nn.Module, source: BatchSource, config: FitConfig, run_dir: Path, objective: Objective,
        watch: Watch | None, device: str, signals: StopSignals,
    ) -> None:  # fmt: skip
        self.clock = Clock()
        self.config, self.source, self.signals = config, source, signals
        self.objective, self.watch = objective, watch
        self.run_dir, self.path, self.device = run_dir, run_dir / FOLDER, torch.device(device)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.model = model.to(self.device)
        self.budget = 60 * config.max_minutes if config.max_minutes else math.inf  # seconds, the last evaluation's too
        self.optimizer = make_optimizer(model, config)
        self.optimizer.zero_grad(set_to_none=True)
        self.total_steps = count_steps(config, source)
        self.state = TrainState(evaluation_due=watch is not None and watch.at_start)
        self.best: dict[str, Tensor] = {}  # the weights that the watch kept, on the CPU; empty before it has looked
        self.pause = ""  # why this call has to stop with the training unfinished; the same on every rank
        self.steps_here = 0  # optimizer steps of this call
        self.micro_batches: Iterator[TrainingBatch] | None = None  # of the running epoch
        self.log: TrainingLog | None = None

    def go(self, on_progress: OnProgress | None, say: Callable[[str], None] | None) -> FitResult:
        """Steps and looks until the training is finished or this call has to pause."""
        if self.state.finished:
            return self.state.result(self.state.finished)
        steps = Steps(self.model, self.objective, self.source, self.total_steps)
        settled = settle(steps, self.config, self.state, self.clock, self.device)
        self.say = say or (lambda _: None)
        self.say(f"train: {settled}")
        self.parallel_loss = distributed.ParallelLoss(self.model, self.objective)
        if self.rank == 0:
            self.log = TrainingLog(
                self.run_dir, self.config, self.state.log_bytes, self.state.step, self.total_steps, on_progress
            )
        try:
            while not self.state.finished:
                if self.state.evaluation_due:
                    self._look()
                else:
                    self._step()
                if self.state.finished:
                    break
                if self.pause:
                    return self._stop_here()
                if self.clock.since_save() >= 60 * self.config.checkpoint_minutes:
                    self._save()
            return self._finish()
        except InputError:
            if self.best:
                self.model.load_state_dict(self.best)
            raise
        finally:
            self.parallel_loss.close()
            if self.log is not None:
                self.log.close()

    def _step(self) -> None:
        """One optimizer step, and the position behind it."""
        config, state = self.config, self.state
        self.model.train()
        pulled = self._pull()
        targets = sum(batch.global_count or 0 for batch in pulled)
        if targets == 0:
            raise InputError(f"batch {state.batch} of epoch {state.epoch} has no targets (Batch.global_count)")
        loss = self._backward(pulled, targets)
        self.clock.tick(state)
        tokens, flops = self._work(pulled)
        wanted = float(self.signals.requested)
        rows = distributed.gather([loss, wanted, tokens, flops, state.seconds(config), self.clock.in_call()])
        loss = sum(row[0] for row in rows)
        seconds, in_call = rows[0][4], rows[0][5]  # the clock of rank 0 is everyone's
        time_share = state.time_share(config, seconds, self.budget)
        lr = learning_rate(config, state.step, self.total_steps, time_share, state.cool_down)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm or math.inf).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            saved = f"checkpoint of step {self.clock.saved_step}: {self.path}" if self.path.exists() else "none"
            raise Diverged.at(state.step, loss, norm, f"last good state: {saved}", config.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_here += 1
        for window in (state.window, state.since_look):
            window.add(loss, norm, sum(row[2] for row in rows), sum(row[3] for row in rows))
        self._advance(len(pulled), time_share)
        if self.log is not None:
            self.log.advance()
            if state.window.steps >= config.log_every or state.ending:
                self.log.write("train", state.close_window(lr, self._peak_tflops))
        if any(row[1] for row in rows):
            self.pause = "interrupted"
        elif config.piece_minutes is not None and in_call >= 60 * config.piece_minutes:
            self.pause = "piece_minutes"

    def _pull(self) -> list[TrainingBatch]:
        """The batches of one optimizer step; the last step of an epoch may have fewer."""
        state = self.state
        if self.micro_batches is None:
            self.micro_batches = self.source.batches(state.epoch, state.batch, self.rank, self.world_size)
        pulled = list(islice(self.micro_batches, self.config.accumulate))
        if not pulled:
            raise InputError(f"the data of epoch {state.epoch} ended at batch {state.batch}, before its num_batches")
        return pulled

    def _backward(self, pulled: list[TrainingBatch], targets: int) -> float:
        """Gradients of the mean loss over ``targets``; this rank's share of that mean."""
        summed = torch.zeros((), device=self.device)
        for number, batch in enumerate(pulled):
            seed_everything(self.config.seed, self.state.step, number, self.rank)
            with self.parallel_loss.keep_local(is_last=number == len(pulled) - 1):
                with autocast(self.device, self.state.precision):
                    total, parts = self._loss(batch)
                if total.requires_grad:  # an objective may have found nothing to learn from
                    # DistributedDataParallel averages over ranks: undo its division
                    (total.float() * (self.world_size / targets)).backward()
            summed += total.detach().float()
            for window in (self.state.window, self.state.since_look):
                window.add_parts(parts, 1 / len(pulled))
        return summed.item() / targets

    def _loss(self, batch: TrainingBatch) -> tuple[Tensor, Mapping[str, float]]:
        state = self.state
        try:
            return self.parallel_loss(batch.to(self.device), state.step)
        except InputError as error:  # such as a reward that is no number
            kept = f"; the weights are those of step {state.best_step}" if state.best_step >= 0 else ""
            problem = f"{error.problem} (step {state.step}{kept})"
            raise type(error)(problem, allowed=error.allowed, fix=error.fix) from error

    def _work(self, pulled: list[TrainingBatch]) -> tuple[float, float]:
        """Events and, where the model counts them, floating-point operations of this rank's batches."""
        count_flops = getattr(self.model, "flops_per_batch", None) if self.objective is model_loss else None
        flops = sum(float(count_flops(batch)) for batch in pulled) if count_flops else 0.0
        return float(sum(batch.num_events for batch in pulled)), flops

    def _peak_tflops(self, reached: float) -> float:
        """What the MFU is measured against, all ranks together; a measured peak is never below what was reached."""
        ranks = self.world_size
        return ranks * (self.config.peak_tflops or measured_tflops(self.device, self.state.precision, reached / ranks))

    def _advance(self, num_batches: int, time_share: float) -> None:
        """Move the position; decide whether the training ends here and whether to evaluate."""
        config, state = self.config, self.state
        state.step += 1
        state.batch += num_batches
        epoch_ended = state.batch >= self.source.num_batches(state.epoch)
        if epoch_ended:
            state.epoch, state.batch, self.micro_batches = state.epoch + 1, 0, None
        last = "max_steps" if self.total_steps == config.max_steps else "epochs"
        if state.step >= (state.cool_down.end if state.cool_down else self.total_steps):
            state.ending = state.cool_down.because if state.cool_down else last
        elif time_share >= 1:
            state.ending = "max_minutes"
        by_epoch = epoch_ended and config.eval_every_epochs and state.epoch % config.eval_every_epochs == 0
        by_step = config.eval_every_steps and state.step % config.eval_every_steps == 0
        planned = max(state.step / self.total_steps, time_share) >= stable_share(config)
        if config.schedule == "wsd" and planned and not state.cool_down and not state.ending:
            self._cool_down("max_minutes" if state.step < stable_share(config) * self.total_steps else last)
        if self.watch is None:
            state.finished = state.ending
        else:
            # an evaluation before the last must leave time for steps between the two
            left = (1 - time_share) * (self.budget - (state.cool_down.seconds if state.cool_down else 0.0))
            late = left < 2 * state.reserve(config)  # False without a budget: inf
            state.evaluation_due = bool(state.ending or ((by_epoch or by_step) and not late))

    def _cool_down(self, because: str, from_best: bool = False) -> bool:
        """Begin the last phase here, or after the best weights so far; False where there is none to begin."""
        config, state, total = self.config, self.state, self.total_steps
        steps = 0 if state.cool_down else cool_down_steps(config, state.step, total)
        if steps == 0:
            return False
        seconds = distributed.share(state.seconds(config))
        lr = learning_rate(config, state.step - 1, total, state.time_share(config, seconds, self.budget))
        weights = state.best_step if from_best else state.step
        state.cool_down = CoolDown(state.step, steps, weights, lr, seconds, because)
        if from_best:
            if self.rank == 0:
                self.model.load_state_dict(self.best)
            distributed.share_weights(self.model)
        if self.log is not None:
            self.log.write("phase", {"phase": "cool-down", **asdict(state.cool_down)})
        where = f"{steps:,} steps from the weights of step {weights:,}"
        self.say(f"train: {because} at step {state.step:,}: cool-down, the rate falls from {lr:.2g} over {where}")
        return True

    # ---- the watch -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Rank 0 looks, everyone learns the figures and draws the same conclusions."""
        state = self.state
        release_memory()
        outcome = distributed.share(self._measure() if self.rank == 0 else None)
        release_memory()
        self.clock.tick(state)
        if isinstance(outcome, str):
            self.pause = outcome
            return
        look, state.evaluation_seconds, state.evaluation_cpu = outcome
        state.evaluation_due, state.since_look = False, Window()
        if look.better:
            state.best_step, state.best_metrics = state.step, dict(look.figures)
            if self.rank == 0:
                self.best = {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        record = {"step": state.step, "epoch": state.epoch, "seconds": round(state.wall_seconds, 3), **look.figures}
        state.evaluations.append(record)
        if self.log is not None:
            self.log.write("eval", record)
        cools = look.cools_down and not state.ending and (state.cool_down or self._cool_down(look.stop, from_best=True))
        state.finished = state.ending or ("" if cools else look.stop)

    def _measure(self) -> tuple[Look, float, float] | str:
        """What the watch saw, wall and processor seconds, or why this call has to pause before it has looked."""
        config, state, started, started_cpu = self.config, self.state, time.perf_counter(), time.process_time()
        assert self.watch is not None
        if config.piece_minutes is not None and self.steps_here:
            left = 60 * config.piece_minutes - self.clock.in_call()
            if left < state.evaluation_seconds:
                return "piece_minutes"
        self.model.eval()
        seed_everything(config.seed, state.step, 0, EVALUATION)
        try:
            with self.signals.at_once(), torch.no_grad():
                look = self.watch(self.model, state.step, state.since_look.means())
        except StopNow:
            return "interrupted"
        return look, time.perf_counter() - started, time.process_time() - started_cpu

    # ---- saving, stopping, continuing ------------------------------------------------------------------------------

    def _save(self) -> None:
        """Rank 0 writes the checkpoint; of a finished training it holds the final weights alone."""
        state = self.state
        if self.rank == 0 and self.log is not None:
            self.clock.tick(state)
            state.log_bytes = self.log.sync()
            parts: dict[str, Mapping[str, Tensor]] = {"best": self.best}
            if not state.finished:
                parts |= {"model": self.model.state_dict(), "optimizer": dict(optimizer_tensors(self.optimizer))}
            elif not self.best:
                parts = {"best": self.model.state_dict()}
            memory = states({"objective": self.objective, "watch": self.watch})
            parts["memory"] = {name: value for name, value in memory.items() if isinstance(value, Tensor)}
            state.memory = {name: value for name, value in memory.items() if name not in parts["memory"]}
            tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
            save_checkpoint(self.path, tensors, state.to_json(), self.identity)
        self.clock.saved(state.step)

    def restore(self, identity: Mapping[str, Any]) -> None:
        """Continue from the checkpoint, where there is one; it has to be of this training."""
        self.identity = {
            "fit": self.config.resumable(), "model": describe(self.model),
            "data": getattr(self.source, "digest", ""), **identity,
        }  # fmt: skip
        if not self.path.exists():
            return
        tensors, values = load_checkpoint(self.path, self.identity)
        self.state = TrainState.from_json(values)
        self.best = under("best/", tensors)
        self.model.load_state_dict(self.best if self.state.finished else under("model/", tensors))
        if not self.state.finished:
            restore_optimizer(self.optimizer, under("optimizer/", tensors))
        memory = {**self.state.memory, **under("memory/", tensors)}
        restore({"objective": self.objective, "watch": self.watch}, memory)
        self.clock.saved(self.state.step)

    def _stop_here(self) -> FitResult:
        """Save, then give up (a signal) or return (the piece is over)."""
        self._save()
        distributed.barrier()
        if self.pause == "interrupted":
            raise Interrupted(self.state.step, self.total_steps, self.path)
        return self.state.result(self.pause)

    def _finish(self) -> FitResult:
        if self.best:
            self.model.load_state_dict(self.best)
        self._save()
        distributed.share_weights(self.model)
        return self.state.result(self.state.finished)
