from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_training import RingSource, Toy, accuracy

from hand_made import hand_made
from sidera.batch import Batch
from sidera.core import ArtifactError, InputError
from sidera.fit import Diverged, FitConfig, FitResult, Interrupted, fit, seed_everything, step_generator
from sidera.fit.log import mean_mfu
from sidera.fit.peak import measured_tflops
from sidera.fit.state import TrainState
from sidera.roles import Loss

FAST = FitConfig(
    epochs=12, lr=0.03, warmup_steps=5, monitor="accuracy", log_every=1, checkpoint_minutes=60, precision="f32"
)


def train(run_dir: Path, config: FitConfig = FAST, source: RingSource | None = None, **keys: Any) -> FitResult:
    model = keys.pop("model", None) or new_model()
    return fit(model, source or RingSource(), config, run_dir, **keys)


def new_model(dropout: float = 0.0) -> Toy:
    seed_everything(5)
    return Toy(dropout)


def lines(run_dir: Path, event: str = "train") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in lines(run_dir)]


def test_it_learns_and_keeps_the_best_weights(tmp_path: Path) -> None:
    model = new_model()
    result = train(tmp_path, replace(FAST, patience=0), model=model, evaluate=accuracy)
    assert result.best_metrics["accuracy"] == 1.0
    assert result.stopped_because == "epochs"
    assert result.finished
    assert result.steps == 84 == lines(tmp_path)[-1]["step"]
    assert [entry["step"] for entry in result.history] == list(range(7, 85, 7))
    assert accuracy(model) == result.best_metrics


def test_patience_ends_the_training_and_the_best_weights_return(tmp_path: Path) -> None:
    values = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    seen: list[torch.Tensor] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        seen.append(next(model.parameters()).detach().clone())
        return {"accuracy": next(values)}

    model = new_model()
    result = train(tmp_path, replace(FAST, patience=3, cooldown=0.0), model=model, evaluate=evaluate)
    assert result.stopped_because == "patience"
    assert (result.best_step, result.steps) == (14, 35)
    assert torch.equal(next(model.parameters()), seen[1])


def test_a_monitored_loss_is_minimised(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0, 2.5])
    config = replace(FAST, monitor="valid_loss", patience=2, cooldown=0.0)
    result = train(tmp_path, config, evaluate=lambda model: {"valid_loss": next(values)})
    assert result.best_metrics == {"valid_loss": 1.0}
    assert result.best_step == 14


def test_accumulation_does_not_change_the_loss(tmp_path: Path) -> None:
    """Six batches of an epoch, summed three by three, against the same data in two batches."""

    class Joined(RingSource):
        def num_batches(self, epoch: int) -> int:
            return 2

        def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
            small = list(super().batches(epoch))
            for group in (small[:3], small[3:])[start:]:
                yield hand_made(
                    torch.cat([batch.item_ids for batch in group]),
                    torch.cat([torch.zeros(1, dtype=torch.int64), *(batch.lengths for batch in group)]).cumsum(0),
                    torch.cat([batch.target_ids for batch in group if batch.target_ids is not None]),
                    kind="event",
                    global_count=sum(batch.global_count or 0 for batch in group),
                )

    train(tmp_path / "cut", replace(FAST, accumulate=3), RingSource(num_batches=6))
    train(tmp_path / "whole", FAST, Joined(num_batches=6))
    cut, whole = losses(tmp_path / "cut"), losses(tmp_path / "whole")
    assert len(cut) == 24
    assert [loss for _, loss in cut] == pytest.approx([loss for _, loss in whole], abs=2e-5)


def test_the_last_step_of_an_epoch_may_have_fewer_batches(tmp_path: Path) -> None:
    result = train(tmp_path, replace(FAST, accumulate=3, epochs=2))
    assert result.steps == 6  # 3 + 3 + 1 batches an epoch


def test_bf16_learns_too(tmp_path: Path) -> None:
    model = new_model()
    result = train(tmp_path, replace(FAST, precision="bf16"), model=model, evaluate=accuracy)
    assert result.best_metrics["accuracy"] > 0.9
    assert next(model.parameters()).dtype == torch.float32


