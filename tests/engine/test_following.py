"""Counts of the expert follow the store: as if everything had been counted at once, and the same after a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from sidera.catalog.catalog import Catalog
from sidera.engine.expert import FEATURES, Expert, ExpertConfig
from sidera.engine.following import FollowedExpert
from sidera.engine.histories import Behaviour, open_behaviour
from sidera.engine.recommender import Recommender
from sidera.engine.serving import Parts
from sidera.models import build_model, parse_model
from sidera.models.retrievers.pair_counts import KINDS, PairCounts
from sidera.serve.app import create_app

SECTION: dict[str, Any] = {"name": "sidera", "max_history": 8, "width": 16, "num_layers": 1, "num_heads": 1}
UNTIL = 1_000_000


@pytest.fixture(scope="module")
def catalog(trained_run: Path) -> Catalog:
    return Recommender.load(trained_run).catalog


def expert(catalog: Catalog, neighbours: int = 200) -> Expert:
    rng = np.random.default_rng(0)
    log = rng.integers(catalog.num_items, size=300), np.arange(0, 301, 10)
    weights = torch.rand(1, 1 + len(FEATURES), generator=torch.Generator().manual_seed(0))
    counts = PairCounts.of(*log, catalog.num_items, neighbours)
    config = ExpertConfig(neighbours=neighbours)
    return Expert(config, counts, torch.zeros(0, dtype=torch.int64), weights, "made", {"counted_until": UNTIL})


@pytest.fixture
def behaviour(catalog: Catalog, tmp_path: Path) -> Iterator[Behaviour]:
    with open_behaviour(tmp_path / "store", catalog) as opened:
        yield opened


def dense(counts: PairCounts, number: int) -> np.ndarray:
    whole = np.zeros((number, number, len(KINDS)))
    for left in range(counts.num_items):
        span = slice(int(counts.begins[left]), int(counts.ends[left]))
        whole[left, counts.right_ids[span].numpy()] = counts.counts[span].numpy()
    return whole


Log = dict[str, list[tuple[int, int]]]  # user -> (second, item) in order of arrival


def counted(events: Log, number: int) -> np.ndarray:
    ids = [[item for _, item in sorted(mine, key=lambda one: one[0])] for mine in events.values()]
    offsets = np.concatenate([[0], np.cumsum([len(mine) for mine in ids])])
    return dense(
        PairCounts.of(np.concatenate([np.array(mine, np.int64) for mine in ids]), offsets, number, number), number
    )


def test_counts_are_those_of_everything(catalog: Catalog, behaviour: Behaviour) -> None:
    """Several users, several events a call, late ones, and a reader that comes in the middle. Events that are as old as
    the log say what the new ones followed, and are not counted again."""
    rng, first, number = np.random.default_rng(1), expert(catalog), catalog.num_items
    events, old = Log(), Log()

    def append(user: str, items: list[int], times: list[int]) -> None:
        behaviour.append(user, [str(catalog.item_keys[item]) for item in items], times, {})
        events.setdefault(user, []).extend(sorted(zip(times, items, strict=True), key=lambda one: one[0]))

    for user in range(4):
        append(f"user {user}", rng.integers(number, size=30).tolist(), [UNTIL - 40 + place for place in range(30)])
    old = {user: list(mine) for user, mine in events.items()}
    before = dense(first.counts, number) - counted(old, number)
    readers = [FollowedExpert(first, behaviour, UNTIL)]
    for step in range(40):
        size = int(rng.integers(1, 6))
        times = (UNTIL + 1 + 20 * step + rng.permutation(60)[:size]).tolist()
        append(f"user {rng.integers(6)}", rng.integers(number, size=size).tolist(), times)
        if step % 3 == 0:
            np.testing.assert_allclose(
                dense(readers[0].now().counts, number), before + counted(events, number), atol=1e-3
            )
        if step == 20:
            readers.append(FollowedExpert(first, behaviour, UNTIL))
    readers.append(FollowedExpert(first, behaviour, UNTIL))
    for one in readers:
        now = one.now()
        assert now.followed_events == sum(map(len, events.values())) - sum(map(len, old.values()))
        assert int((now.counts.popularity - first.counts.popularity).sum()) == now.followed_events
        np.testing.assert_allclose(dense(now.counts, number), before + counted(events, number), atol=1e-3)


def test_pairs_are_bounded(catalog: Catalog, behaviour: Behaviour) -> None:
    first, rng = expert(catalog, neighbours=3), np.random.default_rng(0)
    live = FollowedExpert(first, behaviour, UNTIL)
    for step in range(200):
        item = str(catalog.item_keys[rng.integers(catalog.num_items)])
        behaviour.append("ann", [item], [UNTIL + 1 + step], {})
        counts = live.now().counts
        assert counts.num_unused <= len(counts.right_ids) // 2 + 1
    assert len(counts.right_ids) < 3 * catalog.num_items * catalog.num_items
    compact = counts.compacted(3)
    assert int((compact.ends - compact.begins).max()) <= 6
    assert compact.num_unused == 0
    assert torch.equal(compact.popularity, counts.popularity)


def test_the_next_answer_counts_an_event_and_says_so(catalog: Catalog, behaviour: Behaviour) -> None:
    model = build_model(*parse_model(SECTION), catalog, 1)
    step = FollowedExpert.of(expert(catalog), behaviour)
    assert isinstance(step, FollowedExpert)
    recommender = Recommender(model, catalog, model_section=SECTION, beam=8, parts=Parts((step,), behaviour))
    client, keys = TestClient(create_app(recommender)), [str(key) for key in catalog.item_keys]

    def ask() -> dict[str, Any]:
        return client.post("/v1/recommend", json={"history": [keys[1]], "k": 5}).json()

    before = ask()
    assert before["expert_version"] == "made+0"
    alone = Recommender(model, catalog, model_section=SECTION, beam=8, parts=Parts((expert(catalog),)))
    assert recommender.pipeline.asked(catalog.trie) == alone.pipeline.asked(catalog.trie), "it searches as the expert"
    (expected,) = alone.recommend([[keys[1]]], k=5)
    assert [one["item"] for one in before["items"]] == list(expected.item_keys)
    body = {"items": [keys[1], keys[7]], "times": [int(time.time()) - 9, int(time.time()) - 8]}
    for user in range(30):
        assert client.post("/v1/events", json={"user": f"u{user}", **body}).status_code == 200
        assert ask()["expert_version"] == f"made+{2 * user + 2}"
    after = ask()
    places = [[one["item"] for one in answer["items"]] for answer in (before, after)]
    scores = [{one["item"]: one["score"] for one in answer["items"]} for answer in (before, after)]
    assert keys[7] in places[1]
    assert scores[1] != scores[0]
    assert client.get("/healthz").json()["expert"] == {"version": "made+60", "problem": ""}
    recommender.use_catalog(catalog.without([keys[7]]))  # another catalogue: the same counts, and they go on
    assert ask()["expert_version"] == "made+60"
    client.post("/v1/events", json={"user": "later", **body})
    assert ask()["expert_version"] == "made+62"
    recommender.parts = replace(recommender.parts, steps=())
    assert ask()["expert_version"] is None


def test_a_store_that_does_not_answer_leaves_the_counts_as_they_were(
    catalog: Catalog, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = FollowedExpert(expert(catalog), behaviour, UNTIL)

    def gone(*_: object) -> None:
        raise OSError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(behaviour.store, "changes", gone)
        assert live.now().followed_events == 0
        assert live.problem == "the server is gone"
    behaviour.append("ann", [str(catalog.item_keys[1])], [UNTIL + 1], {})
    assert (live.now().followed_events, live.problem) == (1, "")


def test_a_log_without_seconds_is_not_followed(catalog: Catalog, behaviour: Behaviour) -> None:
    plain = replace(expert(catalog), info={})
    assert FollowedExpert.of(plain, behaviour) is plain
    assert isinstance(FollowedExpert.of(expert(catalog), None), Expert)
