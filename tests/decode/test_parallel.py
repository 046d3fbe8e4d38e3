"""Codes that are written at once: exact scores against a slow sum, the walk over like items against exact scores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sidera.core import InputError
from sidera.decode import likeness
from sidera.decode.beam import beam_search
from sidera.decode.eligible import Allowed
from sidera.decode.likeness import like_neighbours
from sidera.decode.parallel import ExactSearch, GraphSearch
from sidera.decode.ways import way_of
from sidera.models.generators.rpg import CodeScores, Rpg
from sidera.ops.trie import CodeTrie

SIZES, NUM_ITEMS = (8, 5, 8, 6), 300


class World:
    """Items in clusters, so that like items have like codes; some share a semantic ID, some were removed."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        kinds = rng.integers(0, SIZES, (12, len(SIZES)))
        noise = rng.integers(0, SIZES, (NUM_ITEMS, len(SIZES)))
        self.codes = np.where(rng.random((NUM_ITEMS, len(SIZES))) < 0.6, kinds[rng.integers(0, 12, NUM_ITEMS)], noise)
        self.codes[7] = self.codes[11]
        self.alive = rng.random(NUM_ITEMS) > 0.1
        self.alive[[7, 11]] = True
        self.trie = CodeTrie.build(self.codes, SIZES, alive=self.alive)
        catalog: Any = SimpleNamespace(
            codebook_id="c", level_sizes=SIZES, item_keys=list(range(NUM_ITEMS)), codes=self.codes
        )
        torch.manual_seed(seed)
        self.model = Rpg(Rpg.Config(width=16, num_layers=1, dropout=0.0, temperature=0.3), catalog).eval()
        torch.nn.init.normal_(self.model.code.weight)
        states = torch.randn(5, 16)
        with torch.no_grad():
            levels = zip(self.model.written(states), self.model.code_vectors(), strict=True)
            log_probs = torch.cat([(head @ codes.T).log_softmax(-1) for head, codes in levels], dim=1)
        self.context = CodeScores(log_probs, SIZES)
        starts = np.cumsum([0, *SIZES[:-1]])
        self.scores = np.array(
            [[sum(row[codes + starts].tolist()) for codes in self.codes] for row in log_probs.numpy()]
        )  # (B, N), one item at a time
        self.scores[:, ~self.alive] = -np.inf


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def check(found: Any, scores: np.ndarray, k: int) -> None:
    for row, own in enumerate(scores):
        best = np.sort(own[np.isfinite(own)])[::-1][:k]
        valid = found.valid_mask[row]
        items = found.item_ids[row][valid].tolist()
        assert len(items) == len(set(items)) == len(best)
        np.testing.assert_allclose(found.scores[row][valid], best, atol=1e-4)
        np.testing.assert_allclose(own[items], best, atol=1e-4)


