"""A log and one's own exposures behind it: in order, in their requests, with the first log's meaning of a long view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sidera.core import InputError
from sidera.data.config import DataConfig, View, make_views
from sidera.data.extend import UNKNOWN, extended
from sidera.data.features import long_view_thresholds
from sidera.data.tiny import tiny_exposures

CONFIG = DataConfig(positive="long_view")


@pytest.fixture
def view() -> View:
    return make_views(tiny_exposures(), CONFIG)[0]


def events(view: View, **changes: object) -> pa.Table:
    """Two requests of two items each by users 1 and 0, after the log."""
    late = int(view.dataset.times.max()) + 100
    keys, items = view.dataset.user_keys, view.dataset.item_keys
    columns: dict[str, object] = {
        "user": [keys[1], keys[1], keys[0], keys[0]],
        "item": [items[4], items[5], items[6], items[4]],
        "time": [late, late, late + 5, late + 5],
        "request": [0, 0, 1, 1],
    }
    for name, values in view.dataset.feedback.items():
        if name not in ("long_view", *columns):
            columns[name] = np.zeros(4, dtype=values.dtype)
    columns |= {"watch_time": np.full(4, 500.0), "duration": np.full(4, 9.0)}
    return pa.table({name: values for name, values in (columns | changes).items() if values is not None})


def test_events_stand_behind_the_log_of_their_user(view: View) -> None:
    found, dataset = extended(view, CONFIG, events(view)).dataset, view.dataset
    assert found.num_events == dataset.num_events + 4
    for user in range(dataset.num_users):
        old = slice(dataset.offsets[user], dataset.offsets[user + 1])
        new = found.item_ids[found.offsets[user] : found.offsets[user + 1]]
        more = {0: [6, 4], 1: [4, 5]}.get(user, [])
        assert new.tolist() == dataset.item_ids[old].tolist() + more
        for name, values in dataset.feedback.items():
            start = found.offsets[user]
            np.testing.assert_array_equal(found.feedback[name][start : start + old.stop - old.start], values[old])
    assert found.digest != dataset.digest


def test_what_a_long_view_is_does_not_move(view: View) -> None:
    """Thresholds of the grown log would be others: the policy's views are all long."""
    found = extended(view, CONFIG, events(view))
    assert found.schema == view.schema
    dataset = found.dataset
    assert dataset.feedback["long_view"][dataset.times > view.dataset.times.max()].all()
    both = dataset.feedback["watch_time"], dataset.feedback["duration"]
    assert long_view_thresholds(*both, CONFIG.long_view_quantile) != view.schema.long_view_seconds


def test_requests_do_not_fall_together(view: View) -> None:
    found = extended(view, CONFIG, events(view)).dataset
    requests = found.feedback["request"]
    new = requests[found.times > view.dataset.times.max()]
    assert new.min() > view.dataset.feedback["request"].max()
    assert len(np.unique(new)) == 2


def test_strangers_are_counted(view: View) -> None:
    keys = view.dataset.user_keys
    found = extended(view, CONFIG, events(view, user=[keys[1], "nobody", keys[0], keys[0]])).dataset
    assert found.num_events == view.dataset.num_events + 3
    assert found.notes[UNKNOWN] == 1
    with pytest.raises(InputError, match="none of 4 exposures"):
        extended(view, CONFIG, events(view, user=["nobody"] * 4))


def test_refusals(view: View) -> None:
    with pytest.raises(InputError, match="no column 'click'"):
        extended(view, CONFIG, events(view, click=None))
    with pytest.raises(InputError, match="1 of 4 exposures have no 'watch_time'"):
        extended(view, CONFIG, events(view, watch_time=[1.0, None, 2.0, 3.0]))
    with pytest.raises(InputError, match="an order and no times"):
        extended(replace(view, dataset=replace(view.dataset, time_kind="order")), CONFIG, events(view))
