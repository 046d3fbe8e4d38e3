"""The scheduler: batches fill while one runs, deadlines hold, one bad request fails alone."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidera.core import InputError, Recommendation, Request
from sidera.engine.batch_cost import MOST_CAUTION, Cost
from sidera.engine.recommender import Recommender
from sidera.engine.scheduler import (
    MOST_MARGIN,
    Overloaded,
    Scheduler,
    SchedulerConfig,
    Stopping,
    Ticket,
)

FAR = 1e9  # a deadline that nothing misses


class Engine:
    """Stands in for a Recommender: every batch waits until it is let go, and is remembered."""

    def __init__(self, generates: bool = True) -> None:
        self.beam, self.snapshot = 50, SimpleNamespace(generates=generates)
        self.pipeline = SimpleNamespace(width=lambda k: max(50, k))
        self.batches: list[list[Request]] = []
        self.beams: list[int | None] = []
        self.go, self.begun = threading.Semaphore(0), threading.Semaphore(0)

    def answers(self, requests: Sequence[Request], beam: int | None = None) -> list[Any]:
        self.batches.append(list(requests))
        self.beams.append(beam)
        self.begun.release()
        assert self.go.acquire(timeout=30)
        return [InputError("bad") if request.k == 13 else f"for {request.user}" for request in requests]


class Desk:
    """A scheduler over an Engine, the tickets that came back, and a clock that stands until it is moved."""

    def __init__(self, config: SchedulerConfig | None = None, generates: bool = True) -> None:
        self.engine, self.back, self.now = Engine(generates), dict[str, Any](), 100.0
        self.delivered = threading.Condition()
        self.scheduler = Scheduler(self.engine, self.take, config, clock=lambda: self.now)  # type: ignore[arg-type]

    def take(self, tickets: Sequence[Ticket]) -> None:
        with self.delivered:
            self.back |= {str(ticket.request.user): ticket.outcome for ticket in tickets}
            self.delivered.notify_all()

    def ask(self, user: str, deadline: float = FAR, **more: Any) -> Ticket:
        ticket = Ticket(Request(user=user, k=more.pop("k", 10)), deadline, **more)
        self.scheduler.submit(ticket)
        return ticket

    def run_one(self, wait: Callable[[], bool]) -> None:
        """Let the batch that runs end, and wait for what follows of it."""
        self.engine.go.release()
        with self.delivered:
            assert self.delivered.wait_for(wait, 30)

    def begin(self) -> None:
        """A first request keeps the engine busy."""
        self.ask("first")
        assert self.engine.begun.acquire(timeout=30)

    def end(self) -> None:
        for _ in range(50):
            self.engine.go.release()
        self.scheduler.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.end()


def users(batch: Sequence[Request]) -> list[str | None]:
    return [request.user for request in batch]


def test_a_batch_fills_while_one_runs(desk: Desk) -> None:
    desk.begin()
    for name in "abc":
        desk.ask(name)
    desk.run_one(lambda: "first" in desk.back)
    desk.run_one(lambda: len(desk.back) == 4)
    assert [users(batch) for batch in desk.engine.batches] == [["first"], ["a", "b", "c"]]
    assert desk.back["b"] == "for b"
    assert (desk.scheduler.counts.batches, desk.scheduler.counts.rows) == (2, 200)


def test_the_earliest_deadline_goes_first_within_a_priority() -> None:
    desk = Desk(SchedulerConfig(max_rows=50))
    desk.begin()
    for name, deadline, priority in (("late", 900, 1), ("low", 200, 2), ("soon", 300, 1), ("high", 999, 0)):
        desk.ask(name, deadline, priority=priority)
    desk.end()
    assert [users(batch) for batch in desk.engine.batches] == [["first"], ["high"], ["soon"], ["late"], ["low"]]


def test_a_bad_request_fails_alone(desk: Desk) -> None:
    desk.begin()
    desk.ask("good")
    desk.ask("bad", k=13)
    desk.run_one(lambda: "first" in desk.back)
    desk.run_one(lambda: len(desk.back) == 3)
    assert desk.back["good"] == "for good"
    assert isinstance(desk.back["bad"], InputError)
    assert desk.scheduler.counts.failed == 1


def test_who_left_costs_nothing(desk: Desk) -> None:
    desk.begin()
    desk.ask("gone").cancelled = True
    desk.ask("here")
    desk.run_one(lambda: "first" in desk.back)
    desk.run_one(lambda: "here" in desk.back)
    assert [users(batch) for batch in desk.engine.batches] == [["first"], ["here"]]
    assert desk.scheduler.counts.dropped == 1


def test_what_cannot_be_met_is_refused_at_once_and_what_became_late_when_its_turn_comes(desk: Desk) -> None:
    for rows in (50, 500, 50, 500):
        desk.scheduler.cost.saw(rows, 0.01 + 0.001 * rows)  # a request: 60 ms alone
    desk.ask("first", deadline=desk.now)  # idle: answered, though its deadline cannot be met
    assert desk.engine.begun.acquire(timeout=30)
    with pytest.raises(Overloaded, match="an answer may take 120 ms") as refusal:
        desk.ask("hopeless", desk.now + 0.1)
    assert refusal.value.retry_after == pytest.approx(0.02)
    desk.ask("in time", desk.now + 0.13)
    desk.ask("patient", desk.now + 9)
    desk.now += 1.0  # the batch took longer than foreseen
    desk.run_one(lambda: "in time" in desk.back)
    assert isinstance(desk.back["in time"], Overloaded)
    assert desk.back["first"] == "for first"
    desk.run_one(lambda: "patient" in desk.back)
    counts = desk.scheduler.counts
    assert (counts.answered, counts.refused, counts.late) == (2, 1, 1)


def test_what_will_be_late_is_refused_when_that_is_seen() -> None:
    """Not when its turn comes: it would have waited in vain."""
    desk = Desk(SchedulerConfig(max_rows=50))
    for _ in range(50):
        desk.scheduler.cost.saw(50, 1.0)
    desk.begin()
    for name, deadline in (("a", 104.8), ("b", 105.0), ("c", 105.2)):
        desk.ask(name, deadline)
    desk.now = 102.6  # the first batch took more than twice its time
    desk.run_one(lambda: len(desk.back) == 2)
    assert isinstance(desk.back["c"], Overloaded)
    assert "take too long" in desk.back["c"].problem
    assert set(desk.back) == {"first", "c"}, "a is being answered and b may still be"
    assert desk.scheduler.counts.late == 1
    assert sum(desk.scheduler._waiting_rows) == 50
    desk.end()


def test_where_tickets_become_late_fewer_are_let_in_for_a_while() -> None:
    desk = Desk(SchedulerConfig(max_rows=50))
    for _ in range(50):
        desk.scheduler.cost.saw(50, 1.0)
    desk.begin()
    desk.ask("late", 102.5)
    desk.now = 110.0
    desk.run_one(lambda: len(desk.back) == 2)
    assert isinstance(desk.back["late"], Overloaded)
    margin = desk.scheduler._margin
    assert 1 < margin <= MOST_MARGIN
    for number in range(1, 30):
        desk.ask(f"calm{number}")
        desk.run_one(lambda number=number: f"calm{number}" in desk.back)  # type: ignore[misc]
    assert 1 <= desk.scheduler._margin < margin
    desk.end()


def test_costs_that_vary_refuse_at_once_what_may_become_late(desk: Desk) -> None:
    for rows in (50, 500) * 50:
        desk.scheduler.cost.saw(rows, 0.01 + 0.001 * rows)  # a request: 60 ms alone
    desk.begin()
    desk.ask("steady", desk.now + 0.13)
    assert desk.scheduler.cost.caution == pytest.approx(1, abs=0.01)
    for number in range(40):
        desk.scheduler.cost.saw(50, 0.04 if number % 2 else 0.08)
    assert desk.scheduler.cost.seconds(50) == pytest.approx(0.06, rel=0.2)
    assert desk.scheduler.cost.caution == MOST_CAUTION
    with pytest.raises(Overloaded):
        desk.ask("too near", desk.now + 0.2)  # two requests ahead of its own: 180 ms, if all goes well
    desk.ask("patient", desk.now + 0.3)  # what would be there in 180 ms is not refused for a doubt


def test_a_batch_over_its_time_is_expected_to_take_as_long_again(desk: Desk) -> None:
    for rows in (50, 500, 50, 500):
        desk.scheduler.cost.saw(rows, 0.01 + 0.001 * rows)
    desk.begin()
    alone = desk.scheduler.cost.seconds(50)
    desk.now += alone + 5
    assert desk.scheduler.wait_for(50) == pytest.approx(alone + 5)


def test_the_queue_is_bounded() -> None:
    desk = Desk(SchedulerConfig(max_waiting=2))
    desk.begin()
    for name in "ab":
        desk.ask(name)
    with pytest.raises(Overloaded, match="2 requests wait already"):
        desk.ask("c")
    desk.end()


def test_a_batch_takes_no_longer_than_it_should() -> None:
    """Half a millisecond a row above 1 ms: 40 ms hold 78 rows. A batch that costs 20 ms by itself takes 60 ms: 80."""
    desk = Desk()
    for rows in (10, 100):
        desk.scheduler.cost.saw(rows, 0.001 + 0.0005 * rows)
    assert desk.scheduler._row_budget() == pytest.approx(78)
    slow = Desk()
    for rows in (10, 100):
        slow.scheduler.cost.saw(rows, 0.020 + 0.0005 * rows)
    assert slow.scheduler._row_budget() == pytest.approx(80)
    desk.end(), slow.end()


def test_a_long_history_costs_what_its_events_cost(desk: Desk) -> None:
    request = Request(("a",) * 200_000)
    assert desk.scheduler.rows_of(request) == 50  # nothing is known of costs yet
    for rows in (10, 100):
        desk.scheduler.cost.saw(rows, 0.001 * rows)
    assert desk.scheduler.rows_of(request) == pytest.approx(50 + 100, abs=1)  # 0.1 s, at a millisecond a row


@pytest.mark.parametrize("generates", [True, False])
def test_beams_narrow_under_load_in_declared_steps(generates: bool) -> None:
    desk = Desk(SchedulerConfig(deadline_ms=200, beam_steps=(1.0, 0.5, 0.25), max_rows=5000), generates)
    desk.begin()
    for rows in (50, 500, 50, 500):
        desk.scheduler.cost.saw(rows, 0.001 + 0.0005 * rows)
    for number in range(12):  # 600 rows: 300 ms at the whole beam, 75 ms at a quarter
        desk.ask(f"u{number}")
    desk.end()
    beams = desk.engine.beams
    assert (beams[0], beams[1], beams[-1]) == (None, 12, None) if generates else set(beams) == {None}
    assert set(desk.engine.beams) <= {None, 25, 12}
    assert desk.scheduler.counts.narrowed == sum(beam is not None for beam in desk.engine.beams)


def test_steps_fall_from_the_recipes_beam() -> None:
    for steps in ((), (0.5,), (1.0, 0.5, 0.75), (1.0, 0.0)):
        with pytest.raises(InputError, match="shares that fall from 1"):
            SchedulerConfig(beam_steps=steps)
    with pytest.raises(InputError, match="max_waiting = 0; allowed: above 0"):
        SchedulerConfig(max_waiting=0)


def test_stopping_answers_what_waits_and_refuses_what_comes(desk: Desk) -> None:
    desk.begin()
    desk.ask("waiting")
    closing = threading.Thread(target=desk.scheduler.close)
    closing.start()
    while not desk.scheduler.stopping:
        time.sleep(0.001)
    with pytest.raises(Stopping):
        desk.ask("too late")
    for _ in range(2):
        desk.engine.go.release()
    closing.join(30)
    assert desk.back == {"first": "for first", "waiting": "for waiting"}


def test_after_the_grace_time_what_waits_is_refused() -> None:
    desk = Desk(SchedulerConfig(max_rows=50))
    desk.begin()
    desk.ask("next")
    closing = threading.Thread(target=desk.scheduler.close, args=(0.05,))
    closing.start()
    with desk.delivered:
        assert desk.delivered.wait_for(lambda: "next" in desk.back, 30)
    assert isinstance(desk.back["next"], Stopping)
    desk.engine.go.release()
    closing.join(30)
    assert desk.back["first"] == "for first"


def test_an_engine_that_breaks_lives_on(desk: Desk) -> None:
    desk.begin()
    answers, desk.engine.answers = desk.engine.answers, lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    desk.ask("unlucky")
    desk.run_one(lambda: "unlucky" in desk.back)
    assert isinstance(desk.back["unlucky"], ZeroDivisionError)
    desk.engine.answers = answers  # type: ignore[method-assign]
    desk.ask("lucky")
    desk.run_one(lambda: desk.back.get("lucky") == "for lucky")


def test_costs_are_measured() -> None:
    cost = Cost()
    assert (cost.seconds(100), cost.rows_within(0.1)) == (0, float("inf"))
    cost.saw(100, 0.02)
    assert cost.seconds(100) == pytest.approx(0.02)
    for rows in (50, 400, 200, 100):
        cost.saw(rows, 0.003 + 0.0002 * rows)
    for rows in (50, 400, 200, 100) * 500:
        cost.saw(rows, 0.006 + 0.0001 * rows)  # twice as quick a row, from now on
    assert (cost.fixed, cost.each) == (pytest.approx(0.006, rel=0.05), pytest.approx(0.0001, rel=0.05))


def test_answers_are_those_alone(trained_run: Path) -> None:
    """Many threads, histories of every length, different k, unknown items, cold starts, bad ones between them."""
    recommender = Recommender.load(trained_run)
    requests = [
        Request(
            tuple(f"item{(5 * number + step) % 26:04d}" for step in range(number % 7)), k=1 + number % 9,
            filter_seen=number % 2 == 0, exclude=("item0001",) * (number % 3), refuse_unknown=number % 4 == 0,
        )
        for number in range(60)
    ]  # fmt: skip
    alone = [recommender.answers([request])[0] for request in requests]
    assert {type(answer) for answer in alone} == {Recommendation, InputError}
    found: dict[int, Any] = {}
    delivered = threading.Condition()

    def deliver(tickets: Sequence[Ticket]) -> None:
        with delivered:
            found.update({requests.index(ticket.request): ticket.outcome for ticket in tickets})
            delivered.notify()

    scheduler = Scheduler(recommender, deliver, SchedulerConfig(deadline_ms=60_000))
    for request in requests:
        scheduler.submit(Ticket(request, time.monotonic() + 60))
    scheduler.close(60)
    assert scheduler.counts.batches < 30
    for number, expected in enumerate(alone):
        answer = found[number]
        assert type(answer) is type(expected)
        if isinstance(expected, Recommendation):
            assert (answer.item_keys, answer.beam) == (expected.item_keys, expected.beam)
            assert answer.scores == pytest.approx(expected.scores, abs=1e-5)
        else:
            assert str(answer) == str(expected)


def test_noise_of_single_requests_does_not_pass_for_the_price_of_a_row() -> None:
    """A busy machine: batches of one to three rows take 5 to 65 ms, whatever their size. A hundred rows at half a
    millisecond each must not be taken for seconds."""
    cost, draw = Cost(), random.Random(0)
    for rows in (1, 4, 16, 32):
        cost.saw(rows, 0.004 + 0.0005 * rows)
    for _ in range(400):
        cost.saw(draw.choice((1, 1, 2, 3)), draw.uniform(0.005, 0.065))
    assert 0.02 < cost.seconds(1) < 0.06
    assert cost.seconds(100) < 1.0


def test_who_is_let_in_counts_before_the_ticket_comes(desk: Desk) -> None:
    """Many come in one turn of an event loop, and each ticket is made some turns later."""
    scheduler = desk.scheduler
    for rows, seconds in ((50, 0.1), (500, 1.0)):  # 2 ms a row
        scheduler.cost.saw(rows, seconds)
    places = []
    with contextlib.suppress(Overloaded):
        while len(places) < 100:
            places.append(scheduler.let_in(desk.now + 0.55, 50))
    assert 2 <= len(places) <= 6, "of 100 ms each, until half a second"
    scheduler.let_in(desk.now + 0.55, 50, priority=0).release()  # who is more urgent goes before them
    for place in (places[0], places[0]):  # the second time: nothing
        place.release()
    places[0] = scheduler.let_in(desk.now + 0.55, 50)
    desk.begin()
    for number, place in enumerate(places):  # those behind a ticket do not keep it out
        place.release()
        desk.ask(str(number), desk.now + 5)
    assert not any(scheduler._coming_rows)


def test_a_machine_that_slows_down_is_noticed_within_some_batches() -> None:
    cost = Cost()
    for rows in (50, 400, 200, 100) * 100:
        cost.saw(rows, 0.003 + 0.0002 * rows)
    for rows in (50, 400, 200, 100) * 5:
        cost.saw(rows, 3 * (0.003 + 0.0002 * rows))
    assert cost.seconds(200) > 2 * 0.043
