"""The scheduler: requests of many clients wait in one queue, and one thread answers as many at once as fit.

    scheduler = Scheduler(recommender, deliver=print)
    scheduler.submit(Ticket(Request(user="ann"), deadline=time.monotonic() + 0.1))   # Overloaded: cannot be met
    scheduler.close(grace=5.0)

All searches of one batch take the same few steps (codes of an item), so a batch is the unit of work: while one runs,
the next one fills, and a lone request on an idle engine goes at once. A batch holds as many *rows* (requests times
beams) as its budget allows: a number that memory sets, and a time that no batch should exceed, so that who comes next
does not wait long. What a row costs is measured all the time (``batch_cost.py``).

A ticket whose deadline cannot be met by these figures is refused when it comes, and so is one whose deadline could only
be met if no batch took longer than foreseen (the more of those that were let in become late, the more is left): who is
refused after a wait has lost the time to ask elsewhere. One that will be late all the same is refused as soon as that
is seen, when the next batch begins: work on an answer that nobody waits for any more would make the next ones late,
too. A request that comes to an idle engine is never refused, however slow the model is. A ticket whose client left is
dropped. The order is by priority, then by deadline.

Where narrower beams are allowed (``beam_steps``), a batch takes the widest with which everything that waits is answered
in half of the usual deadline. The answer says which (``Recommendation.beam``).
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sidera.core import InputError, Recommendation, Request
from sidera.engine.batch_cost import Cost
from sidera.engine.recommender import Recommender
from sidera.engine.timeline import Span, collecting

TRIAL_SIZES = (1, 4, 16, 32)  # requests of a batch
TRIAL_EVENTS = 50  # of a history
MOST_MARGIN, WIDER, NARROWER = 1.6, 1.1, 0.99  # of admission: wider where a batch began with late tickets, else back
PRIORITIES = ("high", "normal", "low")
EVENT_SECONDS = 5e-7  # to look up an event of a history that a request brings: it tells in long ones


@dataclass(frozen=True)
class SchedulerConfig:
    """How requests wait and are put together."""

    max_rows: int = 4096  # requests times beams of one batch: bounds memory
    batch_ms: float = 40.0  # time that a batch should take at most, by what rows cost
    max_waiting: int = 1024  # requests in the queue
    deadline_ms: float = 1000.0  # of a request that names none
    beam_steps: tuple[float, ...] = (1.0,)  # shares of the recipe's beam, the widest first: (1, 0.5, 0.25) adapts

    def __post_init__(self) -> None:
        steps = self.beam_steps
        if not steps or steps[0] != 1 or any(not 0 < step <= 1 for step in steps) or list(steps) != sorted(steps)[::-1]:
            raise InputError(f"beam_steps = {steps}", allowed="shares that fall from 1, e.g. (1.0, 0.5, 0.25)")
        for name in ("max_rows", "batch_ms", "max_waiting", "deadline_ms"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} = {getattr(self, name)}", allowed="above 0")


class Overloaded(Exception):
    """The engine has more to do than the deadline allows: try again after ``retry_after`` seconds."""

    def __init__(self, problem: str, retry_after: float) -> None:
        self.problem, self.retry_after = problem, retry_after
        super().__init__(problem)


class Stopping(Overloaded):
    """The engine takes no requests any more: it is being stopped."""


class Left(Overloaded):
    """The client left before its answer was begun."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits, and then what came of it."""

    request: Request
    deadline: float  # of ``time.monotonic()``
    priority: int = 1  # place in PRIORITIES
    client: Any = None  # whatever ``deliver`` needs to find who asked
    cancelled: bool = False  # the client left: no work is begun for it
    outcome: Recommendation | Exception | None = None
    rows: int = 0  # what it costs, at the recipe's beam
    waited: bool = False  # it came while the engine was busy
    submitted: float = 0.0  # seconds of ``time.monotonic()``, these and the next two where steps are timed
    taken: float = 0.0  # into a batch; 0: it was not
    done: float = 0.0
    together: int = 0  # requests of its batch
    spans: Sequence[Span] | None = None  # steps of its batch


class Place:
    """Rows of a request that was let in and whose ticket has not come: its body is still read. Who is let in meanwhile
    counts it, or all that come in one moment would be let in as one."""

    def __init__(self, scheduler: Scheduler, rows: int, priority: int) -> None:
        self.scheduler, self.rows, self.priority = scheduler, rows, priority
        scheduler._coming_rows[priority] += rows

    def release(self) -> None:
        """The ticket comes now, or will not come. Again: nothing."""
        self.scheduler._coming_rows[self.priority] -= self.rows
        self.rows = 0


@dataclass
class Counts:
    """What became of tickets since the start."""

    answered: int = 0
    failed: int = 0  # the request was wrong, or its answer was
    refused: int = 0  # at once
    late: int = 0  # refused after a wait
    dropped: int = 0  # the client had left
    batches: int = 0
    rows: int = 0
    narrowed: int = 0  # batches with less than the recipe's beam
    busy_seconds: float = 0.0


