"""Precision and threads are settled before the first step, stored, repeated, and change no result by being tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import RingSource, Toy, accuracy
from train_toy import losses

from sidera.fit import FitConfig, FitResult, distributed, fit, peak, seed_everything, tuning
from sidera.fit.protocols import model_loss
from sidera.fit.state import Clock, TrainState
from sidera.fit.tuning import Steps, settle
from sidera.ops import processor
from sidera.ops.cores import library_threads
from sidera.ops.processor import PAYS
from sidera.ops.threads import Choice, choose_threads, num_threads, usable_threads

CONFIG = FitConfig(epochs=3, lr=0.03, warmup_steps=5, monitor="accuracy", log_every=1, patience=0)


@pytest.fixture(autouse=True)
def one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "emulates_bf16", lambda device: True)


def train(folder: Path, config: FitConfig, source: Any = None, **arguments: Any) -> FitResult:
    seed_everything(5)
    return fit(Toy(dropout=0.2), source or RingSource(), config, folder, evaluate=accuracy, **arguments)


def settled(config: FitConfig, state: TrainState | None = None, steps: int = 100) -> tuple[TrainState, str]:
    state = state or TrainState()
    with num_threads(0):
        line = settle(Steps(Toy(), model_loss, RingSource(), steps), config, state, Clock(), torch.device("cpu"))
        assert torch.get_num_threads() == state.num_threads
    return state, line


class FakeClock:
    """A clock that only the work moves, so that neighbours of the test do not count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("sidera.ops.threads.time.perf_counter", lambda: self.now)

    def work(self, seconds: dict[int, float]) -> Any:
        """Work that takes so long on so many threads; its first call on each takes ten times as long."""
        warm: set[int] = set()

        def call(number: int) -> None:
            count = torch.get_num_threads()
            self.now += seconds[count] * (1 if count in warm else 10)
            warm.add(count)

        return call


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({1: 0.010, 2: 0.015}, 1, [1, 2]),  # a busy machine: two wait for each other
        ({1: 0.010, 2: 0.0095}, 1, [1, 2]),  # hardly faster is not worth a second core
        ({1: 0.020, 2: 0.005}, 2, [1, 2]),
        ({1: 0.040, 2: 0.020, 4: 0.010, 6: 0.003}, 6, [1, 2, 4, 6]),
        ({1: 0.020, 2: 0.005, 4: 0.020, 6: 0.001}, 2, [1, 2, 4]),  # more were slower: no further
        ({1: 0.010}, 1, []),
    ],
)
def test_more_threads_have_to_be_clearly_faster(
    seconds: dict[int, float], chosen: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    choice = choose_threads(FakeClock(monkeypatch).work(seconds), max(seconds))
    assert choice.threads == chosen
    assert choice.seconds == pytest.approx({count: seconds[count] for count in tried})
    assert torch.get_num_threads() == before


def test_long_work_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0.0, 1e6, 3.0))  # every call takes three seconds
    monkeypatch.setattr("sidera.ops.threads.time.perf_counter", lambda: float(next(clock)))
    calls: list[int] = []
    assert choose_threads(calls.append, 2).threads == 1
    assert calls == [0, 0, 1, 1]  # a warm-up and a timed call each


def test_the_choice_in_words() -> None:
    assert Choice(1, 2, {1: 0.031, 2: 0.045}).describe() == "threads: 1 of 2 (1 thread 31 ms a step, 2 threads 45 ms)"
    assert Choice(2, 2, {1: 2.5, 2: 0.0012}).describe("batch") == (
        "threads: 2 of 2 (1 thread 2.50 s a batch, 2 threads 1.2 ms)"
    )
    assert Choice(1, 1).describe() == "threads: 1 of 1"


def test_the_process_may_have_been_given_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidera.ops.threads.available_cores", lambda: 8)
    with num_threads(3):
        assert usable_threads() == 3
    monkeypatch.setattr("sidera.ops.threads.available_cores", lambda: 1)
    with num_threads(3):
        assert usable_threads() == 1


