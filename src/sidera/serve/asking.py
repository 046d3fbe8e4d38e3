"""From an event loop to the engine's thread and back: ``await asker.ask(request)``, without a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sidera.core import Recommendation, Request
from sidera.engine.recommender import Recommender
from sidera.engine.scheduler import Place, Scheduler, SchedulerConfig, Ticket


class Asker:
    """A scheduler that answers coroutines, of any number of event loops. It begins with the first question."""

    def __init__(self, recommender: Recommender, config: SchedulerConfig) -> None:
        self.recommender, self.config, self.times_steps = recommender, config, False
        self._scheduler: Scheduler | None = None

    @property
    def scheduler(self) -> Scheduler:
        if self._scheduler is None:
            self._scheduler = Scheduler(self.recommender, _deliver, self.config)
            self._scheduler.times_steps = self.times_steps
        return self._scheduler

    async def ask(
        self, request: Request, deadline: float, priority: int = 1, tickets: list[Ticket] | None = None,
        place: Place | None = None,
    ) -> Recommendation:  # fmt: skip
        """The answer, or its error. Overloaded at once where ``deadline`` (``time.monotonic()``) cannot be met.

        A caller that is cancelled takes its question back. ``tickets``: where whoever sees the client leave can cancel
        it (``protocol.py``). ``place``: the caller's, which the ticket takes.
        """
        ticket = Ticket(request, deadline, priority, client=asyncio.get_running_loop().create_future())
        if tickets is not None:
            tickets.append(ticket)
        if place is not None:
            place.release()
        self.scheduler.submit(ticket)
        try:
            answer: Recommendation = await ticket.client
            return answer
        except asyncio.CancelledError:
            ticket.cancelled = True
            raise

    def reopen(self) -> None:
        """The next question begins another scheduler."""
        self._scheduler = None

    def close(self, grace: float) -> None:
        if self._scheduler is not None:
            self._scheduler.close(grace)


def _deliver(tickets: Sequence[Ticket]) -> None:
    """On the engine's thread: wake each event loop once for all of its tickets."""
    loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        loops.setdefault(ticket.client.get_loop(), []).append(ticket)
    for loop, mine in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, mine)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            continue


def _resolve(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        future, outcome = ticket.client, ticket.outcome
        if future.done():  # the client left
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
