"""A recommender in the app reads what it was trained and evaluated on, and shows nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidera.catalog.build import build_catalog
from sidera.catalog.config import CatalogConfig
from sidera.core import InputError
from sidera.data.config import DataConfig, View, load_dataset, make_views
from sidera.engine.recommender import Recommender
from sidera.lab.brackets import RandomPolicy
from sidera.lab.policy import Requests
from sidera.lab.recommender_policy import RecommenderPolicy, to_batch
from sidera.lab.trial import prepare, run_policy
from sidera.models import build_model, parse_model
from sidera.models.retrievers.item_knn import ItemKNN
from sidera.sim.simulate import simulate
from sidera.sim.world import World
from small_world import small_config

DAYS, USERS = 5, 300
SECTIONS: dict[str, dict[str, Any]] = {
    "item_knn": {"name": "item_knn", "half_life": 20.0, "max_history": 50},
    "onerec_v2": {"name": "onerec_v2", "max_history": 16, "short_term": 8, "width": 16, "num_layers": 2, "num_heads": 2,
                  "num_kv_groups": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return World.build(small_config(), seed=3)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory, world: World) -> tuple[View, View]:
    folder: Path = tmp_path_factory.mktemp("policy") / "log"
    simulate(world.config, USERS, DAYS, folder, seed=world.seed)
    return make_views(load_dataset(folder), DataConfig(positive="long_view"))


@pytest.fixture(scope="module")
def recommenders(views: tuple[View, View]) -> dict[str, Recommender]:
    kept = views[1]
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 2, "codebook_size": 16}, vector_dim=8)
    catalog, _ = build_catalog(kept.dataset, kept.split, config, kept.schema)
    found = {}
    for name, section in SECTIONS.items():
        model = build_model(*parse_model(section), catalog)
        if isinstance(model, ItemKNN):
            model.count(kept.dataset.item_ids, kept.dataset.offsets)
        found[name] = Recommender(model, catalog, model_section=section)
    return found


def asked(world: World, num_users: int = USERS) -> Requests:
    """The first request of the test: histories are the log, no more and no less."""
    kept: list[Requests] = []

    def keeping(requests: Requests) -> np.ndarray:
        kept.append(requests)
        return RandomPolicy(300)(requests)

    run_policy(world, keeping, prepare(world, np.arange(num_users), DAYS), days=1, batch_size=num_users)
    return kept[0]


def test_positives_are_those_that_training_sees(
    world: World, views: tuple[View, View], recommenders: dict[str, Recommender]
) -> None:
    dataset = views[1].dataset
    requests = asked(world)
    batch = to_batch(requests, recommenders["item_knn"])
    places = {str(key): user for user, key in enumerate(dataset.user_keys)}
    for row, user in enumerate(requests.user_ids.tolist()):
        part = slice(int(batch.events.offsets[row]), int(batch.events.offsets[row + 1]))
        place = places.get(f"u{user:08d}")
        logged = [] if place is None else dataset.item_ids[dataset.offsets[place] : dataset.offsets[place + 1]].tolist()
        assert batch.item_ids[part].tolist() == logged
    assert batch.item_ids.numel() > 2000


def test_feedback_profiles_and_times_are_those_that_training_sees(
    world: World, views: tuple[View, View], recommenders: dict[str, Recommender]
) -> None:
    view = views[0]
    reading = recommenders["onerec_v2"].reading.over(view.dataset)
    requests = asked(world)
    batch = to_batch(requests, recommenders["onerec_v2"])
    rows_of = {str(key): row for row, key in enumerate(view.dataset.user_keys[:-1])}  # the last one's log has no next
    pairs = [(row, rows_of.get(f"u{user:08d}", -1)) for row, user in enumerate(requests.user_ids.tolist())]
    rows, users = np.array([pair for pair in pairs if pair[1] >= 0]).T
    asking, logged = batch.rows(torch.from_numpy(rows)), reading.rows(users, view.dataset.offsets[users + 1])
    assert len(rows) > 200
    assert asking.item_ids.tolist() == logged.item_ids.tolist()
    assert asking.events.times is not None
    assert logged.events.times is not None
    assert asking.events.times.tolist() == logged.events.times.tolist()
    assert set(batch.events.feedback) == set(view.schema.columns)
    for name, values in logged.events.feedback.items():
        assert torch.equal(asking.events.feedback[name], values), name
    for name, values in logged.requests.features.items():
        assert torch.equal(asking.requests.features[name], values), name
    assert set(batch.requests.features) == {"age_group", "region", "device"}


@pytest.mark.parametrize("name", list(SECTIONS))
def test_nothing_is_shown_twice_and_no_slot_stays_empty(
    name: str, world: World, recommenders: dict[str, Recommender]
) -> None:
    policy = RecommenderPolicy(recommenders[name], world)

    def watching(requests: Requests) -> np.ndarray:
        answer = policy(requests)
        for row in range(requests.num_requests):
            shown = requests.item_ids[requests.offsets[row] : requests.offsets[row + 1]]
            assert not np.isin(answer[row], shown).any()
        return answer

    audience = prepare(world, np.arange(60), DAYS)
    outcomes = run_policy(world, watching, audience, days=2, batch_size=25)
    assert outcomes.problems == ()
    assert sum(outcomes.faults.values()) == 0
    again = run_policy(world, policy, audience, days=2, batch_size=60)
    assert np.allclose(again.metrics["utility"], outcomes.metrics["utility"])


def test_users_without_a_readable_history_get_the_most_popular(
    world: World, recommenders: dict[str, Recommender]
) -> None:
    recommender = recommenders["item_knn"]
    policy = RecommenderPolicy(recommender, world)
    requests = asked(world, 40)
    mute = {name: np.zeros_like(values) for name, values in requests.feedback.items()}
    mute["duration"] = requests.feedback["duration"]
    nothing = Requests(**{**requests.__dict__, "feedback": mute})  # all was skipped: no positive at all
    popular = recommender.catalog.serving_order
    for row, items in enumerate(policy(nothing).tolist()):
        shown = requests.item_ids[requests.offsets[row] : requests.offsets[row + 1]]
        assert items == [item for item in popular.tolist() if item not in shown][:5]
    half = {name: values.copy() for name, values in mute.items()}  # the first user alone likes
    first = slice(0, int(requests.offsets[1]))
    half["watch_time"][first] = half["duration"][first]
    mixed, whole = policy(Requests(**{**requests.__dict__, "feedback": half})), policy(nothing)
    assert not np.array_equal(mixed[0], whole[0])
    assert np.array_equal(mixed[1:], whole[1:])


def test_another_worlds_run_is_refused(world: World, recommenders: dict[str, Recommender]) -> None:
    with pytest.raises(InputError, match="another title in this world: it is of another seed"):
        RecommenderPolicy(recommenders["item_knn"], World.build(small_config(), seed=4))
    with pytest.raises(InputError, match="not the 310 of this world"):
        RecommenderPolicy(recommenders["item_knn"], World.build(small_config(num_items=310), seed=3))
