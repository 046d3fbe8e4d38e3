"""Rollouts through the engine and weights swapped under running answers."""

from __future__ import annotations

import threading
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from hand_made import hand_made
from sidera.batch import Batch
from sidera.core import InputError
from sidera.data.tiny import checkerboard_next
from sidera.engine.recommender import Recommender
from sidera.models import build_model, parse_model

KEYS = [f"item{item:04d}" for item in range(24)]


def asked(recommender: Recommender) -> Batch:
    return hand_made(torch.tensor([3, 7, 2]), torch.tensor([0, 2, 3]), items=recommender.catalog)


@pytest.fixture
def recommender(trained_run: Path) -> Recommender:
    return Recommender.load(trained_run)


def shuffled(recommender: Recommender) -> dict[str, torch.Tensor]:
    """The weights of a model whose leaf biases like other items."""
    state = {name: tensor.clone() for name, tensor in recommender.model.state_dict().items()}
    name = max(name for name in state if name.startswith("bias"))
    state[name] += 50 * torch.randn(state[name].shape, generator=torch.Generator().manual_seed(0))
    return state


@pytest.mark.parametrize("mode", ["masked", "free", "beam"])
def test_a_rollout_says_what_was_written_and_by_whom(recommender: Recommender, mode: str) -> None:
    rollout = recommender.rollout(asked(recommender), 20, mode=mode, seed=5)
    assert rollout.sids.shape == (2, 20, recommender.catalog.num_levels)
    assert rollout.log_probs.requires_grad is False
    assert rollout.policy_version == recommender.version != ""
    assert (rollout.mode, rollout.items_version) == (mode, recommender.catalog.items_version)
    assert rollout.legal_mask.all()
    codes = torch.tensor(np.asarray(recommender.catalog.codes)).long()
    assert torch.equal(codes[rollout.item_ids], rollout.sids)
    again = recommender.sid_log_probs(asked(recommender), rollout.sids, mode=mode)
    torch.testing.assert_close(again, rollout.log_probs, rtol=1e-4, atol=1e-4)
    favourite = rollout.item_ids[0, 0] if mode == "beam" else rollout.item_ids[0].mode().values
    assert int(favourite) == checkerboard_next()[7]
    assert torch.equal(rollout.sids, recommender.rollout(asked(recommender), 20, mode=mode, seed=5).sids)
    (rollout.log_probs * torch.ones(1, requires_grad=True)).sum().backward()  # no inference tensor


def test_another_seed_is_another_draw(recommender: Recommender) -> None:
    draws = [recommender.rollout(asked(recommender), 50, temperature=3.0, seed=seed).item_ids for seed in (0, 1)]
    assert not torch.equal(*draws)


def test_a_beam_of_all_items_has_probability_one(recommender: Recommender) -> None:
    rollout = recommender.rollout(asked(recommender), 30, mode="beam")
    assert rollout.legal_mask.sum(1).tolist() == [24, 24]
    torch.testing.assert_close(rollout.log_probs.sum(-1).exp().sum(1), torch.ones(2), rtol=1e-4, atol=1e-4)


def test_a_rollout_of_others_is_refused_naming_both(recommender: Recommender) -> None:
    rollout = recommender.rollout(asked(recommender), 4)
    catalog = recommender.catalog
    rollout.check(recommender.version, catalog.codebook_id, catalog.items_version)
    with pytest.raises(InputError, match=f"the rollout is of policy {recommender.version}, the update is of policy 7"):
        rollout.check("7", catalog.codebook_id, catalog.items_version)
    with pytest.raises(InputError, match=r"is of codebook .*, the update is of codebook other"):
        rollout.check(recommender.version, "other", catalog.items_version)
    with pytest.raises(InputError, match="the rollout is of items_version 1, the update is of items_version 3"):
        rollout.check(recommender.version, catalog.codebook_id, 3)


def test_a_scorer_and_too_many_are_refused(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="a rollout of 513 semantic IDs; allowed: 1 to 512"):
        recommender.rollout(asked(recommender), 513)
    scorer = build_model("popularity", *parse_model({"name": "popularity"})[1:], recommender.catalog)
    with pytest.raises(InputError, match="a scorer generates nothing"):
        Recommender(scorer, recommender.catalog, model_section={"name": "popularity"}).rollout(asked(recommender), 4)


def test_new_weights_answer_at_once_and_sign(recommender: Recommender) -> None:
    old = {name: tensor.clone() for name, tensor in recommender.model.state_dict().items()}
    before = recommender.recommend([[KEYS[3]]])[0]
    new = shuffled(recommender)
    recommender.load_weights(new, "step-10")
    after = recommender.recommend([[KEYS[3]]])[0]
    assert (before.policy_version, after.policy_version) != ("step-10", before.policy_version)
    assert after.policy_version == "step-10"
    assert after.item_keys != before.item_keys
    assert recommender.rollout(asked(recommender), 2).policy_version == "step-10"
    recommender.load_weights(old, "back")
    assert recommender.recommend([[KEYS[3]]])[0].item_keys == before.item_keys


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "nan"])
def test_unfit_weights_leave_the_old_ones_answering(recommender: Recommender, damage: str) -> None:
    before = recommender.recommend([[KEYS[3]]])[0]
    state = shuffled(recommender)
    first = min(state)
    if damage == "missing":
        del state[first]
    elif damage == "unknown":
        state["zzz"] = torch.zeros(1)
    elif damage == "shape":
        state[first] = torch.zeros(1, 2, 3)
    else:
        state[first] = torch.full_like(state[first], float("nan"))
    text = {"missing": "lack", "unknown": "have unknown 'zzz'", "shape": r"of shape \(1, 2, 3\)", "nan": "not finite"}
    with pytest.raises(InputError, match=text[damage]):
        recommender.load_weights(state, "bad")
    after = recommender.recommend([[KEYS[3]]])[0]
    assert (after.item_keys, after.policy_version) == (before.item_keys, before.policy_version)


def test_answers_under_way_are_of_one_version(recommender: Recommender) -> None:
    """Threads ask while weights change: every answer is what its version alone would have said."""
    histories = [[key] for key in KEYS]
    states = {"a": deepcopy(recommender.model.state_dict()), "b": shuffled(recommender)}
    expected = {}
    for version, state in states.items():
        recommender.load_weights(state, version)
        expected[version] = [answer.item_keys for answer in recommender.recommend(histories)]
    assert expected["a"] != expected["b"]
    seen: set[str] = set()
    wrong: list[str] = []

    def ask() -> None:
        for _ in range(15):
            answers = recommender.recommend(histories)
            versions = {answer.policy_version for answer in answers}
            seen.update(versions)
            if len(versions) > 1 or [answer.item_keys for answer in answers] != expected[versions.pop()]:
                wrong.append("mixed")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for version, state in states.items():
            recommender.load_weights(state, version)
    assert not wrong
    assert seen == {"a", "b"}
