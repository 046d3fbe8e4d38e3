"""Batches: every training target exactly once an epoch, the same global batch on any number of processes."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hand_made import read_log
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.batches import PackedSequences, PrefixRows, eval_batches
from sidera.data.dataset import Dataset
from sidera.data.schema import build_dataset
from sidera.data.split import EvalRows, Split, leave_one_out
from sidera.data.tiny import checkerboard, checkerboard_next, tiny_log

SOURCES = (PackedSequences, PrefixRows)


def numbered(lengths: list[int]) -> tuple[Dataset, Split]:
    """Every event has its own item, whose id is the event's position: a batch shows which events it read."""
    num = sum(lengths)
    user = np.repeat([f"u{index:03d}" for index in range(len(lengths))], lengths)
    items = pa.table({"key": [str(position) for position in range(num)]})
    events = pa.table({"user": user, "item": np.arange(num), "time": np.arange(num)})
    dataset = build_dataset("numbered", events, items)
    return dataset, leave_one_out(dataset)


def train_targets(dataset: Dataset, split: Split) -> list[int]:
    return [
        position
        for user in range(dataset.num_users)
        for position in range(dataset.offsets[user] + 1, split.train_ends[user])
    ]


def pairs(batch: Batch, max_history: int) -> list[tuple[int, ...]]:
    """(target, inputs...) of every target, the slow way."""
    found = []
    assert batch.target_ids is not None
    offsets = batch.events.offsets.tolist()
    for row, (low, high) in enumerate(itertools.pairwise(offsets)):
        history = batch.item_ids[low:high].tolist()
        assert 1 <= len(history) <= max_history
        if batch.targets_of().kind == "event":
            found += [(int(batch.target_ids[low + i]), *history[: i + 1]) for i in range(len(history))]
        else:
            found.append((int(batch.target_ids[row]), *history))
    return found


lengths_strategy = st.lists(st.integers(1, 30), min_size=1, max_size=25).filter(lambda lengths: max(lengths) >= 4)


