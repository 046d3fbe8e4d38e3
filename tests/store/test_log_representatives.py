"""A log read as the store would be told it: columns and bits, representatives of any moment, nothing of the future."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from histories import item_vectors

from hand_made import finder
from sidera.batch import Lifelong
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.representatives import label_bits, lifelong_of, unpacked_columns
from sidera.data.schema import build_dataset
from sidera.store.embedded import EmbeddedStore, StoreConfig
from sidera.store.events import packed_events
from sidera.store.lifelong import LifelongConfig
from sidera.store.log_representatives import LogRepresentatives, read_whole
from sidera.store.store_representatives import CatalogItems, StoreRepresentatives

SCHEMA = FeatureSchema(positive="like", labels=("click", "like"), has_watch_time=True, has_duration=True)
CONFIG = LifelongConfig(max_events=120, max_representatives=30, leaf_size=30, chunk=7)
KEYS = [f"i{number:03d}" for number in range(300)]
LENGTHS = (200, 12, 90, 24)  # one beyond max_events, two that are never clustered


def long_log(seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    watch = rng.random(len(users)) * 60
    watch[::5] = np.nan
    events = pa.table(
        {
            "user": [f"u{user}" for user in users],
            "item": [f"i{item:03d}" for item in rng.integers(0, 300, len(users))],
            "time": np.concatenate([1_000_000 + 60 * np.arange(length) for length in LENGTHS]),
            "click": rng.random(len(users)) < 0.5,
            "like": rng.random(len(users)) < 0.2,
            "watch_time": pa.array(watch, mask=np.isnan(watch)),
            "duration": rng.random(len(users)) * 60,
        }
    )
    return build_dataset("long", events, pa.table({"key": [f"i{number:03d}" for number in range(300)]}))


def equal(a: Lifelong, b: Lifelong) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("items", "offsets", "counts", "times")]
    pairs += [(a.feedback[name], b.feedback[name]) for name in SCHEMA.columns]
    return all(torch.equal(x.nan_to_num(-1.0), y.nan_to_num(-1.0)) for x, y in pairs)


def asked(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Users and positions all over the log, in no order."""
    rng = np.random.default_rng(1)
    users = rng.integers(0, len(LENGTHS), 60)
    ends = dataset.offsets[users] + 1 + (rng.random(60) * (np.array(LENGTHS)[users] - 1)).astype(np.int64)
    return users, ends


def test_columns_become_bits_and_come_back() -> None:
    dataset = long_log()
    columns = {name: dataset.feedback[name] for name in SCHEMA.columns}
    events = packed_events(SCHEMA, dataset.item_ids, np.zeros(dataset.num_events, np.int64), columns)
    found = unpacked_columns(SCHEMA, events.labels, events.watch_time, events.duration)
    for name in SCHEMA.columns:
        np.testing.assert_array_equal(found[name], columns[name].astype(np.float32))
    bare = packed_events(FeatureSchema(), [1, 2], [5, 6], {})
    assert (bare.labels.tolist(), np.isnan(bare.watch_time).all()) == ([0, 0], True)
    with pytest.raises(InputError, match=r"feedback 'like' is 0.5 in event 1; allowed: 0 or 1"):
        label_bits(SCHEMA, {"click": [1, 0], "like": [1, 0.5]})
    with pytest.raises(InputError, match="32 labels, the store keeps 31"):
        label_bits(FeatureSchema(labels=tuple(f"l{number}" for number in range(32))), {})


