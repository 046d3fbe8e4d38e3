"""What every entry of MODELS promises, on the checkerboard: it learns, answers legally, and is saved whole."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkerboard_world import (
    ALL,
    GENERATORS,
    batch_of,
    batches,
    build,
    foreign_catalog,
    recommender,
    section,
    trained,
    world,
)

from sidera.core import CatalogMismatch, Request
from sidera.engine.questions import Questions
from sidera.engine.recommender import Recommender
from sidera.fit import FitConfig, tuning
from sidera.fit.protocols import model_loss
from sidera.fit.state import Clock, TrainState
from sidera.fit.tuning import Steps, settle
from sidera.models import MODELS, build_model, parse_model
from sidera.ops.threads import num_threads
from sidera.roles import Generator, Scorer

NUM_ITEMS = 24
# On the checkerboard the right answer depends on the last item alone; to these the order of a history says nothing.
LEARNERS = [name for name in ALL if name not in ("popularity", "content_knn", "als", "bpr")]
TAKE_STEPS = [name for name in ALL if batches(name, build(name)) is not None]


@pytest.mark.parametrize("name", ALL)
def test_it_plays_a_role(name: str) -> None:
    model = build(name)
    assert isinstance(model, Generator) == (model.role == "generator")
    assert isinstance(model, Scorer) == (model.role == "scorer")
    assert model.config == type(model.config)(**model.config.__dict__)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_first_answer_is_the_right_one(name: str) -> None:
    batch, targets = world().questions()
    ranked = trained(name).recommender.rank(batch, 1)
    assert (ranked.item_ids[:, 0].numpy() == targets).mean() > 0.9  # chance: one of 24


def test_popularity_counts_training_events_only() -> None:
    ranked = trained("popularity").recommender.rank(batch_of([[0]]), NUM_ITEMS)
    popularity = world().catalog.popularity
    assert np.asarray(popularity).sum() == world().split.train_ends.sum() - world().dataset.offsets[:-1].sum()
    np.testing.assert_array_equal(ranked.scores[0].numpy(), np.sort(popularity)[::-1])


def test_who_takes_no_steps_is_fitted_once_and_pretends_no_loss() -> None:
    assert len(TAKE_STEPS) >= 6
    for name in ALL:
        assert (name in TAKE_STEPS) == hasattr(MODELS[name], "loss"), name
        assert hasattr(MODELS[name], "loss") or hasattr(MODELS[name], "fit_once"), name


@pytest.mark.parametrize("name", TAKE_STEPS)
def test_loss_is_finite_and_falls(name: str) -> None:
    losses = trained(name).losses
    assert all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


@pytest.mark.parametrize("name", TAKE_STEPS)
def test_loss_is_a_sum_over_targets(name: str) -> None:
    """Two halves of a batch add up to the whole: what gradient accumulation and DDP stand on."""
    model = build(name).eval()
    batch = next(batches(name, model, batch_size=8).batches(0))
    middle = batch.num_histories // 2
    first, second = batch.cut(0, middle), batch.cut(middle, batch.num_histories)
    whole, parts = model.loss(batch), [model.loss(first), model.loss(second)]
    assert whole.count == sum(part.count for part in parts) == batch.target_ids.numel()
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ALL if batches(name, build(name)) is not None])
def test_timing_its_steps_leaves_it_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are found on a copy: weights, buffers (experts that are balanced) and mode stay as they were."""
    monkeypatch.setattr(tuning, "usable_threads", lambda: 2)
    model = build(name).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    source = batches(name, model, batch_size=8)
    config, state = FitConfig(precision="f32"), TrainState()
    with num_threads(0):
        settle(Steps(model, model_loss, source, 2), config, state, Clock(), torch.device("cpu"))
    assert state.num_threads in (1, 2)
    assert not model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("k", [1, 10, NUM_ITEMS, 1000])
def test_answers_are_real_items_once_each(name: str, k: int) -> None:
    (answer,) = trained(name).recommender.recommend([["item0003", "item0007"]], k, filter_seen=False)
    assert len(answer.item_keys) == len(set(answer.item_keys)) == min(k, NUM_ITEMS)
    assert set(answer.item_keys) <= set(world().catalog.item_keys.tolist())
    assert list(answer.scores) == sorted(answer.scores, reverse=True)
    assert all(math.isfinite(score) for score in answer.scores)


@pytest.mark.parametrize("name", ALL)
def test_rank_pads_what_does_not_exist(name: str) -> None:
    ranked = trained(name).recommender.rank(batch_of([[1, 5], [2]]), NUM_ITEMS + 6)
    assert ranked.item_ids.shape == ranked.scores.shape == (2, NUM_ITEMS + 6)
    assert (ranked.item_ids[:, NUM_ITEMS:] == -1).all()
    assert (ranked.scores[:, NUM_ITEMS:] == -math.inf).all()
    assert ranked.item_ids[:, :NUM_ITEMS].sort(1).values.tolist() == [list(range(NUM_ITEMS))] * 2


@pytest.mark.parametrize("name", ALL)
def test_removed_items_are_never_answered(name: str) -> None:
    right = world().catalog.item_keys[world().following[7]]
    catalog = world().catalog.without([str(right), "item0000"])
    asked = recommender(name, trained(name).model, catalog)
    (answer,) = asked.recommend([["item0003", "item0007"]], NUM_ITEMS, filter_seen=False)
    assert len(answer.item_keys) == NUM_ITEMS - 2
    assert not {str(right), "item0000"} & set(answer.item_keys)
    assert answer.items_version == world().catalog.items_version + 1


