"""Why an item is likely: weights by leaving events out, codes and the tree, against what recommending says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sidera.core import InputError, Request
from sidera.data.dataset import Dataset
from sidera.engine import explain as explaining
from sidera.engine.explain import Branch, explain
from sidera.engine.questions import Questions
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig

KEYS = [f"item{item:04d}" for item in range(24)]
HISTORY = [KEYS[3], KEYS[7], KEYS[12], KEYS[4]]


@pytest.fixture(scope="module")
def recommender(trained_run: Path) -> Recommender:
    return Recommender.load(trained_run)


def answered(recommender: Recommender, history: list[str], k: int = 5) -> list[str]:
    (answer,) = recommender.recommend([history], k, filter_seen=False)
    return list(answer.item_keys)


def test_the_event_that_is_named_is_the_one_whose_removal_lowers_the_score_most(
    recommender: Recommender, trained_run: Path
) -> None:
    log, ask = Dataset.load(trained_run.parent / "data"), Questions(recommender)
    for user in range(6):
        history = log.item_keys[log.item_ids[log.offsets[user] : log.offsets[user + 1]]].tolist()[-6:]
        (item, *_) = answered(recommender, history)
        found = explain(recommender, history, item)
        (whole,) = ask.score(history, [item])
        losses = []
        for place in range(len(history)):
            (without,) = ask.score(history[:place] + history[place + 1 :], [item])
            losses.append(whole.score - without.score)
        assert found.score == pytest.approx(whole.score, abs=1e-5)
        np.testing.assert_allclose([event.weight for event in found.events], sorted(losses, reverse=True), atol=1e-4)
        named = [place for place, key in enumerate(history) if key == found.events[0].item]
        assert max(losses[place] for place in named) == pytest.approx(max(losses), abs=1e-4)


def test_codes_multiply_to_the_score(recommender: Recommender) -> None:
    (item, *_) = answered(recommender, HISTORY)
    found = explain(recommender, HISTORY, item)
    assert len(found.codes) == recommender.catalog.num_levels
    assert [one.code for one in found.codes] == np.asarray(
        recommender.catalog.codes[recommender.catalog.ids_of([item])]
    )[0].tolist()
    assert sum(math.log(one.probability) for one in found.codes) == pytest.approx(found.score, abs=1e-4)


def leaves(branches: tuple[Branch, ...] | list[Branch], chance: float = 1.0) -> Iterator[tuple[str, float]]:
    for branch in branches:
        if branch.item is not None:
            yield branch.item, chance * branch.probability
        yield from leaves(branch.children, chance * branch.probability)


def test_the_tree_holds_what_a_search_finds(recommender: Recommender) -> None:
    found = explain(recommender, HISTORY, answered(recommender, HISTORY)[0])
    chances = dict(leaves(found.tree))
    assert set(chances) == set(answered(recommender, HISTORY, 24))
    scores = Questions(recommender).score(HISTORY, list(chances))
    np.testing.assert_allclose(list(chances.values()), [math.exp(one.score) for one in scores], rtol=1e-3)
    assert sum(branch.num_items for branch in found.tree) == 24
    for branch in found.tree:
        assert branch.num_items == sum(child.num_items for child in branch.children)
        assert sum(child.probability for child in branch.children) == pytest.approx(1, abs=1e-3)


def test_older_events_than_are_read_weigh_nothing_and_are_not_weighed(recommender: Recommender) -> None:
    history = [KEYS[number % 24] for number in range(recommender.reads.max_events + 7)]
    found = explain(recommender, history, KEYS[5])
    assert len(found.events) == recommender.reads.max_events
    assert found.num_events == len(history)


def test_many_events_are_weighed_up_to_a_bound(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "MOST_EVENTS", 2)
    assert {event.item for event in explain(recommender, HISTORY, KEYS[5]).events} == set(HISTORY[-2:])


def test_a_single_event_has_nothing_to_compare_with(recommender: Recommender) -> None:
    (event,) = explain(recommender, [KEYS[3]], KEYS[5]).events
    assert (event.item, event.weight) == (KEYS[3], None)


def test_users_of_the_store_are_explained(trained_run: Path, tmp_path: Path) -> None:
    with Recommender.load(trained_run, serve=ServeConfig(store=str(tmp_path / "store"))) as recommender:
        assert recommender.behaviour is not None
        recommender.behaviour.keep("ann", HISTORY, [10, 20, 30, 40], {}, refuse_unknown=True)
        by_user = explain(recommender, Request(user="ann"), KEYS[5])
        by_history = explain(recommender, HISTORY, KEYS[5])
        weights = {event.item: event.weight for event in by_history.events}
        assert {event.time for event in by_user.events} == {10, 20, 30, 40}
        assert {event.item: event.weight for event in by_user.events} == pytest.approx(weights, abs=1e-4)
        with pytest.raises(InputError, match="can read nothing"):
            explain(recommender, Request(user="nobody"), KEYS[5])


def test_what_cannot_be_explained_is_refused(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="holds no item 'nothing'"):
        explain(recommender, HISTORY, "nothing")
    with pytest.raises(InputError, match="can read nothing"):
        explain(recommender, ["nothing"], KEYS[5])
    changed = Recommender(recommender.model, recommender.catalog.without([KEYS[5]]), model_section={})
    with pytest.raises(InputError, match="never gives"):
        explain(changed, HISTORY, KEYS[5])