@pytest.mark.parametrize("source_class", SOURCES)
@settings(deadline=None, max_examples=40)
@given(lengths=lengths_strategy, max_history=st.integers(1, 12), batch_size=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_holds_every_train_target_once(
    source_class: type, lengths: list[int], max_history: int, batch_size: int, seed: int
) -> None:
    dataset, split = numbered(lengths)
    source = source_class(read_log(dataset, max_history), split, batch_size, seed)
    batches = list(source.batches(epoch=seed))
    assert len(batches) == source.num_batches(seed)
    found = [pair for batch in batches for pair in pairs(batch, max_history)]
    assert sorted(pair[0] for pair in found) == train_targets(dataset, split)
    for target, *history in found:  # inputs are the events just before, of the same user
        assert history == list(range(target - len(history), target))
        assert dataset.event_users[history[0]] == dataset.event_users[target]
    for batch in batches:
        assert batch.target_ids is not None
        assert batch.num_histories <= batch_size
        assert batch.global_count == batch.target_ids.numel()
        assert batch.events.times is not None
        assert (
            batch.events.times.tolist() == batch.item_ids.tolist()
        )  # in this world an event's time is its position too
        assert batch.requests.user_ids is not None
        assert (
            batch.requests.user_ids.tolist()
            == dataset.event_users[batch.item_ids[batch.events.offsets[:-1]].numpy()].tolist()
        )


def test_prefix_rows_read_all_that_fits() -> None:
    dataset, split = numbered([9, 4])
    found = [pair for batch in PrefixRows(read_log(dataset, 3), split, 4).batches(0) for pair in pairs(batch, 3)]
    assert sorted(found) == [(1, 0), (2, 0, 1), (3, 0, 1, 2), (4, 1, 2, 3), (5, 2, 3, 4), (6, 3, 4, 5), (10, 9)]


def test_packed_windows_are_full_at_the_newest_end() -> None:
    dataset, split = numbered([12])  # ten training events, nine targets
    windows = [batch.item_ids.tolist() for batch in PackedSequences(read_log(dataset, 4), split, 1).batches(0)]
    assert sorted(windows) == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    last = list(PackedSequences(read_log(dataset, 4), split, 1, windows="last").batches(0))
    assert [batch.item_ids.tolist() for batch in last] == [[5, 6, 7, 8]]
    assert last[0].target_ids is not None
    assert last[0].target_ids.tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("source_class", SOURCES)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_cut_the_same_global_batch(source_class: type, world_size: int) -> None:
    dataset = tiny_log(num_users=50, num_items=60)
    source = source_class(read_log(dataset, 8), leave_one_out(dataset), 16, seed=3)
    whole = list(source.batches(epoch=1))
    cut = [list(source.batches(epoch=1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for index, batch in enumerate(whole):
        parts = [ranked[index] for ranked in cut]
        assert {part.global_count for part in parts} == {batch.global_count}
        assert sum((Counter(pairs(part, 8)) for part in parts), Counter()) == Counter(pairs(batch, 8))
        events = [part.item_ids.numel() for part in parts]
        assert max(events) - min(events) <= 8  # like work for each: no rank waits for another


@pytest.mark.parametrize("source_class", SOURCES)
def test_order_depends_on_seed_and_epoch_alone_and_can_be_entered_anywhere(source_class: type) -> None:
    dataset = tiny_log(num_users=50, num_items=60)
    split = leave_one_out(dataset)

    def run(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
        source = source_class(read_log(dataset, 8), split, 16, seed=seed)
        return [
            [*batch.item_ids.tolist(), -1, *batch.events.offsets.tolist()] for batch in source.batches(epoch, start)
        ]

    assert run(0, 0) == run(0, 0)
    assert run(0, 0) != run(0, 1)
    assert run(0, 0) != run(1, 0)
    assert run(0, 1)[2:] == run(0, 1, start=2)
    assert run(0, 0, start=len(run(0, 0))) == []


@pytest.mark.parametrize("source_class", SOURCES)
def test_digest_names_data_and_settings(source_class: type) -> None:
    dataset = tiny_log(num_users=20, num_items=60)
    split = leave_one_out(dataset)
    shorter = dataclasses.replace(split, train_ends=np.maximum(split.train_ends - 1, dataset.offsets[:-1]))
    other = tiny_log(num_users=20, num_items=60, seed=1)
    sources = [
        source_class(read_log(dataset, 8), split, 16),
        source_class(read_log(dataset, 8), shorter, 16),
        source_class(read_log(dataset, 9), split, 16),
        source_class(read_log(dataset, 8), split, 17),
        source_class(read_log(dataset, 8), split, 16, seed=1),
        source_class(read_log(other, 8), leave_one_out(other), 16),
    ]
    assert len({source.digest for source in sources}) == len(sources)
    assert source_class(read_log(dataset, 8), split, 16).digest == sources[0].digest


def test_prefix_batches_hold_like_lengths_without_running_from_short_to_long() -> None:
    dataset = tiny_log(num_users=400, num_items=300)
    batches = list(PrefixRows(read_log(dataset, 20), leave_one_out(dataset), 32).batches(0))
    padded = sum(int(batch.lengths.max()) * batch.num_histories for batch in batches)
    assert padded <= 1.15 * sum(batch.item_ids.numel() for batch in batches)
    longest = np.array([int(batch.lengths.max()) for batch in batches])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


def test_batches_of_an_epoch_differ_by_one_row_at_most() -> None:
    dataset = checkerboard(num_users=65)
    sizes = {
        batch.num_histories for batch in PackedSequences(read_log(dataset, 8), leave_one_out(dataset), 32).batches(0)
    }
    assert sizes == {21, 22}


@settings(deadline=None, max_examples=30)
@given(lengths=lengths_strategy, max_history=st.integers(1, 12), batch_size=st.integers(1, 9))
def test_eval_batches_read_every_row_once_and_only_its_newest_events(
    lengths: list[int], max_history: int, batch_size: int
) -> None:
    dataset, split = numbered(lengths)
    seen = []
    longest = None
    for index, batch in eval_batches(read_log(dataset, max_history), split.test, batch_size):
        assert len(index) == batch.num_histories <= batch_size
        assert longest is None or int(batch.lengths.max()) <= longest
        longest = int(batch.lengths.max())
        for row, (target, *history) in zip(index, _rows_of(batch), strict=True):
            low, end = int(split.test.starts[row]), int(split.test.ends[row])
            assert history == list(range(max(low, end - max_history), end))
            assert target == end == split.test.target_ids[row]
        seen += index.tolist()
    assert sorted(seen) == list(range(len(split.test)))


def _rows_of(batch: Batch) -> list[tuple[int, ...]]:
    assert batch.target_ids is not None
    cuts = zip(
        batch.target_ids.tolist(), batch.events.offsets.tolist(), batch.events.offsets.tolist()[1:], strict=False
    )
    return [(target, *batch.item_ids[low:high].tolist()) for target, low, high in cuts]


def test_a_history_of_a_million_events_costs_its_newest_ones() -> None:
    num = 10**6
    events = np.arange(num + 1)
    small = tiny_log(num_users=3, num_items=60)
    dataset = Dataset(
        name="long",
        item_keys=np.array(["a", "b"], dtype=object),
        user_keys=np.array(["u"], dtype=object),
        offsets=np.array([0, num + 1]),
        item_ids=events % 2,
        times=events,
        feedback={},
        items=small.items.slice(0, 2),
        users=small.users.slice(0, 1),
    )
    rows = EvalRows(np.array([0]), np.array([0]), np.array([num]), np.array([0]))
    tracemalloc.start()
    try:
        ((_, batch),) = eval_batches(read_log(dataset, 50), rows, batch_size=8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < num  # bytes: one copy of the history is eight times as many
    assert batch.events.times is not None
    assert batch.events.times.tolist() == list(range(num - 50, num))
    # in training the same user is cut into windows, none of its targets lost
    source = PackedSequences(read_log(dataset, 50), leave_one_out(dataset), 1024)
    assert sum(batch.item_ids.numel() for batch in source.batches(0)) == num - 2


@pytest.mark.parametrize("source_class", SOURCES)
def test_bad_sizes_and_logs_without_targets_are_refused(source_class: type) -> None:
    dataset, split = numbered([4, 4])
    with pytest.raises(InputError, match="max_history = 0; allowed: 1 or more"):
        source_class(read_log(dataset, 0), split, 4)
    with pytest.raises(InputError, match="batch_size = -1"):
        source_class(read_log(dataset, 5), split, -1)
    with pytest.raises(InputError, match="2 rows cannot be cut among 3 processes"):
        next(source_class(read_log(dataset, 5), split, 4).batches(0, rank=0, world_size=3))
    lonely, lonely_split = numbered([1, 3, 1])
    with pytest.raises(InputError, match="nothing to train on"):
        source_class(read_log(lonely, 5), lonely_split, 4)


def test_checkerboard_has_the_answer_it_promises() -> None:
    dataset = checkerboard(num_users=60, num_items=24, num_cycles=4)
    following = checkerboard_next(24, 4)
    assert sorted(following.tolist()) == list(range(24))
    for batch in PackedSequences(read_log(dataset, 8), leave_one_out(dataset), 16).batches(0):
        assert batch.target_ids is not None
        assert batch.target_ids.tolist() == following[batch.item_ids.numpy()].tolist()
    assert dataset.num_items == len(set(dataset.item_ids.tolist())) == 24
