"""Items that came after the training: what reads them, what answers them, and what they leave as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkerboard_world import ALL, GENERATORS, batch_of, build, recommender, world

from hand_made import hand_made
from sidera.catalog.catalog import Catalog
from sidera.data.items import ItemTable
from sidera.decode.exact import score_all_items
from sidera.decode.sample import free_log_probs
from sidera.engine.recommender import Recommender
from sidera.models import MODELS, fit_once
from sidera.models.generators.sidera import SideraGenerator
from sidera.nn.item_embedding import ItemEmbedding, ItemOffset, fallback_rows, grown

COUNTS = [name for name in ALL if not getattr(MODELS[name], "reads_late_items", True)]
READS = [name for name in ALL if name not in COUNTS]
OLD = [["item0003", "item0007"], ["item0001"]]


def fresh(name: str) -> Recommender:
    """Random weights: what is promised here holds without training."""
    model = build(name)
    fit_once(model, world().prepared.view)
    return recommender(name, model.eval())


def with_late(catalog: Catalog, keys: list[str], seed: int = 0) -> Catalog:
    return catalog.with_items(
        keys, torch.randn(len(keys), catalog.quantizer.dim, generator=torch.Generator().manual_seed(seed))
    )


def scores(one: Recommender) -> dict[str, float]:
    (answer, *_) = one.recommend(OLD, k=100, filter_seen=False)
    return dict(zip(answer.item_keys, answer.scores, strict=True))


@pytest.mark.parametrize("name", READS)
def test_a_history_of_late_items_is_read(name: str) -> None:
    one = fresh(name)
    one.use_catalog(with_late(one.catalog, ["late0", "late1"]))
    (answer,) = one.recommend([["late0"]], k=50, filter_seen=False)
    assert (answer.cold_start, answer.unread, answer.unknown) == (False, (), ())
    assert np.isfinite(answer.scores).all()
    assert {"late0", "late1"} <= set(answer.item_keys)
    assert len(answer.item_keys) == one.catalog.num_items
    (mixed, other) = one.recommend([["item0003", "late0"], ["item0003", "late1"]], k=3)
    assert mixed.unread == other.unread == ()


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_that_counts_names_what_it_cannot_read(name: str) -> None:
    one = fresh(name)
    before = one.recommend(OLD, k=5)
    one.use_catalog(with_late(one.catalog, ["late0"]))
    (answer,) = one.recommend([["late0"]], k=5)
    assert answer.cold_start
    assert answer.unread == ("late0",)
    after = one.recommend([[*history, "late0"] for history in OLD], k=5)
    assert [answer.item_keys for answer in after] == [answer.item_keys for answer in before]


@pytest.mark.parametrize("name", [name for name in READS if name != "onerec_v1"])
def test_old_items_share_probability_with_late_ones(name: str) -> None:
    """Scores of scorers are no probabilities and stay. OneRec-V1 scores items by the lists they stand in."""
    one = fresh(name)
    before = scores(one)
    one.use_catalog(with_late(one.catalog, ["late0", "late1"]))
    after = scores(one)
    if name not in GENERATORS:
        torch.testing.assert_close([after[key] for key in before], list(before.values()), rtol=1e-4, atol=1e-5)
    else:
        assert all(after[key] <= before[key] + 1e-4 for key in before)


LATE_ON_THEIR_OWN = [name for name in READS if getattr(MODELS[name], "scores_late_codes", False)]
WRITERS = [name for name in READS if name in GENERATORS and name not in ("sidera", "onerec_v1", *LATE_ON_THEIR_OWN)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_late_item_is_written_as_often_as_those_beside_it(name: str) -> None:
    one = fresh(name)
    one.use_catalog(with_late(one.catalog, ["late0", "late1"]))
    snapshot = one.snapshot
    assert snapshot.late_codes is not None
    exact = score_all_items(snapshot.generator, batch_of([[3, 7]]), one.catalog.trie)[0].exp()
    codes = np.asarray(one.catalog.codes)
    late = codes[-1]
    depth = max(length for length in range(len(late)) if (codes[:-2, :length] == late[:length]).all(1).any())
    beside = (codes[:-2, :depth] == late[:depth]).all(1)  # known items below the longest known prefix
    if depth == len(late) - 1:
        torch.testing.assert_close(exact[-1], exact[:-2][torch.from_numpy(beside)].mean(), rtol=1e-3, atol=1e-7)
    assert float(exact[-1]) > 0
    assert float(exact.sum()) <= 1 + 1e-4
    (answer,) = one.recommend([["item0003"]], k=100, filter_seen=False)
    assert {"late0", "late1"} <= set(answer.item_keys)
    log_probs = one.sid_log_probs(batch_of([[3, 7]]), torch.from_numpy(codes[None].astype(np.int64)))
    assert log_probs.isfinite().all()
    drawn = one.rollout(batch_of([[3, 7]]), 64, "masked")
    again = one.sid_log_probs(batch_of([[3, 7]]), drawn.sids)
    torch.testing.assert_close(again, drawn.log_probs, rtol=1e-3, atol=1e-4)


def test_the_tree_leaks_no_probability() -> None:
    one = fresh("sidera")
    for step in range(3):
        one.use_catalog(with_late(one.catalog, [f"late{step}a", f"late{step}b"], seed=step))
        total = score_all_items(one.model, batch_of([[3, 7], [1]]), one.catalog.trie).exp().sum(1)
        torch.testing.assert_close(total, torch.ones(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", READS)
def test_two_growths_are_one(name: str) -> None:
    """Rows are made of the trained model, not of a grown one."""
    one = fresh(name)
    one.use_catalog(with_late(one.catalog, ["late0"]))
    catalog = with_late(one.catalog, ["late1"], seed=1)
    one.use_catalog(catalog)
    at_once = fresh(name)
    at_once.use_catalog(catalog)
    assert scores(one) == scores(at_once)


@pytest.mark.parametrize("name", READS)
def test_a_late_item_is_removed(name: str) -> None:
    one = fresh(name)
    one.use_catalog(with_late(one.catalog, ["late0", "late1"]))
    one.use_catalog(one.catalog.without(["late0"]))
    (answer,) = one.recommend([["late0"]], k=50, filter_seen=False)
    assert "late0" not in answer.item_keys
    assert "late1" in answer.item_keys
    assert not answer.cold_start


@pytest.mark.parametrize("name", READS)
def test_weights_are_swapped_and_saved_after_growth(name: str, tmp_path: Path) -> None:
    """Weights of the training's size are loaded into a model that grew, and are what is saved."""
    one = fresh(name)
    one.use_catalog(with_late(one.catalog, ["late0", "late1"]))
    state = {key: value.clone() for key, value in build(name, seed=1).state_dict().items()}
    one.load_weights(state, "second")
    other = recommender(name, build(name, seed=1).eval())
    other.use_catalog(one.catalog)
    assert scores(one) == scores(other)
    one.catalog.save(tmp_path / "catalog")
    one.save_model(tmp_path / "model", digest="d", parents={})
    opened = Recommender.load(tmp_path, beam=one.beam)
    assert opened.num_known == world().catalog.num_items
    torch.testing.assert_close(scores(opened), scores(one))
    opened.load_weights(state, "third")  # a run that was opened over a grown catalogue takes them too
    opened.save_model(tmp_path / "model", digest="e", parents={})
    torch.testing.assert_close(scores(Recommender.load(tmp_path, beam=one.beam)), scores(one))


