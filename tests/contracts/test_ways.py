"""Every way to search every generator: legal, filtered, alike alone and in a batch, and aware of what came and went."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkerboard_world import GENERATORS, batch_of, build, recommender, world

from sidera.core import Filter, InputError, Request
from sidera.engine.recommender import Recommender
from sidera.models import ways_of

OTHER = [(name, way) for name in GENERATORS for way in ways_of(name)[1:]]
OLD = ("item0003", "item0007")


def searched(name: str, way: str) -> Recommender:
    """Random weights: what is promised here holds without training."""
    one = recommender(name, build(name).eval())
    one.search = way
    return one


def test_there_are_other_ways() -> None:
    assert {way for _, way in OTHER} >= {"graph", "draft", "exact", "unmask", "beam"}


@pytest.mark.parametrize(("name", "way"), OTHER)
def test_answers_are_legal_alone_and_in_a_batch(name: str, way: str) -> None:
    one = searched(name, way)
    keys = [str(key) for key in one.catalog.item_keys]
    requests = [
        Request(OLD, k=5, filter_seen=True),
        Request(OLD[:1], k=len(keys), filter_seen=False),
        Request(OLD, k=4, filter_seen=False, filter=Filter.of({"item": keys[::3]})),
        Request((*OLD, "item0001", "item0020"), k=3, exclude=("item0011", "item0002")),
        Request(OLD, k=9, filter_seen=False, filter=Filter.of({"item": keys[4:6]})),
    ]
    together = one.recommend(requests)
    assert set(together[0].item_keys).isdisjoint(OLD)
    assert sorted(together[1].item_keys) == sorted(keys)
    assert set(together[2].item_keys) <= set(keys[::3])
    assert sorted(together[4].item_keys) == keys[4:6]
    assert [len(answer.item_keys) for answer in together] == [5, len(keys), 4, 3, 2]
    for request, answer in zip(requests, together, strict=True):
        assert list(answer.scores) == sorted(answer.scores, reverse=True)
        assert np.isfinite(answer.scores).all()
        (alone,) = one.recommend([request])
        assert alone.item_keys == answer.item_keys
        np.testing.assert_allclose(alone.scores, answer.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "way"), OTHER)
def test_items_come_and_go(name: str, way: str) -> None:
    one = searched(name, way)
    before = one.recommend([OLD], k=3)
    vectors = torch.randn(2, one.catalog.quantizer.dim, generator=torch.Generator().manual_seed(0))
    one.use_catalog(one.catalog.with_items(["late0", "late1"], vectors).without([before[0].item_keys[0]]))
    (answer,) = one.recommend([OLD], k=100, filter_seen=False)
    assert {"late0", "late1"} <= set(answer.item_keys)
    assert before[0].item_keys[0] not in answer.item_keys
    assert len(answer.item_keys) == one.catalog.num_items - 1


@pytest.mark.parametrize(("name", "way"), OTHER)
def test_the_way_follows_the_run_and_other_weights(name: str, way: str, tmp_path: Path) -> None:
    one = searched(name, way)
    world().catalog.save(tmp_path / "catalog")
    one.save_model(tmp_path / "model", digest="d", parents={})
    (tmp_path / "recipe.json").write_text(f'{{"eval": {{"beam": 10, "search": "{way}"}}}}')
    assert Recommender.load(tmp_path).search == way
    one.load_weights({key: value.clone() for key, value in build(name, seed=1).state_dict().items()}, "second")
    other = recommender(name, build(name, seed=1).eval())
    other.search = way
    ranked = [asked.rank(batch_of([[3, 7], [1]]), 6) for asked in (one, other)]
    assert torch.equal(ranked[0].item_ids, ranked[1].item_ids)


def test_a_way_that_is_not_offered_is_refused() -> None:
    one = recommender("tiger", build("tiger").eval())
    one.search = "unmask"
    with pytest.raises(InputError, match="search = 'unmask'"):
        one.recommend([OLD], k=3)
