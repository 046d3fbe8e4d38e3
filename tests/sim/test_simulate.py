"""The log: loads as a data set, is the same however it was cut, holds no truth, and has the biases it should have."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.core import InputError
from sidera.data import writer
from sidera.data.config import load_dataset
from sidera.lab.trial import prepare
from sidera.sim.logging_policy import Logger
from sidera.sim.randomness import sub_keys
from sidera.sim.simulate import FEEDBACK, simulate
from sidera.sim.users import day_keys
from small_world import logged, small_config, small_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sim") / "log"
    simulate(small_config(), users=600, days=6, out=out)
    return out


def digests(out: Path) -> list[str]:
    return [
        hashlib.sha256((out / f"{n}.parquet").read_bytes()).hexdigest()
        for n in ("events", "items", "users", "searches")
    ]


def test_the_log_loads_with_its_digest_and_is_in_order(folder: Path) -> None:
    dataset = load_dataset(folder)  # checks the digest that was computed while streaming
    assert (dataset.num_users, dataset.num_items) == (600, 300)
    assert set(dataset.feedback) == set(FEEDBACK)
    assert dataset.item_keys[7] == "v0000007"
    assert (np.diff(dataset.offsets) > 0).all()
    steps = np.diff(dataset.times)
    assert (steps[np.diff(dataset.event_users) == 0] >= 0).all()
    assert 0.2 < dataset.feedback["click"].mean() < 0.8
    glance = dataset.feedback["watch_time"][~dataset.feedback["click"]]
    assert 0 < glance.max() <= 2
    assert (dataset.feedback["watch_time"] <= dataset.feedback["duration"]).all()
    assert not (dataset.feedback["like"] & ~dataset.feedback["click"]).any()


def test_nothing_of_the_truth_is_written(folder: Path) -> None:
    columns = {n: set(pq.read_schema(folder / f"{n}.parquet").names) for n in ("events", "items", "users", "searches")}
    hidden = {"quality", "clickbait", "popularity", "satisfaction", "utility", "taste", "patience", "activity", "mood"}
    assert not hidden & set.union(*columns.values())
    assert {"title", "tags", "asr", "ocr", "text", "creator", "duration"} <= columns["items"]


def test_the_same_seed_gives_the_same_files_however_users_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ROW_GROUP", 500)  # blocks straddle row groups
    for block in (100, 7, 64):
        simulate(small_config(), users=100, days=3, out=tmp_path / str(block), block=block)
    assert digests(tmp_path / "7") == digests(tmp_path / "100") == digests(tmp_path / "64")
    simulate(small_config(), users=100, days=3, out=tmp_path / "other", seed=1)
    assert digests(tmp_path / "other") != digests(tmp_path / "7")


def test_a_block_in_which_nobody_comes_is_logged_as_empty(tmp_path: Path) -> None:
    """User 0 joins later than on the first day."""
    late = int(np.flatnonzero(small_world().users(np.arange(50)).join_day > 0)[0])
    counts = simulate(small_config(), users=late + 1, days=1, out=tmp_path / "one", block=1)
    dataset = load_dataset(tmp_path / "one")
    assert dataset.num_events == counts["num_events"]
    assert dataset.offsets[late] == dataset.offsets[late + 1]
    assert prepare(small_world(), np.array([late]), 1).counts.tolist() == [0]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True), st.integers(0, 29))
def test_a_user_lives_the_same_life_in_any_company(ids: list[int], pick: int) -> None:
    world = small_world()
    chosen = ids[pick % len(ids)]
    together, alone = prepare(world, np.array(ids), 3), prepare(world, np.array([chosen]), 3)
    place = ids.index(chosen)
    assert together.counts[place] == alone.counts[0]
    for name, values in alone.events.items():
        number = alone.counts[0]
        assert np.array_equal(together.events[name][place, :number], values[0, :number])


def test_the_log_is_frozen_to_the_bit(folder: Path) -> None:
    """On any machine; only the numbers count, not how Parquet packs them."""
    assert load_dataset(folder).digest == "4350993ec2cb5ae0"


def test_popularity_bias_few_items_take_most_of_the_log(folder: Path) -> None:
    dataset = load_dataset(folder)
    uniform = dataset.feedback["uniform"]
    tenth = {}
    for name, mask in (("logger", ~uniform), ("uniform", uniform)):
        counts = np.sort(np.bincount(dataset.item_ids[mask], minlength=300))[::-1]
        tenth[name] = counts[:30].sum() / counts.sum()
    assert tenth["logger"] > 1.5 * tenth["uniform"]
    world = small_world()
    clickbait = world.items.clickbait[dataset.item_ids]
    assert clickbait[~uniform].mean() > clickbait[uniform].mean() + 0.1


def test_duration_bias_longer_items_are_watched_longer_and_to_a_smaller_share(folder: Path) -> None:
    feedback = load_dataset(folder).feedback
    click, duration, watched = feedback["click"], feedback["duration"], feedback["watch_time"]
    short, long = click & (duration < 20), click & (duration > 60)
    assert watched[long].mean() > 1.5 * watched[short].mean()
    assert (watched / duration)[long].mean() < 0.8 * (watched / duration)[short].mean()


def test_cold_items_are_in_the_catalogue_and_never_in_the_log(folder: Path) -> None:
    dataset, world = load_dataset(folder), small_world()
    cold = np.flatnonzero(world.items.arrival >= 6)
    assert len(cold) == 30
    assert not np.isin(dataset.item_ids, cold).any()
    assert dataset.items["created"].null_count == 30
    arrival = world.items.arrival[dataset.item_ids]
    days = (dataset.times - dataset.times.min() // 86400 * 86400) // 86400
    assert (arrival <= days).all()


def test_satiation_one_topic_again_and_again_loses_its_pull() -> None:
    world = small_world(drift_gain=0.0)
    log = logged(prepare(world, np.arange(800), 4))
    topic = world.items.topic[log["item"]]
    # share of the last five items of the same user that were of the same topic
    same = sum(
        np.concatenate([np.zeros(lag), (topic[lag:] == topic[:-lag]) & (log["row"][lag:] == log["row"][:-lag])])
        for lag in range(1, 6)
    )
    liked = world.users(np.arange(800)).taste[log["row"], topic] > 0
    fresh, sated = log["click"][liked & (same == 0)].mean(), log["click"][liked & (same >= 3)].mean()
    assert sated < fresh - 0.03


def test_uniform_slots_are_uniform_and_slates_hold_no_item_twice() -> None:
    world = small_world()
    users = world.users(np.arange(4000))
    logger = Logger(world, 0)
    slate = logger.slate(users, np.arange(4000), sub_keys(day_keys(users, 0, 0), 0))
    assert (np.diff(np.sort(slate.item_ids, axis=1), axis=1) > 0).all()
    assert abs(slate.uniform_mask.mean() - world.config.uniform_share) < 0.01
    assert np.allclose(slate.propensity[slate.uniform_mask], 1 / len(logger.alive))
    counts = np.bincount(slate.item_ids[slate.uniform_mask], minlength=300)[logger.alive]
    expected = counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * np.sqrt(2 * len(counts))


def test_propensities_undo_the_loggers_choice() -> None:
    """Weighted by 1 / propensity, first slots show every alive item alike: their means become the catalogue's."""
    world = small_world(uniform_share=0.0, taste_weight=0.5)
    users = world.users(np.arange(40_000))
    logger = Logger(world, 0)
    slate = logger.slate(users, np.arange(40_000), sub_keys(day_keys(users, 0, 0), 0))
    first, weight = slate.item_ids[:, 0], 1 / slate.propensity[:, 0].astype(np.float64) / len(logger.alive)
    assert abs(weight.mean() - 1) < 0.03
    for truth in (world.items.popularity, world.items.clickbait, world.items.quality):
        target, shown = truth[logger.alive].mean(), truth[first].mean()
        assert abs((weight * truth[first]).mean() - target) < 0.05
    assert shown > target


@pytest.mark.parametrize(("users", "days", "name"), [(0, 1, "users"), (5, 0, "days"), (-3, 1, "users")])
def test_impossible_counts_are_named(tmp_path: Path, users: int, days: int, name: str) -> None:
    with pytest.raises(InputError, match=name):
        simulate(small_config(), users=users, days=days, out=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_foreign_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="would be replaced"):
        simulate(small_config(), users=3, days=1, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
