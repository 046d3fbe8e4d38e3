"""The online test: a policy serves users of a world for some days, and what came of it is counted per user.

    world = World.build(world_config("easy"), seed=0)
    audience = prepare(world, np.arange(1000), log_days=10)       # the log of these users, replayed
    outcomes = run_policy(world, policy, audience, days=3)
    result = compare(run_policy(world, other, audience, days=3), outcomes)

The users have lived through the log first, so a policy meets the very histories that it was trained beside. On the
first day of the test everybody opens the app; afterwards those who were content come back. All items of the world
can be shown; *cold* are those that the log never showed. Randomness is indexed by (user, day, step): two policies meet
the same people in the same luck, so their difference is paired by user.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidera.core import InputError
from sidera.lab.brackets import Insider
from sidera.lab.policy import FAULTS, Guarded, Policy, PolicyFailed, Requests
from sidera.sim.day import Exposures, run_day
from sidera.sim.items import Ids
from sidera.sim.logging_policy import Slate
from sidera.sim.randomness import Bits
from sidera.sim.searches import SearchLog, query_texts
from sidera.sim.simulate import SIGNALS, play_log
from sidera.sim.users import Rows, Users
from sidera.sim.world import World

OnExposures = Callable[[Exposures, NDArray[np.int64]], None]  # one slot as users met it, (n,) their ids
HISTORY = ("time", *SIGNALS, "watch_time", "duration")
METRICS = (
    "watch_time", "utility", "num_items", "session_length", "active_days", "returned_1", "returned_7", "clicks",
    "likes", "dislikes", "cold_share", "creator_diversity", "topic_diversity",
)  # fmt: skip


@dataclass(frozen=True)
class Outcomes:
    """What a policy did to U users; every metric is an array (U,), NaN where it is not defined for a user.

    ``utility`` is the true one: items that were worth it. ``session_length`` items per active day. ``returned_1`` here
    on the second day, ``returned_7`` on any of the seven days after the first, as far as the test reaches.
    ``cold_share`` of the items shown. Diversities: chance that two items shown to a user differ in creator, or topic.
    """

    user_ids: NDArray[np.int64]
    metrics: Mapping[str, NDArray[np.float64]]
    faults: Mapping[str, int]  # unknown, duplicate, missing: slots that stayed empty
    lost: NDArray[np.bool_]  # users that the policy left without an answer
    problems: tuple[str, ...]  # why, each reason once

    @property
    def lost_share(self) -> float:
        return float(self.lost.mean())

    def mean(self, metric: str) -> float:
        return float(np.nanmean(self.metrics[metric])) if np.isfinite(self.metrics[metric]).any() else float("nan")


@dataclass
class Audience:
    """Users as the log left them, and all that they were shown."""

    users: Users
    log_days: int
    counts: NDArray[np.int64]  # (U,) events of each
    events: dict[str, NDArray[Any]]  # item and HISTORY columns, (U, room), filled up to counts
    searches: SearchLog


def prepare(world: World, ids: NDArray[np.integer], log_days: int) -> Audience:
    """Replay the log of these users: the same exposures that ``simulate`` writes for them."""
    if log_days < 1:
        raise InputError(f"log_days = {log_days}", allowed="1 or more")
    if not len(ids) or len(np.unique(ids)) != len(ids) or np.min(ids) < 0:
        raise InputError("the test needs users, each once", allowed="distinct numbers from 0 up")
    users, recorder = play_log(world, ids, log_days)
    counts = recorder.count.copy()
    columns = recorder.columns()
    rows = columns["row"]
    positions = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    events = {}
    for name in ("item", *HISTORY):
        events[name] = np.zeros((users.num_users, max(1, int(counts.max()))), dtype=columns[name].dtype)
        events[name][rows, positions] = columns[name]
    return Audience(users, log_days, counts, events, recorder.searches)


def run_policy(
    world: World,
    policy: Policy | Insider,
    users: Audience | NDArray[np.integer],
    days: int,
    *,
    log_days: int = 10,
    batch_size: int = 256,
    timeout: float = 60.0,
    noise: int = 0,
    on_exposures: OnExposures | None = None,
) -> Outcomes:
    """Let ``policy`` serve the users for ``days`` days.

    ``log_days`` are lived before when ``users`` are mere ids. ``batch_size``: users asked for in one call. ``timeout``:
    seconds that a call may take. Another ``noise`` is another run of luck: for arms that are not to be paired.
    ``on_exposures`` is called with every slot that was shown and the ids of its users: what a platform would log.
    """
    for name, value in (("days", days), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} = {value}", allowed="1 or more")
    if not timeout > 0:
        raise InputError(f"timeout = {timeout}", allowed="seconds above 0")
    audience = users if isinstance(users, Audience) else prepare(world, users, log_days)
    test = _Test(world, audience, policy, days, batch_size, timeout, on_exposures)
    try:
        for number in range(days):
            test.play(number, noise)
    finally:
        test.close()
    return test.outcomes()


class _Test:
    """One arm while it runs."""

    def __init__(
        self, world: World, audience: Audience, policy: Policy | Insider, days: int, batch_size: int, timeout: float,
        on_exposures: OnExposures | None,
    ) -> None:  # fmt: skip
        self.world, self.first_day = world, audience.log_days
        self.users = copy_users(audience.users)
        self.counts, self.events = audience.counts.copy(), {k: v.copy() for k, v in audience.events.items()}
        self.searches = audience.searches.copy()
        self.profiles = world.profiles(self.users)
        self.insider = policy if isinstance(policy, Insider) else None
        self.guarded = None if isinstance(policy, Insider) else Guarded(policy, world.config.num_items, timeout)
        self.batch_size, self.on_exposures = batch_size, on_exposures
        number = self.users.num_users
        self.came = np.zeros((number, days), dtype=bool)
        self.lost = np.zeros(number, dtype=bool)
        self.faults = np.zeros(len(FAULTS), dtype=np.int64)
        self.problems: list[str] = []
        self.sums = {n: np.zeros(number) for n in ("watch_time", "utility", "num_items", "clicks", "likes", "dislikes")}
        self.shown: list[tuple[Rows, Ids]] = []

    def play(self, number: int, noise: int) -> None:
        day = self.first_day + number

        def choose(rows: Rows, request_keys: Bits, times: NDArray[np.int64]) -> Slate:
            return self._choose(rows, request_keys, times, day)

        # noise 0 is the log's luck; the test's own days come after the log's, so they never share a draw
        self.came[:, number] = run_day(
            self.world,
            self.users,
            day,
            noise,
            choose,
            self._record,
            self.searches,
            present=~self.lost,
            everyone=number == 0,
        )

    def close(self) -> None:
        if self.guarded is not None:
            self.guarded.close()

    def _choose(self, rows: Rows, request_keys: Bits, times: NDArray[np.int64], day: int) -> Slate:
        size = self.world.config.slate_size
        item_ids = np.full((len(rows), size), -1, dtype=np.int32)
        lost_mask = np.zeros(len(rows), dtype=bool)
        if self.insider is not None:
            item_ids[:] = self.insider.choose_with_truth(self.world, self.users, rows, day, request_keys)
        else:
            assert self.guarded is not None
            for start in range(0, len(rows), self.batch_size):
                part = slice(start, start + self.batch_size)
                try:
                    item_ids[part], faults = self.guarded.ask(self._requests(rows[part], times[part]))
                    self.faults += faults.sum(axis=0)
                except PolicyFailed as failure:
                    lost_mask[part] = True
                    if str(failure) not in self.problems and len(self.problems) < 10:
                        self.problems.append(str(failure))
            self.lost[rows[lost_mask]] = True
        nothing = np.zeros((len(rows), size), dtype=np.float32)
        return Slate(item_ids, nothing, nothing.astype(bool), lost_mask if lost_mask.any() else None)

    def _requests(self, rows: Rows, times: NDArray[np.int64]) -> Requests:
        lengths = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        owners = np.repeat(rows, lengths)
        columns = {name: values[owners, positions] for name, values in self.events.items()}
        query_offsets, query_times, codes = self.searches.of(rows)
        return Requests(
            user_ids=self.users.ids[rows],
            item_ids=columns.pop("item").astype(np.int64),
            offsets=offsets,
            times=columns.pop("time"),
            feedback=columns,
            queries=np.array(query_texts(codes, self.world.config), dtype=object),
            query_offsets=query_offsets,
            query_times=query_times,
            profiles={name: values[rows] for name, values in self.profiles.items()},
            as_of=times,
            k=self.world.config.slate_size,
        )

    def _record(self, seen: Exposures) -> None:
        rows, feedback = seen.rows, seen.feedback
        for name, values in (("watch_time", feedback.watch_time), ("utility", feedback.utility), ("num_items", 1),
                             ("clicks", feedback.click), ("likes", feedback.like), ("dislikes", feedback.dislike)
                             ):  # fmt: skip
            self.sums[name][rows] += values
        self.shown.append((rows, seen.item_ids))
        if self.on_exposures is not None:
            self.on_exposures(seen, self.users.ids[rows])
        if self.guarded is None:
            return  # insiders read no history
        positions = self.counts[rows]
        room = self.events["item"].shape[1]
        if int(positions.max()) >= room:
            for name, column in self.events.items():
                self.events[name] = np.concatenate([column, np.zeros_like(column)], axis=1)
        columns: dict[str, Any] = {name: getattr(feedback, name) for name in (*SIGNALS, "watch_time")}
        columns |= {"item": seen.item_ids, "time": seen.times, "duration": self.world.items.duration[seen.item_ids]}
        for name, values in columns.items():
            self.events[name][rows, positions] = values
        self.counts[rows] += 1

    def outcomes(self) -> Outcomes:
        items, number = self.world.items, self.users.num_users
        active_days = self.came.sum(axis=1).astype(np.float64)
        rows = np.concatenate([part for part, _ in self.shown] or [np.empty(0, dtype=np.int64)])
        shown = np.concatenate([part for _, part in self.shown] or [np.empty(0, dtype=np.int32)])
        cold = np.bincount(rows, weights=items.arrival[shown] >= self.first_day, minlength=number)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = {
                "session_length": self.sums["num_items"] / active_days,
                "cold_share": cold / self.sums["num_items"],
                "creator_diversity": _diversity(rows, items.creator[shown], number),
                "topic_diversity": _diversity(rows, items.topic[shown], number),
            }
        nobody = np.full(number, np.nan)  # a test of one day cannot tell who comes back
        later = self.came[:, 1:8]
        returns = {
            "returned_1": later[:, 0].astype(np.float64) if later.shape[1] else nobody,
            "returned_7": later.any(axis=1).astype(np.float64) if later.shape[1] else nobody,
        }
        values = {**self.sums, **shares, **returns, "active_days": active_days}
        return Outcomes(
            user_ids=self.users.ids,
            metrics={name: values[name] for name in METRICS},
            faults=dict(zip(FAULTS, self.faults.tolist(), strict=True)),
            lost=self.lost,
            problems=tuple(self.problems),
        )


def copy_users(users: Users) -> Users:
    """The same people, to be played on from here without touching the original."""
    return Users(**{field.name: getattr(users, field.name).copy() for field in dataclasses.fields(users)})


def _diversity(rows: Rows, kinds: Ids, number: int) -> NDArray[np.float64]:
    """(U,) chance that two different exposures of a user are of different kinds (Simpson's index)."""
    pairs, counts = np.unique(rows * 2**32 + kinds, return_counts=True)
    total = np.bincount(rows, minlength=number).astype(np.float64)
    same = np.bincount(pairs >> 32, weights=counts * (counts - 1.0), minlength=number)
    return 1 - same / (total * (total - 1))