def bars(world: World, few: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Excluded items and a mask of each history, and the scores they leave."""
    rng = np.random.default_rng(1)
    masks = rng.random((len(world.scores), NUM_ITEMS)) < 0.5
    if few:
        masks = np.tile(np.arange(NUM_ITEMS) % 29 == 0, (len(world.scores), 1))
    excluded = [rng.integers(0, NUM_ITEMS, 20) for _ in world.scores]
    left = np.where(masks, world.scores, -np.inf)
    for row, items in enumerate(excluded):
        left[row, items] = -np.inf
    offsets = torch.arange(0, 20 * len(excluded) + 1, 20)
    if few:
        allowed = Allowed([Allowed.of_items(world.trie, masks[:1]).masks[0]] * len(masks))
    else:
        allowed = Allowed.of_items(world.trie, masks)
    return {"exclude": (torch.from_numpy(np.concatenate(excluded)), offsets), "allowed": allowed}, left


@pytest.mark.parametrize("rows", [1, 5])
def test_exact_scores_are_the_sums(world: World, rows: int) -> None:
    context = CodeScores(world.context.log_probs[:rows], SIZES)
    search = ExactSearch(world.model, world.trie)
    check(search(context, width=1, num_results=20), world.scores[:rows], 20)
    check(search(context, width=1, num_results=400), world.scores[:rows], 400)
    whole = beam_search(world.model, context, world.trie, width=400, num_results=30)
    found = search(context, width=1, num_results=30)
    assert torch.equal(found.item_ids, whole.item_ids)  # the same ties too
    assert torch.equal(found.sids, whole.sids)
    assert torch.equal(found.leaf_ids, whole.leaf_ids)


@pytest.mark.parametrize("few", [False, True], ids=["many allowed", "few allowed"])
def test_bars_hold(world: World, few: bool) -> None:
    settings, left = bars(world, few)
    for search in (ExactSearch(world.model, world.trie), GraphSearch(world.model, world.trie, 8, num_starts=16)):
        check(search(world.context, width=300, num_results=10, **settings), left, 10)


def test_a_walk_that_sees_everything_is_exact(world: World) -> None:
    walk = GraphSearch(world.model, world.trie, num_neighbours=20, rounds=30, num_starts=40)
    check(walk(world.context, width=300, num_results=25), world.scores, 25)


def test_a_short_walk_finds_most_and_scores_a_part(world: World) -> None:
    walk = GraphSearch(world.model, world.trie, num_neighbours=6, rounds=4, num_starts=16)
    exact = ExactSearch(world.model, world.trie)(world.context, width=1, num_results=10)
    found = walk(world.context, width=8, num_results=10)
    same = [len(set(a) & set(b)) for a, b in zip(found.item_ids.tolist(), exact.item_ids.tolist(), strict=True)]
    assert sum(same) / (10 * len(same)) > 0.6
    scores, leaves = walk.walk(world.context.log_probs, 8)
    for row in range(len(scores)):
        seen = leaves[row][scores[row].isfinite()]
        assert len(seen) == len(seen.unique()) < world.trie.num_leaves
        items = world.trie.leaf_items[world.trie.leaf_starts(seen.numpy())]
        np.testing.assert_allclose(scores[row][scores[row].isfinite()], world.scores[row][items], atol=1e-4)


def test_neighbours_in_clusters_are_mostly_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kinds = torch.randint(0, 16, (40, 6))
    rows = torch.where(torch.rand(1500, 6) < 0.7, kinds[torch.randint(0, 40, (1500,))], torch.randint(0, 16, (1500, 6)))
    rows = rows + 16 * torch.arange(6)
    vectors = torch.nn.functional.normalize(torch.randn(96, 32), dim=1)
    exact = like_neighbours(vectors, rows, 10)
    monkeypatch.setattr(likeness, "WHOLE", 100)
    close = like_neighbours(vectors, rows, 10)
    assert close.shape == exact.shape
    assert (close != torch.arange(1500)[:, None]).all()
    same = [len(set(a) & set(b)) for a, b in zip(close.tolist(), exact.tolist(), strict=True)]
    assert sum(same) / 15_000 > 0.4  # 10 / 1,500 by chance


def test_one_item_is_a_catalogue_too() -> None:
    trie = CodeTrie.build(np.array([[3, 1, 2, 0]]), SIZES)
    world = World()
    for search in (ExactSearch(world.model, trie), GraphSearch(world.model, trie)):
        found = search(world.context, width=5, num_results=3)
        assert found.item_ids.tolist() == [[0, -1, -1]] * 5


def test_a_way_that_a_model_does_not_offer_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert way_of(world.model, "auto", world.trie) == "exact"
    assert way_of(object(), "auto", world.trie) == "beam"
    monkeypatch.setattr("sidera.decode.ways.EXACT_ITEMS", 10)
    assert way_of(world.model, "auto", world.trie) == "graph"
    with pytest.raises(InputError, match=r"search = 'unmask'.*allowed: auto, exact, graph, beam"):
        way_of(world.model, "unmask", world.trie)