@pytest.mark.parametrize("name", ALL)
def test_excluded_and_seen_items_are_never_answered(name: str) -> None:
    request = Request(("item0003", "item0007"), k=NUM_ITEMS, filter_seen=True, exclude=("item0001", "item0011"))
    (answer,) = trained(name).recommender.recommend([request])
    banned = {"item0003", "item0007", "item0001", "item0011"}
    assert set(answer.item_keys) == set(world().catalog.item_keys.tolist()) - banned


@pytest.mark.parametrize("name", ALL)
def test_a_batch_answers_as_one_by_one(name: str) -> None:
    asked = trained(name).recommender
    requests = [
        Request(("item0003", "item0007"), k=5),
        Request(("item0001",), k=NUM_ITEMS),  # more than the beam of 10: must not widen its neighbours'
        Request(tuple(f"item{item:04d}" for item in (0, 4, 8, 12, 16, 20, 0, 4, 8, 12)), k=3, filter_seen=True),
        Request((), k=4),
        Request(("item0002", "item0009"), k=1, exclude=("item0013",)),
    ]
    together = asked.recommend(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = asked.recommend([request])
        assert alone.item_keys == answer.item_keys
        np.testing.assert_allclose(alone.scores, answer.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_two_runs_are_identical(name: str) -> None:
    histories = [["item0003", "item0007"], ["item0001"]]
    assert trained(name).recommender.recommend(histories) == trained(name).recommender.recommend(histories)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_the_weights(name: str) -> None:
    first, again, other = (build(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    if batches(name, build(name)) is not None:
        assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_answers_alike(name: str, tmp_path: Path) -> None:
    asked = trained(name).recommender
    world().catalog.save(tmp_path / "catalog")
    asked.save_model(tmp_path / "model", digest="d", parents={})
    loaded = Recommender.load(tmp_path, beam=asked.beam)
    histories = [["item0003", "item0007"], ["item0001"], []]
    found = loaded.recommend(histories, 10)
    assert {answer.policy_version for answer in found} == {"d"}  # what was saved has a name, these weights have none
    assert [replace(answer, policy_version=asked.version) for answer in found] == asked.recommend(histories, 10)
    assert loaded.model.config == asked.model.config


@pytest.mark.parametrize("name", ALL)
def test_a_foreign_catalog_is_refused(name: str, tmp_path: Path) -> None:
    foreign = foreign_catalog()
    world().catalog.save(tmp_path / "catalog")
    trained(name).recommender.save_model(tmp_path / "model", digest="d", parents={})
    both = f"{world().catalog.codebook_id}.*{foreign.codebook_id}"
    with pytest.raises(CatalogMismatch, match=both):
        Recommender.load(tmp_path, catalog=foreign)
    if name in GENERATORS:
        with pytest.raises(CatalogMismatch, match=both):
            recommender(name, trained(name).model, foreign)


@pytest.mark.parametrize("name", ALL)
def test_training_in_between_does_not_leave_stale_answers(name: str) -> None:
    """Answers follow the weights: nothing computed for an older state of them may survive a step."""
    model = build(name)
    asked = recommender(name, model)
    history = [["item0003", "item0007"]]
    before = asked.recommend(history, NUM_ITEMS)[0]
    asked.model.train()
    assert asked.recommend(history, NUM_ITEMS)[0] == before  # answers are always given in eval mode
    model.load_state_dict(trained(name).model.state_dict())
    model.train()
    assert asked.recommend(history, NUM_ITEMS)[0] == trained(name).recommender.recommend(history, NUM_ITEMS)[0]


@pytest.mark.parametrize("name", ALL)
def test_only_the_newest_events_are_read(name: str) -> None:
    asked = trained(name).recommender
    tail = [f"item{item:04d}" for item in (np.arange(asked.reads.max_events) * 4) % NUM_ITEMS]
    old = [f"item{item:04d}" for item in (1, 2, 3, 5, 6, 7)]
    one, other = (asked.recommend([history], filter_seen=False)[0] for history in (old + tail, tail))
    assert one.item_keys == other.item_keys


@pytest.mark.parametrize("name", [name for name in ALL if name != "onerec_v1"])  # it scores lists as a whole
def test_a_given_item_has_the_score_that_a_search_gives_it(name: str) -> None:
    asked, history = trained(name).recommender, ["item0003", "item0007"]
    (answer,) = asked.recommend([history], 6, filter_seen=False)
    scored = Questions(asked).score(history, answer.item_keys[::-1])
    assert [one.item for one in scored] == list(answer.item_keys[::-1])
    np.testing.assert_allclose([one.score for one in scored], answer.scores[::-1], atol=1e-4)


def test_a_score_has_the_normaliser_of_the_search() -> None:
    """Over all tokens of a vocabulary, and with items that came later, whose codes take a share of what others had."""
    config = parse_model({**section("tiger"), "normalize": "vocabulary"})
    asked = Recommender(build_model(*config, world().catalog, 0).eval(), world().catalog, model_section={}, beam=40)
    history = ["item0003", "item0007"]
    vectors = torch.randn(3, asked.catalog.quantizer.dim, generator=torch.Generator().manual_seed(0))
    for catalog in (asked.catalog, asked.catalog.with_items(["late0", "late1", "late2"], vectors)):
        asked.use_catalog(catalog)
        (answer,) = asked.recommend([history], catalog.num_items, filter_seen=False)
        scored = Questions(asked).score(history, answer.item_keys)
        np.testing.assert_allclose([one.score for one in scored], answer.scores, atol=1e-4)
        assert sum(np.exp(answer.scores)) < 0.99  # the rest is of tokens that stand for no code of the level