def test_max_steps_ends_in_mid_epoch_and_evaluates(tmp_path: Path) -> None:
    result = train(tmp_path, replace(FAST, max_steps=10, min_lr_ratio=0.0), evaluate=accuracy)
    assert (result.steps, result.stopped_because) == (10, "max_steps")
    assert [entry["step"] for entry in result.history] == [7, 10]
    assert lines(tmp_path)[-1]["lr"] == 0.0


def test_a_time_budget_ends_with_a_low_rate(tmp_path: Path) -> None:
    config = replace(FAST, epochs=10_000, max_minutes=0.5 / 60, min_lr_ratio=0.01, warmup_steps=0)
    train(tmp_path / "warm", replace(FAST, max_steps=1))  # the first optimizer of a process costs seconds of imports
    result = train(tmp_path, config, RingSource(pause=0.01))
    assert result.stopped_because == "max_minutes"
    assert result.wall_seconds >= 0.5
    assert result.steps < 10_000  # of 70,000
    assert lines(tmp_path)[-1]["lr"] == pytest.approx(config.lr * 0.01)


def test_a_budget_leaves_time_for_the_evaluation_at_its_end(tmp_path: Path) -> None:
    state = TrainState(evaluation_seconds=10.0, evaluation_cpu=4.0)
    assert [state.time_share(FAST, seconds, 60.0) for seconds in (0.0, 25.0, 50.0)] == [0.0, 0.5, 1.0]
    assert state.time_share(replace(FAST, clock="cpu"), 28.0, 60.0) == 0.5
    assert state.time_share(FAST, 5.0, 8.0) > 1  # an evaluation longer than the budget leaves half of it for steps
    assert state.time_share(FAST, 1e9, float("inf")) == 0.0

    def slow(model: nn.Module) -> dict[str, float]:
        time.sleep(0.2)
        return accuracy(model)

    train(tmp_path / "warm", replace(FAST, max_steps=1))
    config = replace(FAST, epochs=10_000, max_minutes=1.5 / 60, eval_every_epochs=0, eval_every_steps=15, patience=0)
    result = fit(Toy(), RingSource(pause=0.01), config, tmp_path / "run", evaluate=slow, spent_seconds=0.3)
    assert result.stopped_because == "max_minutes"
    before_last, last = (entry["step"] for entry in result.history[-2:])
    assert last - before_last > 1  # no two evaluations with one step between them


