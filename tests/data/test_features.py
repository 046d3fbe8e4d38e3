"""Feedback, categories, long views: what is read besides item ids, and that both views ask the same questions."""

from __future__ import annotations

import numpy as np
import pytest

from hand_made import read_log
from sidera.core import InputError
from sidera.data.batches import RequestRows, request_starts
from sidera.data.config import DataConfig, make_views
from sidera.data.dataset import Dataset
from sidera.data.feature import FeatureConfig
from sidera.data.features import (
    FeatureSchema,
    duration_buckets,
    fit_schema,
    long_view_thresholds,
)
from sidera.data.tiny import tiny_exposures


def test_the_schema_names_what_there_is() -> None:
    dataset = tiny_exposures()
    schema = fit_schema(dataset, "click", np.ones(dataset.num_events, bool))
    assert schema.labels == ("click", "like", "long_view")  # "uniform" is bookkeeping
    assert schema.columns == ("click", "like", "long_view", "watch_time", "duration")
    assert {(each.name, each.owner): each.vocabulary for each in schema.features if each.kind == "category"} == {
        ("creator", "item"): ("c0", "c1", "c2"),
        ("tags", "item"): ("t0", "t1", "t2", "t3", "t4"),
        ("region", "user"): ("north", "south"),
    }
    assert not schema.declared
    categories = schema.of_items(dataset.items)
    assert categories["creator"][:4].tolist() == [0, 2, 3, 1]
    assert categories["tags"][:4].tolist() == [0, 2, 0, 4]
    assert schema.of_log(dataset, "user")["region"].tolist() == [1, 2, 0, 1, 2, 0]
    assert FeatureSchema.from_json(schema.to_json()) == schema


def test_long_views_are_told_per_duration() -> None:
    duration = np.repeat([10.0, 100.0], 1000)
    watch = np.tile(np.arange(1000) / 1000, 2) * duration
    thresholds = long_view_thresholds(watch, duration, 0.65)
    assert thresholds[3] == pytest.approx(6.5, rel=0.01)
    assert thresholds[6] == pytest.approx(65, rel=0.01)
    assert thresholds[0] == thresholds[3]  # no such duration: the nearest bucket that has events
    assert thresholds[10] == thresholds[6]
    assert duration_buckets(np.array([0.0, np.nan, 1.5, 8.0, 1e9])).tolist() == [0, 0, 0, 3, 16]


def test_long_view_thresholds_never_see_what_is_asked() -> None:
    dataset = tiny_exposures()
    changed = {name: values.copy() for name, values in dataset.feedback.items()}
    last = dataset.offsets[1:] - 1
    changed["watch_time"][last] = changed["watch_time"][last - 1] = 1e6
    edited = Dataset(**{**dataset.__dict__, "feedback": changed})
    schemas = [make_views(log, DataConfig(positive="long_view"))[0].schema for log in (dataset, edited)]
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_both_views_ask_the_same_questions(split: str) -> None:
    config = DataConfig(positive="click", split=split, valid_share=0.2, test_share=0.2)  # type: ignore[arg-type]
    every, positive = make_views(tiny_exposures(), config)
    assert every.dataset.num_events > positive.dataset.num_events
    assert positive.dataset.feedback["click"].all()
    for part in ("valid", "test"):
        ours, theirs = getattr(every.split, part), getattr(positive.split, part)
        assert len(ours) > 0
        assert (ours.user_ids == theirs.user_ids).all()
        assert (ours.target_ids == theirs.target_ids).all()
        assert (every.dataset.times[ours.ends] == positive.dataset.times[theirs.ends]).all()
        assert (theirs.ends > theirs.starts).all()
        assert every.dataset.feedback["click"][ours.ends].all()
    assert every.dataset.source_digest == positive.dataset.source_digest
    assert every.dataset.digest != positive.dataset.digest


def test_without_a_positive_label_there_is_one_view() -> None:
    every, positive = make_views(tiny_exposures(), DataConfig())
    assert every is positive


