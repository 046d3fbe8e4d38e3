"""Lifelong histories: what is exact equals a recomputation, limits hold, files are whole or refused."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from histories import clusters_of, item_vectors, recomputed, stream

from sidera.core import InputError
from sidera.data.representatives import TOKEN
from sidera.store.events import Events, concatenate
from sidera.store.lifelong import LifelongConfig, LifelongHistory
from sidera.store.splitting import nearest_centres, num_splits, weighted_kmeans

SMALL = LifelongConfig(max_events=600, max_representatives=40, leaf_size=30)


def grown(config: LifelongConfig = SMALL, first: int = 400, then: int = 500, seed: int = 0) -> LifelongHistory:
    """A history of one large append and many small ones, over its limit when ``first + then`` is."""
    history = LifelongHistory(item_vectors(), config, seed)
    events = stream(first + then)
    history.append(events.take(slice(0, first)))
    place = first
    rng = np.random.default_rng(1)
    while place < first + then:
        step = int(rng.integers(1, 4))
        history.append(events.take(slice(place, place + step)))
        place += step
    return history


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == TOKEN and a.tobytes() == b.tobytes()


def check_against_reference(history: LifelongHistory) -> None:
    clusters, tree = clusters_of(history), history.tree
    assert sorted(place for members in clusters.values() for place in members) == list(range(len(history)))
    for leaf, members in clusters.items():  # the other direction: a cluster's list and the events' labels agree
        assert history.ring.age(np.array(tree.members[leaf])).tolist() == members
    assert set(clusters) == set(tree.members)
    tokens, rows = history.representatives(), recomputed(history)
    assert len(tokens) == len(rows) <= history.config.max_representatives
    assert tokens["counts"].sum() == len(history)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    times, items, labels, counts, watch, duration, _ = columns
    np.testing.assert_allclose(tokens["times"], times, rtol=1e-12)
    for found, expected in (
        (tokens["item_ids"], items),
        (tokens["labels"], labels),
        (tokens["counts"], counts),
    ):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(tokens["watch_time"], watch, rtol=1e-6)
    np.testing.assert_allclose(tokens["duration"], duration, rtol=1e-6)


@pytest.mark.parametrize("then", [0, 150, 500, 1400])
def test_tokens_equal_a_recomputation_from_the_members(then: int) -> None:
    history = grown(then=then)
    check_against_reference(history)
    assert history.num_evicted == max(0, 400 + then - 600)
    leaves = [len(members) for members in history.tree.members.values()]
    assert all(size <= max(history.clusters.max_leaf, history.tree.size_limits.get(leaf, 0))
               for leaf, size in zip(history.tree.members, leaves, strict=True))  # fmt: skip


def test_an_event_is_where_the_descent_by_nearest_cells_leads() -> None:
    history = grown()
    slots = history.ring.slots()
    vectors = history.vectors[history.ring.item_ids[slots]]
    expected = []
    for vector in vectors:
        reference = history.tree.root
        while reference >= 0:
            node = history.tree.nodes[reference]
            distances = [float(np.square(cell - vector).sum()) for cell in node.centres]
            reference = node.children[distances.index(min(distances))]
        expected.append(~reference)
    np.testing.assert_array_equal(history.ring.leaf[slots], expected)
    np.testing.assert_array_equal(history.tree.route(vectors), expected)
    assert [int(history.tree.route(vector[None])[0]) for vector in vectors[:50]] == expected[:50]


def test_every_cell_leads_somewhere_and_parents_agree() -> None:
    tree = grown(then=1400).tree
    reached = {tree.root}
    for number, node in tree.nodes.items():
        assert len(node.children) == len(node.centres) >= 2
        assert len(set(node.children)) >= 2  # a node with one child is that child
        for child in set(node.children):
            assert child not in reached
            reached.add(child)
            assert (tree.leaf_parent[~child] if child < 0 else tree.nodes[child].parent) == number
    assert reached == {~leaf for leaf in tree.members} | set(tree.nodes)
    assert tree.depth() >= 2


def test_short_histories_are_kept_as_they_are() -> None:
    history, events = LifelongHistory(item_vectors(), SMALL), stream(40)
    assert len(history.representatives()) == 0
    for place in range(40):
        history.append(events.take(slice(place, place + 1)))
    tokens = history.representatives()
    np.testing.assert_array_equal(tokens["item_ids"], events.item_ids)
    np.testing.assert_array_equal(tokens["times"], events.times)
    np.testing.assert_array_equal(tokens["counts"], np.ones(40))
    history.append(stream(1, start=2_000_000, seed=3))  # one more than the limit
    assert history.representatives()["counts"].sum() == 41
    check_against_reference(history)


def test_the_oldest_leave_first_and_are_counted() -> None:
    history, events = LifelongHistory(item_vectors(), SMALL), stream(2000)
    history.append(events.take(slice(0, 500)))
    history.append(events.take(slice(500, 2000)))  # alone more than the limit
    assert (len(history), history.num_evicted) == (600, 1400)
    np.testing.assert_array_equal(history.events().item_ids, events.item_ids[1400:])
    check_against_reference(history)
    fresh = LifelongHistory(item_vectors(), SMALL)
    fresh.append(events.take(slice(1400, 2000)))
    assert len(history.representatives()) == len(fresh.representatives())


def test_one_item_a_thousand_times_is_one_cluster() -> None:
    history = LifelongHistory(item_vectors(), SMALL)
    for start in range(0, 900, 30):
        history.append(Events.of(np.full(30, 5), start + np.arange(30)))
    tokens = history.representatives()
    assert tokens["item_ids"].tolist() == [5]
    assert tokens["counts"].tolist() == [600]


def test_the_same_calls_give_the_same_tree_and_another_seed_another() -> None:
    first, second, other = grown(), grown(), grown(seed=1)
    assert same(first.representatives(), second.representatives())
    assert not same(first.representatives(), other.representatives())


def test_no_change_moves_the_global_generators() -> None:
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    grown(then=50)
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_late_events_are_taken_and_counted() -> None:
    history = LifelongHistory(item_vectors(), SMALL)
    history.append(Events.of([1, 2], [100, 300]))
    history.append(Events.of([4, 3], [400, 200]))  # not in order, and one older than what came before
    assert history.num_late == 1
    assert history.events().item_ids.tolist() == [1, 3, 2, 4]
    assert history.representatives()["times"].tolist() == [100, 200, 300, 400]
    assert history.events(as_of=300).item_ids.tolist() == [1, 3]


def test_a_past_moment_sees_nothing_of_what_came_later() -> None:
    history = grown()
    as_of = int(np.median(history.events().times))
    tokens, before = history.representatives(as_of), history.events(as_of)
    assert tokens["counts"].sum() == len(before)
    assert before.times.max() < as_of
    np.testing.assert_allclose((tokens["times"] * tokens["counts"]).sum(), before.times.astype(float).sum(), rtol=1e-12)
    assert set(tokens["item_ids"].tolist()) <= set(before.item_ids.tolist())
    now = history.newest_time + 1
    assert same(history.representatives(now), history.representatives())
    early = int(history.events().times[30])
    assert len(history.representatives(early)) == len(history.events(early)) <= 40  # few: as they are
    assert history.representatives(early)["counts"].tolist() == [1] * len(history.events(early))


def squared_error(history: LifelongHistory) -> float:
    """Summed squared distance of the events to their cluster's centre."""
    history.tree.refresh()
    slots = history.ring.slots()
    vectors = history.vectors[history.ring.item_ids[slots]]
    return float(np.square(vectors - history.tree.centre[history.ring.leaf[slots]]).sum())