# -- rows of what came later ---------------------------------------------------------------------------------------


def test_fallbacks_go_from_near_to_far() -> None:
    trained = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0], [4.0, 4.0]])
    codes = np.array([[0, 0], [0, 1], [1, 0], [2, 0], [0, 0], [0, 7], [5, 5], [6, 6]])
    table = ItemTable(codes, {"kind": np.array([0, 0, 2, 2, 0, 2, 2, 9])})
    expected = torch.tensor([[1.0, 0.0], [2.0, 0.0], [2.0, 6.0], [2.0, 3.0]])
    torch.testing.assert_close(fallback_rows(trained, table), expected)
    bare = ItemTable(np.zeros((6, 0), dtype=np.int64), {"kind": np.array([1, 1, 0, 0, 1, 0])})
    torch.testing.assert_close(fallback_rows(trained, bare), torch.tensor([[2.0, 0.0], [2.0, 3.0]]))


def test_a_grown_model_shares_what_did_not_grow() -> None:
    model = torch.nn.ModuleDict({"item": ItemEmbedding(2, 3), "own": ItemOffset(2, 3), "rest": torch.nn.Linear(3, 3)})
    assert grown(model, ItemTable(np.zeros((2, 1), dtype=np.int64))) is model
    new: Any = grown(model, ItemTable(np.zeros((4, 1), dtype=np.int64)))
    assert new["rest"].weight is model["rest"].weight
    assert model["item"].num_embeddings == 2
    torch.testing.assert_close(new["item"].weight[2:], model["item"].weight.mean(0).expand(2, -1))
    assert not new["own"].weight[2:].any()
    assert isinstance(new["own"], ItemOffset)


def test_the_tree_takes_new_prefixes_at_every_level() -> None:
    codes = np.array([[1, 0, 0], [1, 0, 2], [1, 3, 0], [4, 1, 1]])
    late = np.array([[0, 2, 1], [1, 1, 3], [1, 0, 1], [4, 1, 0], [4, 5, 5]])
    catalog: Any = SimpleNamespace(codebook_id="c", level_sizes=(6, 6, 6), item_keys=list("abcd"), codes=codes)
    torch.manual_seed(0)
    config = SideraGenerator.Config(max_history=4, width=8, num_layers=1, num_heads=1, dropout=0.0)
    model = SideraGenerator(config, catalog).eval()
    table = ItemTable(np.concatenate((codes, late)))
    new: Any = grown(model, table)
    assert new.num_nodes == [3, 6, 9]
    assert model.num_nodes == [2, 3, 4]
    assert sorted(new.leaf_items.tolist()) == list(range(9))
    torch.testing.assert_close(new.node_out[0].weight[1:], model.node_out[0].weight)
    torch.testing.assert_close(new.node_out[0].weight[0], model.node_out[0].weight.mean(0))
    batch = hand_made(torch.tensor([0, 4, 8]), torch.tensor([0, 3]), items=table)
    sids = torch.as_tensor(table.codes)[None].long()
    with torch.no_grad():
        total = free_log_probs(new, new.context(batch), sids).sum(-1).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), rtol=1e-4, atol=1e-4)
