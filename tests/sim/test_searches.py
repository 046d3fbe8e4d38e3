"""Searches: partly of the user's taste, in the items' words, equal under every policy; they pull what follows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sidera.lab.brackets import RandomPolicy
from sidera.lab.policy import Requests
from sidera.lab.trial import prepare, run_policy
from sidera.sim.randomness import keys
from sidera.sim.searches import NUM_FORMS, query_texts, search
from sidera.sim.simulate import simulate
from sidera.sim.text import topic_names
from small_world import logged, small_config, small_world


def searching(config_changes: dict[str, float], num_users: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S,) users' taste for the topic they search, the topic, and drift left in it, where everybody searches."""
    world = small_world(search_share=1.0, **config_changes)
    users = world.users(np.arange(num_users))
    places, codes = search(users, np.arange(num_users), keys(5, "test", np.arange(num_users)), world.config)
    assert len(places) == num_users
    topics = codes // NUM_FORMS // world.config.num_subtopics
    return users.taste[places, topics], topics, users.drift


def test_whims_do_not_follow_taste_and_the_rest_do() -> None:
    liked, topics, drift = searching({"search_whim": 0.0})
    any_topic, even, _ = searching({"search_whim": 1.0})
    mean = small_world().users(np.arange(4000)).taste.mean()
    assert liked.mean() > mean + 0.4
    assert abs(any_topic.mean() - mean) < 0.08
    assert np.abs(np.bincount(even, minlength=8) / 500 - 1).max() < 0.2
    assert np.allclose(drift[np.arange(4000), topics], small_config().search_pull)
    assert np.allclose(drift.sum(axis=1), small_config().search_pull)


def test_queries_speak_the_words_of_the_items() -> None:
    config = small_config()
    topics, below_each = topic_names(config)
    codes = np.arange(config.num_topics * config.num_subtopics * NUM_FORMS)
    texts = query_texts(codes, config)
    assert len(texts) == len(codes)
    for code, text in zip(codes.tolist(), texts, strict=True):
        topic, number = divmod(code // NUM_FORMS, config.num_subtopics)
        assert topics[topic] in text or below_each[topic][number] in text


def test_the_log_of_searches_is_frozen_in_order_and_at_requests(tmp_path: Path) -> None:
    counts = simulate(small_config(), users=300, days=5, out=tmp_path / "log")
    table = pq.read_table(tmp_path / "log" / "searches.parquet")
    assert table.column_names == ["user", "time", "query"]
    assert table.num_rows == counts["num_searches"]
    columns = table.to_pydict()
    assert sorted(zip(columns["user"], columns["time"], strict=True)) == list(
        zip(columns["user"], columns["time"], strict=True)
    )
    events = pq.read_table(tmp_path / "log" / "events.parquet", columns=["user", "time", "slot", "request"]).to_pydict()
    begun = {(u, t) for u, t, slot in zip(events["user"], events["time"], events["slot"], strict=True) if slot == 0}
    assert set(zip(columns["user"], columns["time"], strict=True)) <= begun
    num_requests = len(set(zip(events["user"], events["request"], strict=True)))
    assert abs(table.num_rows / num_requests - small_config().search_share) < 0.01
    lines = "\n".join(f"{u} {t} {q}" for u, t, q in zip(*columns.values(), strict=True))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "4b3b7cfe1b4cc09f"


def test_what_is_searched_is_clicked_more_afterwards() -> None:
    world = small_world(search_share=0.3, search_whim=1.0, search_pull=2.5)
    still = small_world(search_share=0.3, search_whim=1.0, search_pull=0.0)
    shares = []
    for played in (world, still):
        audience = prepare(played, np.arange(1500), 3)
        log = logged(audience)
        rows = log["row"]
        offsets, times, codes = audience.searches.of(np.arange(1500))
        owners = np.repeat(np.arange(1500), np.diff(offsets))
        at = dict(zip(zip(owners.tolist(), times.tolist(), strict=True), codes.tolist(), strict=True))
        wanted = np.array([at.get(key, -1) for key in zip(rows.tolist(), log["time"].tolist(), strict=True)])
        topic = played.items.topic[log["item"]]
        about = (wanted >= 0) & (wanted // NUM_FORMS // played.config.num_subtopics == topic)
        assert about.sum() > 100
        shares.append(log["click"][about].mean())
    assert shares[0] > shares[1] + 0.1


def test_policies_see_the_same_searches_and_none_of_the_future() -> None:
    world = small_world(search_share=0.5)
    audience = prepare(world, np.arange(60), 3)
    first: dict[int, list[str]] = {}

    def watching(requests: Requests) -> np.ndarray:
        for place, user in enumerate(requests.user_ids.tolist()):
            part = slice(int(requests.query_offsets[place]), int(requests.query_offsets[place + 1]))
            assert (requests.query_times[part] <= requests.as_of[place]).all()
            first.setdefault(user, requests.queries[part].tolist())
        return RandomPolicy(300)(requests)

    run_policy(world, watching, audience, days=1)
    seen = dict(first)
    first.clear()
    run_policy(world, lambda requests: watching(requests)[:, ::-1], audience, days=1, batch_size=7)
    assert seen == first
    assert any(first.values())