def test_a_rebuild_is_as_good_as_a_fresh_history_and_growth_nearly_so() -> None:
    history = LifelongHistory(item_vectors(), SMALL)
    events = stream(1200)
    for place in range(0, 1200, 2):
        history.append(events.take(slice(place, place + 2)))
    fresh = LifelongHistory(item_vectors(), SMALL)
    fresh.append(history.events())
    random = [item_vectors()[item] for item in history.events().item_ids]
    one_cluster = float(np.square(random - np.mean(random, axis=0)).sum())
    assert squared_error(fresh) < squared_error(history) < 2 * squared_error(fresh)
    assert squared_error(fresh) < one_cluster / 4
    assert history.rebuild_due
    history.rebuild()
    assert not history.rebuild_due
    assert squared_error(history) < 1.15 * squared_error(fresh)
    check_against_reference(history)


def restored(history: LifelongHistory) -> LifelongHistory:
    return LifelongHistory.from_state(history.state(), history.vectors, history.config)


def test_restored_it_answers_and_grows_as_before() -> None:
    history = grown(then=700)
    loaded = restored(history)
    assert same(history.representatives(), loaded.representatives())
    assert (loaded.num_evicted, loaded.config, loaded.seed) == (history.num_evicted, SMALL, 0)
    more = stream(300, start=3_000_000, seed=9)
    for place in range(0, 300, 3):
        for one in (history, loaded):
            one.append(more.take(slice(place, place + 3)))
    assert same(history.representatives(), loaded.representatives())
    for name, tensor in history.state().items():
        assert torch.equal(tensor, loaded.state()[name]), name


@pytest.mark.parametrize("number", [0, 1, 40])
def test_short_histories_are_restored_too(number: int) -> None:
    history = LifelongHistory(item_vectors(), SMALL)
    history.append(stream(number))
    loaded = restored(history)
    assert same(history.representatives(), loaded.representatives())
    loaded.append(stream(300, start=2_000_000))
    check_against_reference(loaded)