def test_a_row_is_what_a_store_says_that_was_told_the_events_before(tmp_path: Path) -> None:
    dataset, items = long_log(), item_vectors()
    read, (users, ends) = LogRepresentatives(dataset, SCHEMA, items, CONFIG), asked(dataset)
    found = read(users, ends)
    for row, (user, end) in enumerate(zip(users.tolist(), ends.tolist(), strict=True)):
        start = int(dataset.offsets[user])
        with EmbeddedStore(tmp_path / f"{row}", StoreConfig(durability="kernel")) as store:
            numbers = store.numbers_of(KEYS[::-1])[::-1]  # the store's numbers are not the catalogue's ids
            view = StoreRepresentatives(
                store, CatalogItems.of(KEYS, finder({k: n for n, k in enumerate(KEYS)}), items), CONFIG
            )

            def send(span: slice, store: EmbeddedStore = store, numbers: np.ndarray = numbers) -> None:
                columns = {name: dataset.feedback[name][span] for name in SCHEMA.columns}
                ids = numbers[dataset.item_ids[span]]
                store.append("u", packed_events(SCHEMA, ids, dataset.times[span], columns))

            for place in range(start, end):
                send(slice(place, place + 1))
                if row % 2:
                    view.follow("u")
            expected = lifelong_of(SCHEMA, [view.of("u")])
            # and as of the moment of the next event, from a store that knows what came later
            rest = slice(end, int(dataset.offsets[user + 1]))
            if rest.stop - start <= 120:  # nothing was evicted: all that was there is there
                send(rest)
                assert equal(lifelong_of(SCHEMA, [view.of("u", int(dataset.times[end]))]), expected)
            view.close()
        assert equal(found.rows(torch.tensor([row])), expected)
        whole = slice(start, end)
        columns = {name: dataset.feedback[name][whole] for name in SCHEMA.columns}
        at_once = read_whole(SCHEMA, items, CONFIG, dataset.item_ids[whole], dataset.times[whole], columns)
        assert equal(lifelong_of(SCHEMA, [at_once]), expected)
    assert int(found.counts.max()) > 1
    assert int(found.offsets.diff().max()) < 30


def test_what_comes_later_changes_nothing() -> None:
    """Every event from the asked one on is replaced, in all columns: rows read the same."""
    dataset, items = long_log(), item_vectors()
    other = long_log(seed=9)
    users, ends = asked(dataset)
    expected = LogRepresentatives(dataset, SCHEMA, items, CONFIG)(users, ends)
    for row, (user, end) in enumerate(zip(users.tolist(), ends.tolist(), strict=True)):
        later = np.arange(dataset.num_events) >= end

        def mixed(mine: Any, theirs: Any, later: np.ndarray = later) -> np.ndarray:
            return np.where(later, theirs, mine)

        changed = replace(
            dataset,
            item_ids=mixed(dataset.item_ids, other.item_ids),
            feedback={name: mixed(values, other.feedback[name]) for name, values in dataset.feedback.items()},
        )
        found = LogRepresentatives(changed, SCHEMA, items, CONFIG)(np.array([user]), np.array([end]))
        assert equal(found, expected.rows(torch.tensor([row])))
        before = np.array([max(end - 1, int(dataset.offsets[user]) + 1)])
        if before[0] < end:  # the event just before does change them
            assert not equal(found, LogRepresentatives(dataset, SCHEMA, items, CONFIG)(np.array([user]), before))


def test_trees_are_grown_once_and_only_for_long_histories() -> None:
    dataset = long_log()
    read = LogRepresentatives(dataset, SCHEMA, item_vectors(), CONFIG)
    read(np.array([1, 3]), dataset.offsets[[2, 4]])
    assert read._of_user == {}
    read(np.array([0, 0]), np.array([150, 160]))
    kept = read._of_user[0]
    read(np.array([0]), np.array([199]))
    assert read._of_user[0] is kept
    assert read.identity == LogRepresentatives(dataset, SCHEMA, item_vectors(), CONFIG).identity
    assert read.identity != LogRepresentatives(dataset, SCHEMA, item_vectors(seed=1), CONFIG).identity
    assert read.identity != LogRepresentatives(dataset, SCHEMA, item_vectors(), replace(CONFIG, chunk=5)).identity
    with pytest.raises(InputError, match="chunk = 0"):
        LogRepresentatives(dataset, SCHEMA, item_vectors(), replace(CONFIG, chunk=0))
