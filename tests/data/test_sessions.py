"""Sessions: which events make a list, which lists are good, where histories end; held against a slow reading."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hand_made import read_log
from sidera.core import InputError
from sidera.data.batches import RequestRows, request_starts
from sidera.data.config import DataConfig, View, make_views
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.schema import build_dataset
from sidera.data.sessions import SessionRows, SessionRules, session_lists, visits


def slates(num_users: int = 8, num_visits: int = 4, per_visit: int = 12, seed: int = 0) -> Dataset:
    """Visits hours apart, requests of three items in each, a third of them clicked and some liked."""
    rng = np.random.default_rng(seed)
    shape = (num_users, num_visits, per_visit)
    count = int(np.prod(shape))
    place = np.arange(count) % (num_visits * per_visit)  # inside its user
    click = rng.random(count) < 0.4
    events = pa.table(
        {
            "user": np.repeat([f"u{user}" for user in range(num_users)], num_visits * per_visit),
            "item": [f"i{item:02d}" for item in rng.integers(0, 15, count)],  # few items: repeats within a visit
            "time": place // per_visit * 86_400 + place % per_visit * 30,
            "click": click,
            "like": click & (rng.random(count) < 0.4),
            "watch_time": (rng.random(count) * 20).astype(np.float32),
            "duration": np.full(count, 20, dtype=np.float32),
            "request": place // 3,
        }
    )
    return build_dataset("slates", events)


def view(positive: str = "click") -> View:
    return make_views(slates(), DataConfig(positive=positive))[0]


def slow_lists(here: View, rules: SessionRules) -> list[tuple[int, list[int]]]:
    """(where the history ends, events of the list) of every row."""
    dataset, feedback = here.dataset, here.dataset.feedback
    users, begins = dataset.event_users, request_starts(dataset)
    found = []
    for start in np.unique(begins):
        user = users[start]
        if start == dataset.offsets[user]:
            continue
        events, place = [], int(start)
        while place < here.split.train_ends[user]:
            if events and dataset.times[place] - dataset.times[place - 1] > rules.gap:
                break
            if rules.span == "request" and begins[place] != start:
                break
            if rules.items == "shown" or feedback["click"][place]:
                events.append(place)
            place += 1
        if not events or begins[events[0]] != start:  # nothing in this request itself
            continue
        kept: list[int] = []
        for place in events[: rules.length]:
            if dataset.item_ids[place] not in dataset.item_ids[kept]:
                kept.append(place)
        met = []
        if rules.min_watched:
            met.append(sum(feedback["click"][kept]) >= rules.min_watched)
        if rules.min_watch_time:
            met.append(sum(feedback["watch_time"][kept]) >= rules.min_watch_time)
        if rules.min_interactions:
            met.append(sum(feedback["like"][kept]) >= rules.min_interactions)
        if not met or (all(met) if rules.combine == "all" else any(met)):
            found.append((int(start), kept))
    return found


@pytest.mark.parametrize(
    "rules",
    [
        SessionRules(min_watched=1),
        SessionRules(length=4, min_watched=4),
        SessionRules(length=3, span="request", min_watched=2),
        SessionRules(length=3, span="request", items="shown", min_watched=2),
        SessionRules(length=6, items="shown", min_watched=2, min_interactions=1),
        SessionRules(min_watched=3, min_watch_time=40, min_interactions=1),
        SessionRules(min_watched=4, min_watch_time=60, min_interactions=3, combine="any"),
        SessionRules(min_watched=0, gap=1),
        SessionRules(gap=10**7, length=20, min_watched=2),
    ],
)
def test_lists_equal_the_slow_reading(rules: SessionRules) -> None:
    here = view()
    known = np.arange(here.dataset.num_events) < here.split.train_ends[here.dataset.event_users]
    ends, places, bounds = session_lists(here.dataset, known, here.schema, rules)
    found = [(int(end), places[bounds[row] : bounds[row + 1]].tolist()) for row, end in enumerate(ends)]
    expected = slow_lists(here, rules)
    assert len(expected) > 5
    assert found == expected


def test_rows_hold_the_history_before_and_the_list_in_order() -> None:
    here, rules = view(), SessionRules(length=4, min_watched=2)
    source = SessionRows(read_log(here.dataset, 9, here.schema), here.split, batch_size=5, seed=1, rules=rules)
    dataset = here.dataset
    expected = sorted(
        (dataset.item_ids[max(dataset.offsets[dataset.event_users[end]], end - 9) : end].tolist(),
         dataset.item_ids[events].tolist())
        for end, events in slow_lists(here, rules)
    )  # fmt: skip
    found = []
    for batch in source.batches(epoch=2):
        assert batch.target_ids is not None
        assert batch.targets.offsets is not None
        assert batch.requests.as_of is not None
        assert batch.events.times is not None
        for row in range(batch.num_histories):
            history = slice(int(batch.events.offsets[row]), int(batch.events.offsets[row + 1]))
            targets = slice(int(batch.targets.offsets[row]), int(batch.targets.offsets[row + 1]))
            assert int(batch.events.times[history].max()) < int(batch.requests.as_of[row])
            assert batch.targets.feedback["click"][targets].all()
            found.append((batch.item_ids[history].tolist(), batch.target_ids[targets].tolist()))
    assert sorted(found) == expected


def test_no_list_reaches_what_is_asked_for() -> None:
    here = view()
    source = SessionRows(read_log(here.dataset, 9, here.schema), here.split, batch_size=5)
    users = here.dataset.event_users[source.targets]
    assert (source.targets < here.split.train_ends[users]).all()
    asked = np.concatenate([here.split.valid.ends, here.split.test.ends])
    assert not np.isin(source.targets, asked).any()


def test_a_pause_ends_a_visit() -> None:
    dataset = slates(num_users=2)
    number = visits(dataset, gap=1800)
    assert len(np.unique(number)) == 2 * 4
    assert (np.bincount(number)[1:] == 12).all()
    assert len(np.unique(visits(dataset, gap=10**7))) == 2
    assert len(np.unique(visits(dataset, gap=1))) == dataset.num_events


def test_the_rules_are_part_of_the_digest() -> None:
    here = view()
    sources = [
        SessionRows(read_log(here.dataset, 9, here.schema), here.split, 5, rules=rules)
        for rules in (SessionRules(min_watched=1), SessionRules(min_watched=1), SessionRules(min_watched=3))
    ]
    assert sources[0].digest == sources[1].digest != sources[2].digest
    assert sources[0].digest != RequestRows(read_log(here.dataset, 9, here.schema), here.split, 5).digest


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"length": 0, "min_watched": 0}, "session_length"),
        ({"gap": 0}, "gap"),
        ({"min_watched": 6}, "at most session_length"),
        ({"min_watch_time": -1.0}, "min_watch_time"),
    ],
)
def test_impossible_rules_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        SessionRules(**changes)


def test_rules_that_the_log_cannot_answer_are_refused() -> None:
    here = view()
    bare = FeatureSchema(positive="click", labels=("click",))
    for rules, match in (
        (SessionRules(min_watched=1, min_watch_time=5), "no watch_time"),
        (SessionRules(min_watched=1, min_interactions=1), "no interaction"),
    ):
        with pytest.raises(InputError, match=match):
            SessionRows(read_log(here.dataset, 9, bare), here.split, 5, rules=rules)
    with pytest.raises(InputError, match=r"none of the \d+ lists .* min_interactions = 50"):
        SessionRows(
            read_log(here.dataset, 9, here.schema),
            here.split,
            5,
            rules=SessionRules(min_watched=1, min_interactions=50),
        )