class Scheduler:
    """One queue and one engine thread in front of a Recommender. Any number of threads may submit."""

    def __init__(
        self,
        recommender: Recommender,
        deliver: Callable[[Sequence[Ticket]], None],
        config: SchedulerConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``deliver`` is called on the engine's thread with tickets whose outcome is known."""
        self.recommender, self.deliver, self.config, self.clock = (
            recommender,
            deliver,
            config or SchedulerConfig(),
            clock,
        )
        self.cost, self.counts = Cost(), Counts()
        self.times_steps = False  # for traces
        self._queue: list[tuple[int, float, int, Ticket]] = []
        self._margin = 1.0  # what a wait may take at most, beside ``Cost.caution``: follows how many become late
        self._number = 0  # of tickets, so that the queue never compares two of them
        self._waiting_rows = [0] * len(PRIORITIES)
        self._coming_rows = [0] * len(PRIORITIES)  # of places, which the event loop's thread takes and leaves
        self._running_until = 0.0  # when the batch that runs should end; 0: none runs
        self._stopping = False
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # -- asked by any thread ---------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def rows_of(self, request: Request) -> int:
        """What a request costs, in rows of the search; a scorer's request is one row."""
        recommender = self.recommender
        width = recommender.pipeline.width(request.k) if recommender.snapshot.generates else 1
        events = len(request.history) * EVENT_SECONDS / (self.cost.scale * self.cost.each) if self.cost.each else 0.0
        return width + int(events)

    def wait_for(self, rows: int, priority: int = 1, coming: int = 0) -> float:
        """Seconds until an answer that costs ``rows`` would be there, if it came now behind ``coming`` rows that do not
        wait yet. A batch that should have ended is expected to take as long again as it is over its time."""
        ahead = (sum(self._waiting_rows[: priority + 1]) + coming + rows) * self._narrowest
        running = abs(self._running_until - self.clock()) if self._running_until else 0.0
        return running + self.cost.seconds(ahead, max(1.0, ahead / max(self._row_budget(), rows)))

    def check(self, deadline: float, rows: int, priority: int = 1, coming: int = 0) -> None:
        """Overloaded when a ticket that costs ``rows`` would be refused now."""
        if self._stopping:
            raise Stopping("the server is being stopped", 1.0)
        if self._idle and not coming:
            return
        wait = self.wait_for(rows, priority, coming) * self.cost.caution * self._margin
        if len(self._queue) >= self.config.max_waiting:
            raise Overloaded(f"{len(self._queue)} requests wait already", wait)
        late = self.clock() + wait - deadline
        if late > 0:
            raise Overloaded(f"an answer may take {1000 * wait:.0f} ms, longer than the deadline allows", late)

    def let_in(self, deadline: float, rows: int, priority: int = 1) -> Place:
        """A place for a request that is not read yet; Overloaded when its ticket would be refused. Cheap: under several
        times the load that an engine bears, refusing must not become the load."""
        self.check(deadline, rows, priority, sum(self._coming_rows[: priority + 1]))
        return Place(self, rows, priority)

    def submit(self, ticket: Ticket) -> None:
        """Put a ticket into the queue; Overloaded, at once, when its deadline cannot be met."""
        ticket.rows = self.rows_of(ticket.request)
        if self.times_steps:
            ticket.submitted = time.monotonic()
        with self._ready:
            try:
                self.check(ticket.deadline, ticket.rows, ticket.priority)
            except Overloaded:
                self.counts.refused += 1
                raise
            ticket.waited = not self._idle
            self._number += 1
            heapq.heappush(self._queue, (ticket.priority, ticket.deadline, self._number, ticket))
            self._waiting_rows[ticket.priority] += ticket.rows
            self._ready.notify()

    def warm_up(self) -> None:
        """Answer batches of some sizes, so that the first requests find a warm engine whose costs are known."""
        for number in range(2):  # the first round pays for what is made once
            for size in TRIAL_SIZES:
                requests, began = trial_requests(self.recommender, size), time.monotonic()
                self.recommender.answers(requests)
                if number:
                    self.cost.saw(sum(map(self.rows_of, requests)), time.monotonic() - began)

    def close(self, grace: float = 10.0) -> None:
        """Take no more tickets, answer those that wait for at most ``grace`` seconds, refuse the rest."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self._thread.join(grace)
        with self._ready:
            left = [entry[-1] for entry in self._queue]
            self._queue.clear()
        for ticket in left:
            ticket.outcome = Stopping("the server is being stopped", 1.0)
        if left:
            self.deliver(left)
        self._thread.join()  # a batch that runs is answered: its exposures may be on the disk already

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._ready:
                self._running_until = 0.0
                while not self._queue and not self._stopping:
                    self._ready.wait()
                if not self._queue:
                    return
                batch, share, refused = self._take()
            if refused:
                self.deliver(refused)
            if batch:
                self._answer(batch, share)

    def _take(self) -> tuple[list[Ticket], float, list[Ticket]]:
        """The next batch and its share of the recipe's beam; tickets that became late or whose client left."""
        now, share = self.clock(), self._share()
        budget, rows = self._row_budget() / share, 0
        ends = now + self.cost.seconds(share * min(budget, sum(self._waiting_rows))) / self.cost.caution  # at best
        batch, refused = list[Ticket](), list[Ticket]()
        while self._queue:
            ticket = self._queue[0][-1]
            late = ticket.waited and ticket.deadline < ends
            if batch and not late and not ticket.cancelled and rows + ticket.rows > budget:
                break
            heapq.heappop(self._queue)
            self._waiting_rows[ticket.priority] -= ticket.rows
            if ticket.cancelled:
                self.counts.dropped += 1
                ticket.outcome = Left("the client left", 0.0)
                refused.append(ticket)
            elif late:
                self.counts.late += 1
                ticket.outcome = Overloaded("the deadline passed while the request waited", ends - ticket.deadline)
                refused.append(ticket)
            else:
                batch.append(ticket)
                rows += ticket.rows
        self._running_until = self.clock() + self.cost.seconds(share * rows)
        refused += self._without_hope(share, budget)
        late = any(not ticket.cancelled for ticket in refused)
        self._margin = min(MOST_MARGIN, self._margin * WIDER) if late else max(1.0, self._margin * NARROWER)
        return batch, share, refused

    def _without_hope(self, share: float, budget: float) -> list[Ticket]:
        """Tickets that wait on, and whose answers would be late behind the batch that begins, even at best."""
        kept, refused, ahead = list[tuple[int, float, int, Ticket]](), list[Ticket](), 0
        for entry in sorted(self._queue):
            ticket = entry[-1]
            rows = ahead + ticket.rows
            seconds = self.cost.seconds(share * rows, max(1.0, rows / budget)) / self.cost.caution  # at best
            ends = self._running_until + seconds
            if ticket.waited and not ticket.cancelled and ticket.deadline < ends:
                self._waiting_rows[ticket.priority] -= ticket.rows
                self.counts.late += 1
                ticket.outcome = Overloaded("the requests before it take too long", ends - ticket.deadline)
                refused.append(ticket)
            else:
                kept.append(entry)
                ahead = rows
        self._queue = kept  # in order, as a heap may be
        return refused

    def _answer(self, batch: list[Ticket], share: float) -> None:
        rows = share * sum(ticket.rows for ticket in batch)
        beam = None if share == 1 else max(1, round(share * self.recommender.beam))
        began = self.clock()
        outcomes = self._timed_outcomes(batch, beam) if self.times_steps else self._outcomes(batch, beam)
        seconds = self.clock() - began
        self.cost.saw(rows, seconds)
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.outcome = outcome
        counts, num_failed = self.counts, sum(isinstance(outcome, Exception) for outcome in outcomes)
        counts.answered += len(batch) - num_failed
        counts.failed += num_failed
        counts.batches += 1
        counts.rows += round(rows)
        counts.narrowed += beam is not None
        counts.busy_seconds += seconds
        self.deliver(batch)

    def _outcomes(self, batch: Sequence[Ticket], beam: int | None) -> Sequence[Recommendation | Exception]:
        try:
            return self.recommender.answers([ticket.request for ticket in batch], beam)
        except Exception as error:  # no request's own fault, such as memory: the thread lives on
            return [error] * len(batch)

    def _timed_outcomes(self, batch: Sequence[Ticket], beam: int | None) -> Sequence[Recommendation | Exception]:
        taken = time.monotonic()
        with collecting() as spans:
            outcomes = self._outcomes(batch, beam)
        done = time.monotonic()
        for ticket in batch:
            ticket.taken, ticket.done, ticket.together, ticket.spans = taken, done, len(batch), spans
        return outcomes

    # -- by what rows cost -----------------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        return not self._queue and not self._running_until

    @property
    def _narrowest(self) -> float:
        return self.config.beam_steps[-1] if self.recommender.snapshot.generates else 1.0

    def _row_budget(self) -> float:
        """Rows of a batch: those of ``batch_ms``, or of so long that what a batch costs by itself is a third of it."""
        seconds = max(self.config.batch_ms / 1000, 3 * self.cost.scale * self.cost.fixed)
        return max(1.0, min(self.config.max_rows, self.cost.rows_within(seconds)))

    def _share(self) -> float:
        """Of the recipe's beam: the widest step with which all that waits is answered in half a deadline."""
        steps, waiting = self.config.beam_steps, sum(self._waiting_rows)
        if len(steps) == 1 or not self.recommender.snapshot.generates:
            return 1.0
        for step in steps:
            rows = step * waiting
            if self.cost.seconds(rows, max(1.0, rows / self._row_budget())) <= self.config.deadline_ms / 2000:
                return step
        return steps[-1]


def trial_requests(recommender: Recommender, number: int) -> list[Request]:
    """Requests to try an engine with: histories of popular items."""
    catalog = recommender.catalog
    keys = [str(key) for key in catalog.item_keys[catalog.serving_order[:TRIAL_EVENTS]]]
    return [Request(tuple(keys[place % len(keys) :] or keys)) for place in range(number)]
