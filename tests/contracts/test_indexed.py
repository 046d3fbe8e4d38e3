"""A recommender that searches by an index answers as one that compares all, while items come and go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkerboard_world import build, recommender, world

from sidera.core import Filter, InputError, Request
from sidera.decode.vector_index import IndexConfig
from sidera.engine.live import LiveRun
from sidera.engine.recommender import Recommender
from sidera.engine.serving import ServeConfig

HISTORIES = [["item0003", "item0007"], ["item0001"]]


@pytest.fixture
def pair() -> tuple[Recommender, Recommender]:
    """One that compares all, and the same with an index."""
    pytest.importorskip("faiss", reason="an index needs faiss (extra: dense)")
    plain, indexed = (recommender("sasrec", build("sasrec").eval()) for _ in range(2))
    indexed.snapshot = indexed.snapshot.indexed(IndexConfig("hnsw", 0.9))
    return plain, indexed


def same(plain: Recommender, indexed: Recommender) -> None:
    for seen in (False, True):
        for one, other in zip(
            plain.recommend(HISTORIES, 8, filter_seen=seen), indexed.recommend(HISTORIES, 8, filter_seen=seen),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(other.scores, one.scores)
            clear = sum(score > one.scores[-1] + 1e-4 for score in one.scores)  # the last may tie with others
            assert set(other.item_keys[:clear]) == set(one.item_keys[:clear])


def test_items_and_weights_come_and_go(pair: tuple[Recommender, Recommender]) -> None:
    same(*pair)
    vectors = torch.randn(2, world().catalog.quantizer.dim, generator=torch.Generator().manual_seed(0))
    state = {name: weight.clone() for name, weight in build("sasrec", seed=1).state_dict().items()}
    for one in pair:
        one.use_catalog(one.catalog.with_items(["late0", "late1"], vectors))
    same(*pair)
    gone = pair[0].recommend(HISTORIES, 1)[0].item_keys
    for one in pair:
        one.use_catalog(one.catalog.without(gone))
    same(*pair)
    for one in pair:
        one.load_weights(state, "second")
    same(*pair)
    assert pair[1].snapshot.index is not None
    keys = ["item0001", "item0002", "late0"]
    request = Request(tuple(HISTORIES[0]), k=5, filter_seen=False, filter=Filter.of({"item": keys}))
    answers = [one.recommend([request])[0].item_keys for one in pair]
    assert answers[0] == answers[1]
    assert sorted(answers[1]) == sorted(set(keys) - set(gone))


def test_a_run_is_served_by_an_index_and_says_how_good_it_is(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="an index needs faiss (extra: dense)")
    one = recommender("sasrec", build("sasrec").eval())
    world().catalog.save(tmp_path / "catalog")
    one.save_model(tmp_path / "model", digest="d", parents={})
    with LiveRun.open(tmp_path, serve=ServeConfig(index="ivf", index_recall=0.5)) as live:
        index = live.recommender.snapshot.index
        assert index is not None
        assert index.recall >= 0.5
        assert f"recall@10 {index.recall:.3f}" in index.describe()
    with Recommender.load(tmp_path, serve=ServeConfig(index="flat")) as served:
        for found, wanted in zip(served.recommend(HISTORIES, 5), one.recommend(HISTORIES, 5), strict=True):
            assert found.item_keys == wanted.item_keys
            torch.testing.assert_close(found.scores, wanted.scores)


def test_a_generator_has_no_index() -> None:
    with pytest.raises(InputError, match="tiger cannot be searched by an index of vectors"):
        recommender("tiger", build("tiger")).snapshot.indexed(IndexConfig("flat"))