def test_pieces_take_the_steps_of_one_run(tmp_path: Path) -> None:
    source = RingSource(pause=0.01)
    config = replace(FAST, epochs=6, piece_minutes=0.15 / 60)
    num_pieces = 0
    while True:
        torch.manual_seed(num_pieces)  # a new process would begin with other weights
        result = (
            fit(Toy(0.3), source, config, tmp_path / "pieces", evaluate=accuracy)
            if num_pieces
            else train(tmp_path / "pieces", config, source, model=new_model(0.3), evaluate=accuracy)
        )
        num_pieces += 1
        if result.finished:
            break
        assert result.stopped_because == "piece_minutes"
    whole = train(tmp_path / "whole", replace(FAST, epochs=6), model=new_model(0.3), evaluate=accuracy)
    assert num_pieces > 1
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    assert result.best_metrics == whole.best_metrics


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, again = new_model(), Toy()
    result = train(tmp_path, model=first, evaluate=accuracy)
    repeated = train(tmp_path, model=again, evaluate=accuracy)
    assert repeated == result
    assert torch.equal(first.item.weight, again.item.weight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    class Interrupting(RingSource):
        def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
            for index, batch in enumerate(super().batches(epoch, start)):
                if (epoch, index) == (1, 2):
                    os.kill(os.getpid(), number)
                yield batch

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 10 of 84; run the same command again"):
        train(tmp_path / "a", source=Interrupting(), model=new_model(0.3), evaluate=accuracy)
    assert signal.getsignal(number) is before
    train(tmp_path / "a", model=Toy(0.3), evaluate=accuracy)
    train(tmp_path / "b", model=new_model(0.3), evaluate=accuracy)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_signal_leaves_an_evaluation_at_once(tmp_path: Path) -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the evaluation went on")

    with pytest.raises(Interrupted):
        train(tmp_path, evaluate=evaluate)
    result = train(tmp_path, model=Toy(), evaluate=accuracy)
    assert result.history[0]["step"] == 7  # the evaluation that was left is made up for


class Poisoned(Toy):
    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        return Loss(loss.total * (float("nan") if 3 in batch.item_ids else 1.0), loss.count)


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    model = Poisoned()
    config = replace(FAST, checkpoint_minutes=0)
    with pytest.raises(Diverged, match=r"diverged at step \d+: loss nan.*lower \[fit\] lr \(now 0.03\)"):
        train(tmp_path, config, model=model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"monitor = 'ndcg@10' is not evaluated; allowed: accuracy, loss"):
        train(tmp_path / "a", replace(FAST, monitor="ndcg@10"), evaluate=accuracy)
    with pytest.raises(InputError, match="nothing to train on"):
        train(tmp_path / "b", source=RingSource(num_batches=0))
    with pytest.raises(InputError, match="validation accuracy = nan at step 7"):
        train(tmp_path / "c", evaluate=lambda model: {"accuracy": float("nan")})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot make the folder .*file/run: Not a directory; fix: choose another"):
        train(tmp_path / "file" / "run")
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        train(tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        train(tmp_path)


def test_a_checkpoint_of_another_recipe_model_or_data_is_refused(tmp_path: Path) -> None:
    train(tmp_path, replace(FAST, epochs=1))
    with pytest.raises(ArtifactError, match=r"fit\.lr = 0\.03 there and 0\.01 here"):
        train(tmp_path, replace(FAST, epochs=1, lr=0.01))
    with pytest.raises(ArtifactError, match=r"model\.weights = "):
        train(tmp_path, replace(FAST, epochs=1), model=Toy(width=8))
    source = RingSource()
    source.digest = "spiral"
    with pytest.raises(ArtifactError, match=r"data = 'ring' there and 'spiral' here"):
        train(tmp_path, replace(FAST, epochs=1), source)
    assert train(tmp_path, replace(FAST, epochs=1, num_threads=1, piece_minutes=1.0)).steps == 7


def test_tensorboard_events_and_flops(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    class Counted(Toy):
        def flops_per_batch(self, batch: Batch) -> float:
            return 1e6 * batch.item_ids.numel()

    config = replace(FAST, epochs=1, tensorboard=True, peak_tflops=0.5)
    shown: list[dict[str, Any]] = []
    train(tmp_path, config, model=Counted(), on_progress=lambda line: shown.append(dict(line)))
    assert list((tmp_path / "tensorboard").glob("events.*"))
    last = lines(tmp_path)[-1]
    assert last["mfu"] == pytest.approx(last["tflops"] / 0.5)
    assert last["tflops"] == pytest.approx(last["tokens_per_second"] * 1e6 / 1e12, rel=0.01)
    assert shown == lines(tmp_path)


def test_a_step_has_its_own_numbers() -> None:
    seed_everything(3, step=10)
    first = torch.rand(4)
    torch.rand(100)
    seed_everything(3, step=10)
    assert torch.equal(torch.rand(4), first)
    seed_everything(3, step=10, rank=1)
    assert not torch.equal(torch.rand(4), first)
    assert torch.equal(torch.rand(2, generator=step_generator(3, 10)), torch.rand(2, generator=step_generator(3, 10)))


def test_small_data_gets_the_steps_it_needs(tmp_path: Path) -> None:
    """Seven batches an epoch: min_steps = 20 makes three epochs of the one that was asked for."""
    config = replace(FAST, epochs=1, patience=0, max_steps=None)
    assert train(tmp_path / "plain", config).steps == 7
    assert train(tmp_path / "more", replace(config, min_steps=20)).steps == 21


def test_without_a_given_peak_the_mfu_is_of_a_measured_product(tmp_path: Path) -> None:
    class Counted(Toy):
        def flops_per_batch(self, batch: Batch) -> float:
            return 1e6 * batch.item_ids.numel()

    train(tmp_path, replace(FAST, epochs=1), model=Counted())
    peak = measured_tflops(torch.device("cpu"))
    assert 1e-3 < peak < 1e3  # TFLOP/s
    found = lines(tmp_path)
    assert all(line["mfu"] == pytest.approx(line["tflops"] / peak) for line in found)
    assert mean_mfu(tmp_path) == pytest.approx(sum(line["mfu"] for line in found) / len(found))
    assert mean_mfu(tmp_path / "elsewhere") is None
