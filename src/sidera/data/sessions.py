"""Sessions: lists of items that a model learns to write whole (OneRec v1, 2502.18965, section on data organisation).

The paper's target is one request's batch of 5 to 10 videos, if the session was good: five videos or more really
watched, total watch time above a threshold, some interaction. Whether all of that or any of it is asked for is not
said; :class:`SessionRules` makes it a setting (``combine``), all by default.

A good session is a list that was liked as a whole, so what a slate that was liked in part should teach is the part
that was liked. Here the list is, by default, the next ``length`` *positive* events from a request on, in their order,
within one visit (no pause longer than ``gap``). Small slates make this necessary: of requests with five exposures
hardly any is liked throughout (the simulated world: one in 200), while most visits hold five liked items.
``span = "request"`` with ``items = "shown"`` is the paper's list, for logs with long slates.

Every request with a positive begins a list, so lists overlap: each says what should have been shown from that request
on, which is the question that is asked when serving. The history ends where the request begins.

Trap: an item that comes twice within a list would teach repeats, which decoding forbids; the second is left out.

Shape legend: E events · P wanted events · R rows (lists) · m items of a list · G targets of all rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from sidera.config import check_value
from sidera.core import InputError
from sidera.data.batches import TargetRows, check_targets, positive_mask, request_starts, trained_mask
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.reading import LogReading
from sidera.data.split import Split

INTERACTIONS = ("like", "follow", "comment", "forward", "share", "collect", "favorite")  # of the paper and the like


@dataclass(frozen=True)
class SessionRules:
    """Which events make a list, and which lists are good enough to learn from. A rule of 0 is off."""

    length: int = 5  # m, items of a list at most
    span: Literal["request", "visit"] = "visit"  # events that may be of one list: one request's, or one visit's
    gap: int = 1800  # seconds without an event that end a visit
    items: Literal["positive", "shown"] = "positive"  # the list: what was liked, or all that was shown
    min_watched: int = 5  # positive events in the list
    min_watch_time: float = 0.0  # seconds over the whole list
    min_interactions: int = 0  # likes, follows, comments, ... over the whole list (paper: some)
    combine: Literal["all", "any"] = "all"  # rules that a good list meets

    def __post_init__(self) -> None:
        for name in ("length", "gap"):
            value = getattr(self, name)
            check_value("[model]", f"session_{name}", value, value >= 1, "a whole number >= 1")
        for name in ("min_watched", "min_watch_time", "min_interactions"):
            check_value("[model]", name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        fits = self.min_watched <= self.length
        check_value("[model]", "min_watched", self.min_watched, fits, f"at most session_length ({self.length})")


class SessionRows(TargetRows):
    """One row per list: the newest events before its first request -> its items in order."""

    def __init__(
        self,
        reading: LogReading,
        split: Split,
        batch_size: int,
        seed: int = 0,
        order: Literal["shuffled", "time"] = "shuffled",
        rules: SessionRules | None = None,
    ) -> None:
        self.rules = rules or SessionRules()
        dataset, settings = reading.dataset, asdict(self.rules)
        wanted = session_lists(dataset, trained_mask(dataset, split), reading.reading.schema, self.rules)
        super().__init__(reading, split, batch_size, seed, order, wanted, "list", {}, settings)


def session_lists(
    dataset: Dataset, known_mask: np.ndarray, schema: FeatureSchema, rules: SessionRules
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each list's history ends (R,), the events of all lists (G,), where each list begins among these (R+1,).

    ``known_mask`` (E,): events that may be learned from. InputError when no list is good enough, or when a rule asks
    for a column that the log lacks.
    """
    positive = positive_mask(dataset, schema)
    wanted = known_mask & (positive if rules.items == "positive" else True)
    begins = request_starts(dataset)  # (E,)
    spans = begins if rules.span == "request" else visits(dataset, rules.gap)  # (E,) ascending
    places = np.flatnonzero(wanted)  # (P,)
    check_targets(dataset, len(places))
    ends, first = np.unique(begins[places], return_index=True)  # (R,) each; first: among places
    has_history = ends > dataset.offsets[dataset.event_users[ends]]
    ends, first = ends[has_history], first[has_history]
    check_targets(dataset, len(ends))
    last = np.searchsorted(spans[places], spans[places[first]], side="right")  # (R,) where the span's events end
    columns = first[:, None] + np.arange(rules.length)  # (R, m)
    there = columns < last[:, None]
    table = places[np.minimum(columns, len(places) - 1)]  # (R, m) events
    there &= ~_earlier_in_row(dataset.item_ids[table], there)
    good = _good_lists(dataset, schema, positive, table, there, rules)
    if not good.any():
        raise InputError(
            f"none of the {len(ends):,} lists of {dataset.name!r} is a good session",
            allowed=f"lists that meet {rules.combine} of: {', '.join(_asked(rules))}",
            fix="lower min_watched, min_watch_time or min_interactions of [model]",
        )
    table, there = table[good], there[good]
    return ends[good], table[there], np.append(0, np.cumsum(there.sum(axis=1)))


def visits(dataset: Dataset, gap: int) -> np.ndarray:
    """(E,) number of each event's visit: a user's events without a pause longer than ``gap`` seconds.

    A log that publishes an order, not times, has one visit a user.
    """
    new = np.ones(dataset.num_events, dtype=bool)
    users = dataset.event_users
    new[1:] = users[1:] != users[:-1]
    if dataset.time_kind == "seconds":
        new[1:] |= np.diff(dataset.times) > gap
    return np.cumsum(new)


def _earlier_in_row(items: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(R, m) True where the same item stands earlier in its row."""
    length = items.shape[1]
    same = (items[:, :, None] == items[:, None, :]) & there[:, None, :]  # (R, place, other place)
    return (same & np.tril(np.ones((length, length), dtype=bool), -1)).any(axis=2)


def _good_lists(
    dataset: Dataset, schema: FeatureSchema, positive: np.ndarray, table: np.ndarray, there: np.ndarray,
    rules: SessionRules,
) -> np.ndarray:  # fmt: skip
    """(R,) which lists of events ``table`` (R, m) meet the rules."""
    met = []
    if rules.min_watched:
        met.append((positive[table] & there).sum(axis=1) >= rules.min_watched)
    if rules.min_watch_time:
        if not schema.has_watch_time:
            raise InputError(
                f"[model] min_watch_time = {rules.min_watch_time:g}, but the log has no watch_time", fix="leave it out"
            )
        seconds = np.nan_to_num(dataset.feedback["watch_time"])
        met.append((seconds[table] * there).sum(axis=1) >= rules.min_watch_time)
    if rules.min_interactions:
        names = [name for name in INTERACTIONS if name in schema.labels]
        if not names:
            raise InputError(
                f"[model] min_interactions = {rules.min_interactions}, but the log has no interaction",
                allowed=f"one of {', '.join(INTERACTIONS)}",
                fix="leave it out",
            )
        acted = np.stack([dataset.feedback[name].astype(bool) for name in names]).sum(axis=0)  # (E,)
        met.append((acted[table] * there).sum(axis=1) >= rules.min_interactions)
    if not met:
        return np.ones(len(table), dtype=bool)
    return np.logical_and.reduce(met) if rules.combine == "all" else np.logical_or.reduce(met)


def _asked(rules: SessionRules) -> list[str]:
    names = ("min_watched", "min_watch_time", "min_interactions")
    return [f"{name} = {getattr(rules, name):g}" for name in names if getattr(rules, name)]