def test_a_state_of_items_without_a_vector_is_refused() -> None:
    with pytest.raises(InputError, match="is of item"):
        LifelongHistory.from_state(grown(then=10).state(), item_vectors(num_items=20), SMALL)


def test_new_items_come_below_the_old_ones() -> None:
    history = grown(then=0)
    history.vectors = np.concatenate([item_vectors(), np.ones((1, 8), np.float32)])
    history.append(Events.of([300], [5_000_000]))
    assert history.representatives()["counts"].sum() == 401


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Events.of([1, 2], [5]), "times have shape"),
        (lambda: Events.of([-1], [5]), r"item ids\[0\] = -1"),
        (lambda: Events.of([1.5], [5]), "item ids are float64; allowed: whole numbers"),
        (lambda: Events.of([1], [-5]), r"times\[0\] = -5"),
        (lambda: Events.of([1], [5], labels=[-1]), r"labels\[0\] = -1"),
        (lambda: Events.of([1], [5], watch_time=[float("nan")]), r"watch_time\[0\] = nan"),
        (lambda: Events.of([1], [5], duration=[-2.0]), r"duration\[0\] = -2.0"),
        (lambda: LifelongHistory(item_vectors(), SMALL).append(Events.of([1, 300], [5, 6])), "of item 300.*0..299"),
        (lambda: LifelongHistory(item_vectors(), SMALL, seed=-1), "seed = -1"),
        (lambda: LifelongConfig(max_events=0), "max_events = 0"),
        (lambda: LifelongConfig(max_representatives=-3), "max_representatives = -3"),
        (lambda: LifelongConfig(leaf_size=2.5), "leaf_size = 2.5"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_a_refused_append_changes_nothing() -> None:
    history = grown(then=0)
    tokens = history.representatives()
    with pytest.raises(InputError):
        history.append(Events.of([3, 9999], [9_000_000, 9_000_001]))
    history.append(Events.of([], []))
    assert same(history.representatives(), tokens)
    assert (len(history), history.newest_time < 9_000_000) == (400, True)


def test_number_of_clusters_is_the_floor_of_the_cube_root() -> None:
    for size in range(8, 70_000, 7):
        root = num_splits(size)
        assert root**3 <= size < (root + 1) ** 3
    assert [num_splits(cube**3) for cube in range(2, 50)] == list(range(2, 50))
    assert [num_splits(size) for size in (2, 7)] == [2, 2]


def test_weighted_kmeans_is_kmeans_over_the_repeated_points() -> None:
    """The centres are the means of the repeated points, every point is with its nearest one."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 3)).astype(np.float32)
    weights = rng.integers(1, 9, size=60)
    centres, assignment = weighted_kmeans(points, weights, 5, 100, np.random.default_rng(2))
    np.testing.assert_array_equal(assignment, nearest_centres(points, centres))
    repeated, homes = np.repeat(points, weights, axis=0), np.repeat(assignment, weights)
    for cluster, centre in enumerate(centres):
        np.testing.assert_allclose(centre, repeated[homes == cluster].mean(axis=0), rtol=1e-4, atol=1e-5)
    spread = np.square(repeated - repeated.mean(axis=0)).sum()
    assert np.square(repeated - centres[homes]).sum() < spread * 0.6


def test_events_concatenate() -> None:
    a, b = stream(3), stream(2, seed=1)
    assert concatenate([a, b]).item_ids.tolist() == [*a.item_ids.tolist(), *b.item_ids.tolist()]


# -- whole chunks: a function of the events alone -------------------------------------------------------------------

CHUNKED = LifelongConfig(max_events=300, max_representatives=40, leaf_size=30, chunk=8)


def told(events: Events, steps: list[int], config: LifelongConfig = CHUNKED) -> LifelongHistory:
    """A history that got its events in calls of these sizes, the rest at once."""
    history, place = LifelongHistory(item_vectors(), config), 0
    for step in [*steps, len(events)]:
        history.append(events.take(slice(place, place + step)))
        place += step
    return history


@pytest.mark.parametrize("number", [0, 7, 8, 39, 40, 41, 100, 299, 312, 313, 517])
def test_with_chunks_it_does_not_matter_how_events_came(number: int) -> None:
    events = stream(number)
    ways = ([], [1] * number, np.random.default_rng(number).integers(1, 20, size=number).tolist())
    first, *others = [told(events, steps) for steps in ways]
    tokens = first.representatives()
    assert len(tokens) < 40
    assert tokens["counts"].sum() == len(first) == number - first.num_evicted
    clustered = max(0, number // 8 - 1) * 8  # a chunk enters when the one behind it is whole
    assert first.num_evicted == max(0, clustered - 300)
    assert len(first.tail) == number - clustered < 16
    assert (np.diff(tokens["times"]) >= 0).all()
    assert tokens["counts"].max(initial=1) == 1 if clustered <= 24 else tokens["counts"].max() > 1
    for other in others:
        assert same(tokens, other.representatives())
        assert not other.rebuild_due


def test_with_chunks_a_past_moment_is_the_history_that_was() -> None:
    events = stream(203)
    history = told(events, [])
    assert len(history.tail) == 11
    for number in (202, 193, 192, 191, 190, 101, 41, 33, 5, 0):  # in the tail, its edge, before it, before any cluster
        as_of = int(events.times[number])
        before = events.take(events.times < as_of)
        assert same(history.representatives(as_of), told(before, [1] * number).representatives())
        assert len(history.events(as_of)) == len(before)


def test_with_chunks_restored_it_grows_as_before() -> None:
    events = stream(203)
    history = told(events.take(slice(0, 150)), [])
    loaded = restored(history)
    assert (loaded.config, len(loaded), len(loaded.tail)) == (CHUNKED, 150, 14)
    assert same(loaded.representatives(), history.representatives())
    loaded.append(events.take(slice(150, 203)))
    assert same(loaded.representatives(), told(events, []).representatives())


class Idle(Executor):
    """Takes work and never begins it."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


class Later(Executor):
    """Does the work when asked for."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []
        self.done = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, function, args))
        return future

    def work(self) -> None:
        for future, function, args in self.waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(function(*args))
                self.done += 1
        self.waiting.clear()


def test_chunks_clustered_ahead_by_another_thread_give_the_same_history() -> None:
    """Done ahead, never begun, done by a real thread: equal to what the due event does itself, at every event."""
    events, later = stream(517), Later()
    with ThreadPoolExecutor(1) as thread:
        ways: list[Executor | None] = [None, Idle(), later, thread]
        histories = [LifelongHistory(item_vectors(), CHUNKED, background=background) for background in ways]
        for place in range(517):
            before = histories[2].representatives()
            for history in histories:
                history.append(events.take(slice(place, place + 1)))
            if later.waiting:
                read = histories[2].representatives()
                later.work()  # on a copy: who reads meanwhile sees what was
                assert same(read, histories[2].representatives())
                assert len(read) == len(before) + 1
            first, *others = [history.representatives() for history in histories]
            assert all(same(first, other) for other in others)
    assert later.done == 517 // 8 - 4  # every chunk but the three that were not clustered, and the last two that wait
    for history in histories[1:]:
        for name, tensor in histories[0].state().items():
            assert torch.equal(tensor, history.state()[name]), name


def test_items_that_come_while_a_chunk_is_clustered_ahead_are_known_afterwards() -> None:
    later, events = Later(), stream(120)
    history = LifelongHistory(item_vectors(), CHUNKED, background=later)
    for place in range(102):
        history.append(events.take(slice(place, place + 1)))
        if place < 100:
            later.work()
    assert later.waiting
    later.work()
    history.vectors = np.concatenate([item_vectors(), np.ones((1, 8), np.float32)])
    for place in range(40):
        history.append(Events.of([300], [5_000_000 + place]))
    later.work()
    assert history.representatives()["counts"].sum() == 142
    assert history.tree.vectors.shape == (301, 8)


def test_with_chunks_late_events_are_sorted_in() -> None:
    history = told(stream(100), [])
    newest = history.newest_time
    history.append(Events.of([7], [newest - 500]))
    assert (history.num_late, history.newest_time) == (1, newest)
    tokens = history.representatives()
    assert (np.diff(tokens["times"]) >= 0).all()
    assert newest - 500 in tokens["times"][tokens["item_ids"] == 7]
    assert history.events().times.tolist() == sorted(history.events().times)
    assert len(history.events(newest)) == 100


@pytest.mark.parametrize("chunk", [-1, 40, 2.0])
def test_impossible_chunks_are_named(chunk: int) -> None:
    with pytest.raises(InputError, match=f"chunk = {chunk}"):
        LifelongConfig(max_representatives=40, chunk=chunk)


def test_means_are_of_the_seconds_that_are_known() -> None:
    seconds = np.array([1.0, np.nan, 4.0, np.nan] * 100)
    events = Events.of(np.arange(400) % 4, np.arange(400), None, seconds, seconds, may_lack_seconds=True)
    history = LifelongHistory(item_vectors(), LifelongConfig(max_events=600, max_representatives=4, leaf_size=150))
    history.append(events)
    tokens = history.representatives()
    clusters = clusters_of(history)
    assert len(clusters) == len(tokens) > 1
    for members in clusters.values():
        known = seconds[members][np.isfinite(seconds[members])]
        mean = known.mean() if len(known) else np.nan
        assert any(np.array_equal(mean, value, equal_nan=True) for value in tokens["watch_time"].tolist())
    assert np.isnan(tokens["watch_time"]).any()
