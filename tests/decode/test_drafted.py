"""Drafts that the full model checks: its own scores, the beam's answer where they cover it, and a beam elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hand_made import hand_made
from sidera.data.items import ItemTable
from sidera.decode import drafted
from sidera.decode.beam import Beams, beam_search
from sidera.decode.drafted import DraftSearch
from sidera.decode.eligible import Allowed
from sidera.models.generators.mtp import TigerMTP
from sidera.models.generators.tiger_mlp import TigerMLP
from sidera.ops.trie import CodeTrie

SIZES, NUM_ITEMS, HISTORIES = (6, 5, 4), 70, [[3, 7], [1], [0, 4, 8, 12], [9, 9, 2]]
SMALL: dict[str, Any] = {
    "width": 16, "num_layers": 1, "num_heads": 2, "head_width": 8, "ff_width": 16, "dropout": 0.0, "max_history": 8,
}  # fmt: skip


class World:
    def __init__(self, kind: Any) -> None:
        rng = np.random.default_rng(0)
        flat = rng.choice(int(np.prod(SIZES)), NUM_ITEMS, replace=False)
        codes = np.stack(np.unravel_index(flat, SIZES), axis=1)
        codes[5] = codes[9]
        self.trie = CodeTrie.build(codes, SIZES, alive=np.arange(NUM_ITEMS) != 3)
        catalog: Any = SimpleNamespace(
            codes=codes, level_sizes=SIZES, codebook_id="c", item_keys=list(range(NUM_ITEMS))
        )
        torch.manual_seed(0)
        self.model = kind(kind.Config(**SMALL), catalog).eval()
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.mul_(1.5 if "norm" in name else 2.0)
        offsets = torch.tensor([0, *np.cumsum([len(history) for history in HISTORIES])])
        self.batch = hand_made(
            torch.tensor([item for history in HISTORIES for item in history]), offsets, items=ItemTable(codes)
        )
        self.full = self.model if kind is TigerMTP else self.model.teacher
        self.search = DraftSearch(self.model, lambda model: model, self.trie)

    def beam(self, **settings: Any) -> Beams:
        return beam_search(self.full, self.batch, self.trie, **settings)

    def drafts(self, **settings: Any) -> Beams:
        with torch.inference_mode():
            return self.search(self.model.context(self.batch), **settings)


def same(found: Beams, expected: Beams) -> None:
    assert torch.equal(found.item_ids, expected.item_ids)
    assert torch.equal(found.leaf_ids, expected.leaf_ids)
    assert torch.equal(found.sids, expected.sids)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=[TigerMTP, TigerMLP], ids=["mtp", "mlp"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_a_draft_of_everything_is_the_full_beam(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafted, "FEWEST", NUM_ITEMS)
    world.search.again = 0
    same(world.drafts(width=2, num_results=10), world.beam(width=NUM_ITEMS, num_results=10))
    same(world.drafts(width=2, num_results=80), world.beam(width=NUM_ITEMS, num_results=80))
    rng = np.random.default_rng(2)
    offsets = torch.arange(0, 6 * len(HISTORIES) + 1, 6)
    limits = {
        "allowed": Allowed.of_items(world.trie, rng.random((len(HISTORIES), NUM_ITEMS)) < 0.5),
        "exclude": (torch.from_numpy(rng.integers(0, NUM_ITEMS, 6 * len(HISTORIES))), offsets),
    }
    same(world.drafts(width=2, num_results=10, **limits), world.beam(width=NUM_ITEMS, num_results=10, **limits))
    assert world.search.again == 0


def test_what_is_answered_has_the_full_models_score(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafted, "FEWEST", 6)
    monkeypatch.setattr(drafted, "TRUSTED", 1.0)  # every draft is trusted
    found = world.drafts(width=50, num_results=1)
    exact = world.beam(width=NUM_ITEMS, num_results=NUM_ITEMS)
    for row in range(len(HISTORIES)):
        place = exact.item_ids[row].tolist().index(int(found.item_ids[row, 0]))
        torch.testing.assert_close(found.scores[row, 0], exact.scores[row, place], rtol=1e-4, atol=1e-4)


def test_a_draft_that_is_not_trusted_is_searched_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafted, "FEWEST", 4)
    monkeypatch.setattr(drafted, "DRAFTS", 2)
    monkeypatch.setattr(drafted, "TRUSTED", 0.0)  # none is
    world.search.histories = world.search.again = 0
    rng = np.random.default_rng(3)
    masks = Allowed.of_items(world.trie, rng.random((len(HISTORIES), NUM_ITEMS)) < 0.6)
    limits = {"allowed": masks, "exclude": (world.batch.item_ids, world.batch.events.offsets)}
    same(world.drafts(width=9, num_results=5, **limits), world.beam(width=9, num_results=5, **limits))
    assert world.search.again == world.search.histories == len(HISTORIES)
    monkeypatch.setattr(drafted, "TRUSTED", 0.8)
    found = world.drafts(width=9, num_results=2)
    searched = world.search.again - len(HISTORIES)
    assert 0 <= searched <= len(HISTORIES)
    assert bool(found.valid_mask.all())


def test_equal_scores_go_to_the_lower_leaf(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafted, "given_log_probs", lambda generator, context, sids: torch.zeros(sids.shape[:2]))
    context = world.model.context(world.batch)
    drafts = world.search.draft(context, width=40, num_results=40)
    assert not torch.equal(drafts.leaf_ids, drafts.leaf_ids.sort(1).values)
    found, _ = world.search.checked(context, drafts, 10)
    assert torch.equal(found.leaf_ids, drafts.leaf_ids.sort(1).values[:, :10])