def test_timing_changes_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training whose threads were found by timing is, bit for bit, the one that was told their number."""
    train(tmp_path / "told", replace(CONFIG, num_threads=1))
    monkeypatch.setattr(tuning, "usable_threads", lambda: 2)
    tried: list[int] = []

    def one_is_faster(call: Any, limit: int, rounds: int) -> Choice:
        tried.append(limit)
        for number in range(3):
            call(number)
        return Choice(1, limit, {1: 0.01, 2: 0.02})

    monkeypatch.setattr(tuning, "choose_threads", one_is_faster)
    said: list[str] = []
    before = torch.get_num_threads()
    result = train(tmp_path / "timed", CONFIG, say=said.append)
    assert tried == [2]
    assert torch.get_num_threads() == before
    assert losses(tmp_path / "timed") == losses(tmp_path / "told")
    assert said == ["train: f32, threads: 1 of 2 (1 thread 10 ms a step, 2 threads 20 ms)"]
    assert (result.precision, result.num_threads) == ("f32", 1)


def test_timing_leaves_model_and_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Toy):
        """A model whose loss leaves a trace in a buffer, as experts that are balanced do."""

        def __init__(self) -> None:
            super().__init__(dropout=0.2)
            self.register_buffer("calls", torch.zeros(1))

        def loss(self, batch: Any) -> Any:
            self.calls += 1
            return super().loss(batch)

    monkeypatch.setattr(tuning, "usable_threads", lambda: 2)
    seed_everything(1)
    model, state = Counting().eval(), TrainState()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch_numbers, numpy_numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    with num_threads(0):
        settle(Steps(model, model_loss, RingSource(), 100), CONFIG, state, Clock(), torch.device("cpu"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), torch_numbers)
    assert np.array_equal(np.random.get_state()[1], numpy_numbers)
    assert state.num_threads in (1, 2)
    assert state.window.wall_start == state.wall_seconds > 0  # counted, but in no step's rate


def test_a_resumed_training_repeats_what_was_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another processor too: this one is said to do bf16 well when it begins and not when it goes on."""
    monkeypatch.setattr(processor, "emulates_bf16", lambda device: False)
    monkeypatch.setattr(tuning, "PAYS", 0.0)  # bf16 counts as faster whatever the clock says
    whole = train(tmp_path / "whole", CONFIG)
    first = train(tmp_path / "pieces", replace(CONFIG, piece_minutes=1e-9))
    assert not first.finished
    assert first.precision == whole.precision == "bf16"
    record = json.loads((tmp_path / "pieces" / "checkpoint" / "state.json").read_text())
    assert (record["state"]["precision"], record["state"]["num_threads"]) == ("bf16", torch.get_num_threads())
    monkeypatch.setattr(processor, "emulates_bf16", lambda device: True)
    monkeypatch.setattr(tuning, "_Trial", None)  # nothing is timed again
    said: list[str] = []
    rest = train(tmp_path / "pieces", CONFIG, say=said.append)
    assert rest.finished
    assert (rest.precision, said) == ("bf16", ["train: bf16, threads: 1, as before"])
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    exact = train(tmp_path / "exact", replace(CONFIG, precision="f32"))
    assert losses(tmp_path / "exact") != losses(tmp_path / "whole")  # bf16 was really used
    assert exact.precision == "f32"


def test_threads_of_the_recipe_go_before_the_stored_ones() -> None:
    state, line = settled(replace(CONFIG, num_threads=2), TrainState(precision="f32", num_threads=1))
    assert line == "f32, threads: 2, 1 before"
    assert state.num_threads == 2  # which the next piece repeats


def test_the_command_line_fixes_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_Trial", None)
    with library_threads(2):
        state, line = settled(CONFIG)
        assert (state.num_threads, line) == (2, "f32, threads: 2 of 2")
        _, line = settled(CONFIG, TrainState(precision="f32", num_threads=1))
        assert line == "f32, threads: 2, 1 before"


def test_auto_keeps_bf16_only_where_the_steps_are_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "emulates_bf16", lambda device: False)
    monkeypatch.setattr(tuning, "PAYS", PAYS)
    for bf16, expected in ((0.010, "bf16"), (0.029, "f32"), (0.050, "f32")):
        monkeypatch.setattr(tuning, "in_turns", lambda calls, rounds, bf16=bf16: {"f32": 0.030, "bf16": bf16})
        state, line = settled(CONFIG)
        assert state.precision == expected
        assert f"bf16 {1000 * bf16:.3g} ms a step" in line
    assert settled(replace(CONFIG, precision="bf16"))[0].precision == "bf16"


def test_beside_other_ranks_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "usable_threads", lambda: 8)
    monkeypatch.setattr(tuning, "_Trial", None)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert settled(CONFIG)[0].num_threads == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two machines of two
    assert settled(CONFIG)[0].num_threads == 4


@pytest.fixture
def fresh_peaks() -> Iterator[None]:
    peak._measure.cache_clear()
    yield
    peak._measure.cache_clear()
    peak._reached.clear()


@pytest.mark.usefixtures("fresh_peaks")
def test_emulated_bf16_is_measured_against_what_the_processor_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One way of multiplying emulated bf16 is a hundred times slower than others: an MFU of 409 % came of it."""
    monkeypatch.setattr(peak, "emulates_bf16", lambda device: True)
    timed: list[torch.dtype] = []

    def seconds(way: Any, matrix: torch.Tensor, device: torch.device) -> float:
        timed.append(matrix.dtype)
        return 1e-3 * len(timed)

    monkeypatch.setattr(peak, "_seconds", seconds)
    found = peak.measured_tflops(torch.device("cpu"), "bf16")
    assert found == pytest.approx(2 * 1024**3 / 1e-3 / 1e12)  # of the fastest way
    assert set(timed) == {torch.float32}


@pytest.mark.usefixtures("fresh_peaks")
def test_what_was_reached_is_no_more_than_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_seconds", lambda *_: 2 * 1024**3 / 0.05e12)  # neighbours were busy: 0.05 TFLOP/s
    state = TrainState(wall_seconds=1.0)
    for flops, mfu in ((0.02e12, 0.4), (0.08e12, 1.0), (0.02e12, 0.25)):
        state.window.add(1.0, 1.0, 10.0, flops)
        state.wall_seconds += 1.0
        state.window.wall_start = state.wall_seconds - 1.0
        line = state.close_window(0.1, lambda reached: peak.measured_tflops(torch.device("cpu"), "f32", reached))
        assert line["mfu"] == pytest.approx(mfu)
