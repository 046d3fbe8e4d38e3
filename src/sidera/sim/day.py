"""One day of a block of users: who comes, what each request shows them, what they do, when they leave.

Shared by the log and the online test, so that both are the same app. Users who are here all stand at the same step,
since a request of S slots moves everybody by S; those who leave drop out of ``rows``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidera.sim.feedback import Feedback, felt, respond
from sidera.sim.items import Ids
from sidera.sim.logging_policy import Slate
from sidera.sim.portable import Floats
from sidera.sim.randomness import Bits, Purpose, bits, sub_keys, uniform
from sidera.sim.searches import SearchLog, search
from sidera.sim.users import Rows, Users, day_keys
from sidera.sim.world import DAY, FIRST_DAY, World

PAUSE = np.float32(1.5)  # seconds between two items
EARLIEST, LATEST = 6 * 3600, 21 * 3600  # of the day, when sessions begin


@dataclass(frozen=True)
class Exposures:
    """One slot of one request, as n users met it."""

    rows: Rows  # (n,)
    item_ids: Ids  # (n,)
    times: NDArray[np.int64]  # (n,) unix seconds
    feedback: Feedback
    propensity: Floats  # (n,)
    uniform_mask: NDArray[np.bool_]  # (n,)
    request: int  # number inside user and day
    slot: int
    day: int


Choose = Callable[[Rows, Bits, NDArray[np.int64]], Slate]  # rows, keys of the request, its times -> slate


def run_day(
    world: World, users: Users, day: int, noise: int, choose: Choose, record: Callable[[Exposures], None],
    searches: SearchLog, present: NDArray[np.bool_] | None = None, everyone: bool = False,
) -> NDArray[np.bool_]:  # fmt: skip
    """Play one day; returns (U,) who came. What they search is added to ``searches``.

    ``present`` False: a user who is gone for good; ``everyone``: all the others come.
    """
    config = world.config
    todays_keys = day_keys(users, day, noise)
    came = np.ones(users.num_users, dtype=bool) if everyone else users.coming(day, todays_keys, config)
    if present is not None:
        came &= present
    rows = np.flatnonzero(came)
    users.begin_day(rows, config)
    begin = EARLIEST + np.floor(uniform(bits(todays_keys, Purpose.SESSION)) * np.float32(LATEST - EARLIEST))
    elapsed = np.zeros(users.num_users, dtype=np.float32)
    request = 0
    while len(rows):
        step = request * config.slate_size
        request_keys, times = sub_keys(todays_keys[rows], step), clock(day, begin[rows], elapsed[rows])
        asking, queries = search(users, rows, request_keys, config)
        searches.add(rows[asking], times[asking], queries)
        slate = choose(rows, request_keys, times)
        here = np.arange(len(rows)) if slate.lost_mask is None else np.flatnonzero(~slate.lost_mask)
        for slot in range(config.slate_size):
            if not len(here):
                break
            here = here[
                ~_one_slot(
                    world, users, rows[here], here, slate, slot, request, day, todays_keys, begin, elapsed, record
                )
            ]
        rows = rows[here]
        request += 1
    users.end_day(np.flatnonzero(came), day)
    return came


def clock(day: int, begin: Floats, elapsed: Floats) -> NDArray[np.int64]:
    """(n,) unix seconds; what would reach into the next day stays in its last second."""
    seconds = np.minimum(begin.astype(np.int64) + np.floor(elapsed).astype(np.int64), DAY - 1)
    return FIRST_DAY + DAY * day + seconds


def _one_slot(
    world: World, users: Users, rows: Rows, here: Rows, slate: Slate, slot: int, request: int, day: int,
    todays_keys: Bits, begin: Floats, elapsed: Floats, record: Callable[[Exposures], None],
) -> NDArray[np.bool_]:  # fmt: skip
    """(n,) who leaves after this slot."""
    config = world.config
    step_keys = sub_keys(todays_keys[rows], request * config.slate_size + slot)
    shown = slate.item_ids[here, slot]
    feeling = np.full(len(rows), np.float32(config.skip_satisfaction))  # an empty slot annoys like a skipped item
    full = np.flatnonzero(shown >= 0)
    if len(full):
        seen_by, chosen = rows[full], shown[full]
        feedback = respond(users, seen_by, chosen, world.items, step_keys[full], config)
        feeling[full] = felt(feedback, config)
        times = clock(day, begin[seen_by], elapsed[seen_by])
        positions = here[full]
        record(
            Exposures(
                seen_by, chosen, times, feedback, slate.propensity[positions, slot],
                slate.uniform_mask[positions, slot], request, slot, day,
            )
        )  # fmt: skip
        elapsed[seen_by] += feedback.watch_time + PAUSE
        users.watch(seen_by, chosen, world.items, feeling[full], feedback.click, config)
    users.feel(rows, feeling, config)
    return users.leaves(rows, bits(step_keys, Purpose.EXIT), config)
