"""The online test: the sanity ladder, honest intervals, and policies that misbehave."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sidera.core import InputError
from sidera.lab.brackets import LoggerPolicy, OraclePolicy, PopularityPolicy, RandomPolicy
from sidera.lab.differences import WIDTH, compare
from sidera.lab.policy import FAULTS, PolicyFailed, Requests, read_answer
from sidera.lab.trial import METRICS, Audience, Outcomes, prepare, run_policy
from sidera.sim.world import World
from small_world import click_counts, small_world


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


@pytest.fixture(scope="module")
def audience(world: World) -> Audience:
    return prepare(world, np.arange(300), log_days=6)


@pytest.fixture(scope="module")
def random_arm(world: World, audience: Audience) -> Outcomes:
    return run_policy(world, RandomPolicy(300), audience, days=3)


@pytest.mark.parametrize("name", ["easy", "hard"])
def test_oracle_far_above_popularity_and_logger_far_above_random(name: str) -> None:
    world = small_world(name)
    audience = prepare(world, np.arange(300), log_days=6)
    policies = {
        "random": RandomPolicy(300),
        "popularity": PopularityPolicy(click_counts(world, 400, 6)),
        "logger": LoggerPolicy(),
        "click": OraclePolicy("click"),
        "oracle": OraclePolicy("utility"),
    }
    arms = {key: run_policy(world, policy, audience, days=3) for key, policy in policies.items()}
    for steps in (("random", "popularity", "oracle"), ("random", "logger", "oracle")):
        for lower, upper in itertools.pairwise(steps):
            found = compare(arms[lower], arms[upper])["utility"]
            assert found.value > found.half_width
    assert arms["oracle"].mean("utility") > 2 * arms["logger"].mean("utility")
    assert arms["oracle"].mean("returned_1") > arms["random"].mean("returned_1") + 0.1
    # where clicks are baited, knowing who clicks what is worth little
    assert arms["click"].mean("utility") < arms["oracle"].mean("utility") * (0.5 if name == "easy" else 0.95)


def test_watch_time_can_be_hacked_and_utility_shows_it(world: World, audience: Audience) -> None:
    found = compare(
        run_policy(world, OraclePolicy("utility"), audience, days=3),
        run_policy(world, OraclePolicy("watch_time"), audience, days=3),
    )
    assert found["watch_time"].value > found["watch_time"].half_width
    assert found["utility"].value < -found["utility"].half_width


def test_a_against_a_covers_zero(world: World) -> None:
    """Two equal policies with luck of their own: nearly all 95 % intervals of 60 groups of users cover 0."""
    audience = prepare(world, np.arange(3000), log_days=2)
    a, b = (run_policy(world, RandomPolicy(300, seed), audience, days=2).metrics["utility"] for seed in (1, 2))
    apart = run_policy(world, RandomPolicy(300, 3), audience, days=2, noise=1).metrics["utility"]
    for first, second in ((a, b), (a, apart)):
        groups = (second - first).reshape(60, 50)
        errors = groups.std(axis=1, ddof=1) / np.sqrt(50)
        covered = (np.abs(groups.mean(axis=1)) <= 1.96 * errors).sum()
        assert 51 <= covered <= 60


def test_pairing_needs_fewer_users(world: World, audience: Audience) -> None:
    a = run_policy(world, LoggerPolicy(), audience, days=2)
    b = run_policy(world, OraclePolicy("utility", strength=1.0), audience, days=2)
    near = run_policy(world, OraclePolicy("utility", strength=0.95), audience, days=2)
    assert compare(a, a)["utility"].half_width == 0
    errors = [side.metrics["utility"].std(ddof=1) / np.sqrt(len(side.user_ids)) for side in (b, near)]
    apart = WIDTH * np.hypot(*errors)  # the arms as two independent groups
    assert apart**2 > 1.5 * compare(b, near)["utility"].half_width ** 2


def test_answers_do_not_depend_on_the_batch(world: World, audience: Audience, random_arm: Outcomes) -> None:
    again = run_policy(world, RandomPolicy(300), audience, days=3, batch_size=7)
    for metric in METRICS:
        assert np.array_equal(random_arm.metrics[metric], again.metrics[metric], equal_nan=True)


def test_ids_and_audience_are_the_same_and_the_audience_is_left_alone(world: World, random_arm: Outcomes) -> None:
    from_ids = run_policy(world, RandomPolicy(300), np.arange(300), days=3, log_days=6)
    assert np.array_equal(from_ids.metrics["watch_time"], random_arm.metrics["watch_time"])


def test_histories_grow_with_what_was_shown_and_never_reach_ahead(world: World, audience: Audience) -> None:
    lengths: dict[int, list[int]] = {}

    def watching(requests: Requests) -> Any:
        assert set(requests.feedback) == {"click", "like", "follow", "comment", "forward", "dislike", "watch_time",
                                          "duration"}  # fmt: skip
        for place, user in enumerate(requests.user_ids.tolist()):
            part = slice(int(requests.offsets[place]), int(requests.offsets[place + 1]))
            assert (requests.times[part] <= requests.as_of[place]).all()
            assert (np.diff(requests.times[part]) >= 0).all()
            lengths.setdefault(user, []).append(part.stop - part.start)
        assert sum(map(len, requests.histories())) == requests.feedback["click"].sum()
        return RandomPolicy(300)(requests)

    outcomes = run_policy(world, watching, audience, days=2)
    assert outcomes.problems == ()
    first = np.array([lengths[user][0] for user in range(300)])
    assert np.array_equal(first, audience.counts)
    total = np.array([lengths[user][-1] for user in range(300)])
    assert (total <= audience.counts + outcomes.metrics["num_items"]).all()


def test_cold_items_can_be_shown_and_are_counted(world: World, audience: Audience, random_arm: Outcomes) -> None:
    assert 0.05 < random_arm.mean("cold_share") < 0.2  # a tenth of the items is cold
    cold = np.flatnonzero(world.items.arrival >= 6)
    only = run_policy(world, lambda requests: [cold[:5].tolist()] * requests.num_requests, audience, days=1)
    assert only.mean("cold_share") == 1
    assert np.isnan(only.metrics["returned_1"]).all()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [([1, 2, 3, 4, 999], "unknown"), ([1, 2, 3, 4, -7], "unknown"), ([1, 2, 3, 4, "v1"], "unknown"),
     ([1, 2, 2, 4, 5], "duplicate"), ([1, 2, 3, 4], "missing"), ([], "missing"), ([1, None, 2, 3, 4], "missing")],
)  # fmt: skip
def test_bad_slots_are_counted_and_cost_mood(world: World, audience: Audience, answer: list[Any], fault: str) -> None:
    good = run_policy(world, lambda requests: [[1, 2, 3, 4, 5]] * requests.num_requests, audience, days=2)
    bad = run_policy(world, lambda requests: [answer] * requests.num_requests, audience, days=2)
    assert bad.faults[fault] > 0
    assert sum(bad.faults[name] for name in FAULTS if name != fault) == 0
    assert bad.lost_share == 0
    assert bad.mean("num_items") < good.mean("num_items")


def test_answers_are_read_the_same_as_arrays_and_as_lists() -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-3, 14, (200, 6))
    from_array, faults = read_answer(array, 210, 5, 10)
    from_lists, same = read_answer(array.tolist(), 210, 5, 10)
    assert np.array_equal(from_array, from_lists)
    assert np.array_equal(faults, same)
    assert (faults[200:] == [0, 0, 5]).all()
    assert np.array_equal(faults.sum(axis=1), (from_array == -1).sum(axis=1))
    with pytest.raises(PolicyFailed, match="answered a int"):
        read_answer(3, 2, 5, 10)


def test_a_policy_that_raises_loses_its_batch_only(world: World, audience: Audience) -> None:
    def shaky(requests: Requests) -> Any:
        if 7 in requests.user_ids:
            raise RuntimeError("out of memory")
        return RandomPolicy(300)(requests)

    outcomes = run_policy(world, shaky, audience, days=2, batch_size=50)
    assert 0.1 < outcomes.lost_share < 0.5
    assert outcomes.problems == ("raised RuntimeError: out of memory",)
    assert outcomes.mean("num_items") > 1


@pytest.mark.parametrize("answer", [None, 5, "many", SystemExit("bye")])
def test_a_policy_without_a_usable_answer_loses_everybody(world: World, audience: Audience, answer: Any) -> None:
    def useless(requests: Requests) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    outcomes = run_policy(world, useless, audience, days=2)
    assert outcomes.lost_share == 1
    assert outcomes.mean("num_items") == 0
    assert outcomes.problems


def test_a_policy_that_hangs_ends_the_run_in_time(world: World, audience: Audience) -> None:
    release = threading.Event()

    def hanging(requests: Requests) -> Any:
        release.wait(600)

    begun = time.perf_counter()
    outcomes = run_policy(world, hanging, audience, days=3, timeout=0.3, batch_size=20)
    release.set()
    assert time.perf_counter() - begun < 300  # one call that is waited for lasts 600
    assert outcomes.lost_share == 1
    assert "no answer within 0.3 s" in outcomes.problems


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w, a: run_policy(w, RandomPolicy(300), a, days=0), "days = 0"),
        (lambda w, a: run_policy(w, RandomPolicy(300), a, days=1, batch_size=0), "batch_size = 0"),
        (lambda w, a: run_policy(w, RandomPolicy(300), a, days=1, timeout=0), "timeout = 0"),
        (lambda w, a: prepare(w, np.array([1, 1]), 2), "each once"),
        (lambda w, a: prepare(w, np.array([], dtype=int), 2), "each once"),
        (lambda w, a: prepare(w, np.arange(3), 0), "log_days = 0"),
        (lambda w, a: OraclePolicy("likes"), "goal 'likes'"),
        (lambda w, a: OraclePolicy(strength=2.0), "strength = 2"),
    ],
)
def test_impossible_tests_are_named(
    world: World, audience: Audience, call: Callable[[World, Audience], Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        call(world, audience)


def test_a_comparison_of_other_users_is_refused(world: World, audience: Audience, random_arm: Outcomes) -> None:
    other = run_policy(world, RandomPolicy(300), np.arange(300, 400), days=1, log_days=1)
    with pytest.raises(InputError, match="different users"):
        compare(random_arm, other)
    assert set(compare(random_arm, random_arm)) == set(METRICS)