def test_a_request_is_one_row_and_its_items_are_in_no_history() -> None:
    every, _ = make_views(tiny_exposures(), DataConfig(positive="click"))
    dataset, split = every.dataset, every.split
    source = RequestRows(read_log(dataset, 10, every.schema), split, batch_size=5, seed=3)
    clicked = np.flatnonzero(dataset.feedback["click"])
    first = request_starts(dataset)
    users = dataset.event_users
    wanted = [
        int(place)
        for place in clicked
        if place < split.train_ends[users[place]] and first[place] > dataset.offsets[users[place]]
    ]
    found = []
    for batch in source.batches(epoch=0):
        assert batch.targets.offsets is not None
        assert batch.requests.as_of is not None
        assert batch.events.times is not None
        assert batch.target_ids is not None
        assert int(batch.lengths.max()) <= 10
        for row in range(batch.num_histories):
            history = slice(int(batch.events.offsets[row]), int(batch.events.offsets[row + 1]))
            targets = slice(int(batch.targets.offsets[row]), int(batch.targets.offsets[row + 1]))
            assert int(batch.events.times[history].max()) < int(batch.requests.as_of[row])
            assert batch.targets.feedback["click"][targets].all()
            assert int(batch.requests.as_of[row]) % 240 == 0  # requests begin every four minutes
            found += batch.target_ids[targets].tolist()
            assert (batch.events.feedback["watch_time"][history] <= batch.events.feedback["duration"][history]).all()
    assert sorted(found) == sorted(dataset.item_ids[wanted].tolist())
    counts = [batch.global_count for batch in source.batches(epoch=1)]
    assert sum(count or 0 for count in counts) == len(wanted)


def test_rows_in_time_order_for_streaming() -> None:
    every, _ = make_views(tiny_exposures(), DataConfig(positive="click"))
    source = RequestRows(read_log(every.dataset, 10, every.schema), every.split, 5, order="time")
    moments = [batch.requests.as_of for batch in source.batches(epoch=0)]
    ends = [int(moment.max()) for moment in moments if moment is not None]
    starts = [int(moment.min()) for moment in moments if moment is not None]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_a_log_without_requests_has_one_per_event() -> None:
    dataset = tiny_exposures()
    bare = Dataset(**{**dataset.__dict__, "feedback": {}})
    assert (request_starts(bare) == np.arange(bare.num_events)).all()


def test_history_feedback_is_whole_or_absent() -> None:
    dataset = tiny_exposures()
    schema = fit_schema(dataset, "click", np.ones(dataset.num_events, bool))
    full = {"click": [1, 0], "like": [0, 0], "watch_time": [9.9, 0.0], "duration": [10.0, 100.0]}
    complete = schema.complete(full, 2)
    assert complete["long_view"].tolist() == [1, 0]
    nothing = schema.complete({}, 2)
    assert nothing["click"].tolist() == [1, 1]
    assert nothing["like"].tolist() == [0, 0]
    assert np.isnan(nothing["watch_time"]).all()
    with pytest.raises(InputError, match="no 'like'"):
        schema.complete({"click": [1, 0]}, 2)
    with pytest.raises(InputError, match="holds a number beyond 32 bits"):
        schema.complete({**full, "watch_time": [1, 10**400]}, 2)
    with pytest.raises(InputError, match="3 values for 2 events"):
        schema.complete({**full, "like": [0, 0, 0]}, 2)


def test_bad_columns_are_named() -> None:
    dataset = tiny_exposures()
    every = np.ones(dataset.num_events, bool)
    with pytest.raises(InputError, match="positive = 'share' is not in the log"):
        fit_schema(dataset, "share", every)
    with pytest.raises(InputError, match="positive = 'watch_time' holds float32"):
        fit_schema(dataset, "watch_time", every)
    with pytest.raises(InputError, match="read from 'colour', which the item's table has not; allowed: creator"):
        fit_schema(dataset, "", every, declared={"colour": FeatureConfig("category", "item")})
    negative = {**dataset.feedback, "watch_time": np.full(dataset.num_events, -1.0)}
    with pytest.raises(InputError, match="watch_time -1 of event 0 is negative"):
        fit_schema(Dataset(**{**dataset.__dict__, "feedback": negative}), "", every)
    flags = {**dataset.feedback, "duration": np.ones(dataset.num_events, bool)}
    with pytest.raises(InputError, match="'duration' holds true and false"):
        fit_schema(Dataset(**{**dataset.__dict__, "feedback": flags}), "", every)
    schema = fit_schema(dataset, "click", every)
    with pytest.raises(InputError, match="no feedback column 'click'"):
        read_log(Dataset(**{**dataset.__dict__, "feedback": {}}), 10, schema)
    none = {**dataset.feedback, "click": np.zeros(dataset.num_events, bool)}
    with pytest.raises(InputError, match="no event of 'tiny_exposures' is positive"):
        make_views(Dataset(**{**dataset.__dict__, "feedback": none}), DataConfig(positive="click"))
