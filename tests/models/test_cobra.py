"""COBRA and the decoder-only stream under it: no leak, one story for steps and whole candidates, BeamFusion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_catalog import SmallCatalog, small_catalog

from hand_made import hand_made
from sidera.batch import Batch
from sidera.decode.beam import beam_search
from sidera.decode.eligible import Allowed
from sidera.decode.hybrid import hybrid_scores, hybrid_search
from sidera.decode.sample import free_log_probs
from sidera.models import MODELS, parse_model
from sidera.ops.trie import CodeTrie

SIZES = {"width": 16, "num_layers": 2, "num_heads": 2, "ff_multiple": 2, "dropout": 0.0}
NUM_ITEMS, HISTORIES = 24, [[3, 7, 7], [1], [0, 4, 8, 12, 2]]
KINDS = ["decoder_only", "cobra"]


def catalog() -> SmallCatalog:
    """Twenty-four items on twelve semantic IDs."""
    codes = small_catalog(12, (4, 3, 2)).codes
    return replace(small_catalog(NUM_ITEMS, (4, 3, 4)), codes=codes[np.arange(NUM_ITEMS) % 12], level_sizes=(4, 3, 2))


def make(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    _, config = parse_model({"name": name, **SIZES, **settings})
    model = MODELS[name](config, catalog())
    with torch.no_grad():  # large enough that every part shows
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch(histories: list[list[int]], following: list[int] | None = None) -> Batch:
    """With ``following``: the item behind each history; every event's target is the next item."""
    items = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0, *[len(history) for history in histories]]).cumsum(0)
    targets = None
    if following is not None:
        rows = zip(histories, following, strict=True)
        targets = torch.tensor([item for history, last in rows for item in [*history[1:], last]])
    return hand_made(items, offsets, targets, items=catalog(), kind="event" if following else None)


def trie() -> CodeTrie:
    return CodeTrie.build(catalog().codes, catalog().level_sizes)


def log_probs(model: Any, one: Batch, sids: torch.Tensor) -> torch.Tensor:
    """(B, G, L)"""
    found = model.code_logits(model.context(one), sids)
    parts = [logits.log_softmax(-1).gather(2, sids[:, :, level, None]) for level, logits in enumerate(found)]
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_loss_of_a_history_is_that_of_its_prefixes(name: str) -> None:
    """Packed rows in training against one prefix after another as they are answered: nothing later is seen."""
    model = make(name).eval()
    codes, dense = 0.0, 0.0
    known = model.item_vectors() if name == "cobra" else None
    whole = batch(HISTORIES, [5, 9, 20]).items.ids
    shares = torch.arange(1, NUM_ITEMS + 1) / sum(range(NUM_ITEMS + 1))
    if known is not None:
        model.log_share.copy_(shares.log())
    there = 1 - (1 - shares[whole]) ** (sum(map(len, HISTORIES)) + 3)  # chance to be an event or a last target
    loss = model.loss(batch(HISTORIES, [5, 9, 20]))
    for history, last in zip(HISTORIES, [5, 9, 20], strict=True):
        for end in range(1, len(history) + 1):
            target = [*history, last][end]
            sid = torch.from_numpy(catalog().codes[[[target]]]).long()
            one = batch([history[:end]])
            codes -= float(log_probs(model, one, sid).sum())
            if known is not None:
                said = model.given_vectors(model.context(one), sid)[0, 0]
                place = int((whole == target).nonzero()[0, 0])
                corrected = there.log().index_fill(0, torch.tensor(place), 0.0)
                scores = known[whole] @ said / 0.0625 - corrected
                dense += float(F.cross_entropy(scores[None], torch.tensor([place])))
    assert loss.count == sum(map(len, HISTORIES))
    assert sum(loss.parts[f"level_{level}"] for level in range(3)) * loss.count == pytest.approx(codes, rel=1e-4)
    assert float(loss.total) == pytest.approx(codes + dense, rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_later_event_changes_nothing_before_it(name: str) -> None:
    model = make(name).eval()
    histories = [[3, 7, 5, 2], [3, 7, 5, 9]]
    states = []
    for history in histories:
        one = batch([history], [1])
        states.append(model.target_states(one, model.item_tokens(one))[0])
    for level in range(model.num_tokens):  # the targets of events 0 and 1 are items 7 and 5
        torch.testing.assert_close(states[0][level][:2], states[1][level][:2])
    assert not torch.allclose(states[0][0][3], states[1][0][3])


@torch.no_grad()
def test_an_items_vector_is_read_behind_its_codes_and_not_before() -> None:
    """Items 2 and 14 have equal codes: what tells them apart may show in what follows, not in what they are."""
    model = make("cobra").eval()
    states = []
    for item in (2, 14):
        one = batch([[3, item]], [1])
        states.append(model.target_states(one, model.item_tokens(one))[0])
    assert (catalog().codes[2] == catalog().codes[14]).all()
    for state, other in zip(*states, strict=True):
        torch.testing.assert_close(state[0], other[0])  # of the event whose target the item is
        assert not torch.allclose(state[1], other[1])  # of what follows the item


@torch.no_grad()
def test_the_vector_behind_a_beam_is_that_of_its_codes() -> None:
    """Beams that are reordered and doubled between steps."""
    model, width = make("cobra").eval(), 5
    one, source = batch(HISTORIES), torch.Generator().manual_seed(1)
    sids = torch.from_numpy(catalog().codes[torch.randint(NUM_ITEMS, (3, width), generator=source)]).long()
    context = model.context(one)
    cache = model.new_cache(context, width)
    model.step(context, cache, 0, None, None)
    parents = torch.zeros(3, width, dtype=torch.int64)
    order = torch.arange(width).expand(3, -1)
    for level in (1, 2):
        codes = sids[:, :, level - 1].gather(1, order)
        model.step(context, cache, level, codes, parents)
        parents = torch.randperm(width, generator=source).expand(3, -1)
        order = order.gather(1, parents)
    said = model.beam_vectors(context, cache, sids[:, :, 2].gather(1, order), parents)
    expected = model.given_vectors(context, sids).gather(1, order[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)


def fusion(model: Any, one: Batch, row: int, width: int, proposed: int, open_items: set[int]) -> list[int]:
    """BeamFusion as the paper writes it, with loops: the items of the best semantic IDs by
    softmax(tau log p) softmax(psi cos)."""
    codes = catalog().codes
    limits = (
        {"allowed": Allowed.of_items(trie_of, np.isin(np.arange(NUM_ITEMS), [*open_items])[None])}
        if (trie_of := trie())
        else {}
    )
    context = model.context(one.rows(torch.tensor([row])))
    found = beam_search(model, context, trie_of, width=width, num_results=NUM_ITEMS, **limits)
    leaves: list[tuple[int, ...]] = []
    scores: list[float] = []
    for item, score in zip(found.item_ids[0].tolist(), found.scores[0].tolist(), strict=True):
        if item >= 0 and tuple(codes[item]) not in leaves:
            leaves.append(tuple(codes[item]))
            scores.append(score)
    leaves, scores = leaves[:proposed], scores[:proposed]
    beams, candidates, cosines = [], [], []
    for beam, leaf in enumerate(leaves):
        said = model.given_vectors(context, torch.tensor([[leaf]]))[0, 0]
        for item in sorted(open_items):
            if tuple(codes[item]) == leaf:
                beams.append(beam)
                candidates.append(item)
                cosines.append(F.cosine_similarity(said, model.item_vectors()[item], dim=0))
    of_beams = (model.config.beam_weight * torch.tensor(scores)).softmax(0)[beams]
    fused = of_beams * (model.config.cosine_weight * torch.stack(cosines)).softmax(0)
    return [candidates[place] for place in fused.argsort(descending=True).tolist()]


@pytest.mark.parametrize(("width", "proposed", "barred"), [(50, 12, False), (4, 3, False), (5, 4, True)])
@torch.no_grad()
def test_beam_fusion_is_the_papers(width: int, proposed: int, barred: bool) -> None:
    model = make("cobra", num_proposed=proposed).eval()
    one, whole = batch(HISTORIES), trie()
    open_mask = torch.ones(3, NUM_ITEMS, dtype=torch.bool)
    limits: dict[str, Any] = {}
    if barred:
        open_mask = torch.rand(3, NUM_ITEMS, generator=torch.Generator().manual_seed(4)) < 0.5
        limits["allowed"] = Allowed.of_items(whole, open_mask)
    context = model.context(one)
    found, scores = hybrid_search(model, context, whole, width=width, num_results=3, **limits)
    for row in range(3):
        open_items = set(open_mask[row].nonzero().flatten().tolist())
        assert found[row].tolist() == fusion(model, one, row, max(width, proposed), proposed, open_items)[:3]
    sids = torch.from_numpy(catalog().codes).long()[found]
    torch.testing.assert_close(hybrid_scores(model, context, found, sids), scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_weights_of_the_two_scores_decide() -> None:
    """Without the cosine, items of one semantic ID tie; without the beam, the order is that of the cosines."""
    one, whole = batch(HISTORIES), trie()
    model = make("cobra", cosine_weight=0.0, num_proposed=12).eval()
    _, scores = hybrid_search(model, model.context(one), whole, width=12, num_results=NUM_ITEMS)
    torch.testing.assert_close(scores[:, ::2], scores[:, 1::2])
    model = make("cobra", beam_weight=0.0, num_proposed=12).eval()
    context = model.context(one)
    found, _ = hybrid_search(model, context, whole, width=12, num_results=NUM_ITEMS)
    said = model.given_vectors(context, torch.from_numpy(catalog().codes).long().expand(3, -1, -1))
    assert found.tolist() == (said * model.item_vectors()).sum(-1).argsort(1, descending=True).tolist()


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_semantic_ids_of_one_code(name: str) -> None:
    single = replace(catalog(), codes=catalog().codes[:, :1], level_sizes=(4,))
    torch.manual_seed(0)
    model: Any = MODELS[name](parse_model({"name": name, **SIZES})[1], single).eval()
    one = hand_made(torch.tensor([3, 7, 1]), torch.tensor([0, 2, 3]), items=single)
    context, whole = model.context(one), CodeTrie.build(single.codes, (4,))
    sids = torch.from_numpy(single.codes).long().expand(2, -1, -1)
    every = torch.arange(NUM_ITEMS).expand(2, -1)
    if name == "cobra":
        exact = hybrid_scores(model, context, every, sids)
        found, scores = hybrid_search(model, context, whole, width=4, num_results=NUM_ITEMS)
    else:
        exact = free_log_probs(model, context, sids).sum(-1)
        beams = beam_search(model, context, whole, width=4, num_results=NUM_ITEMS)
        found, scores = beams.item_ids, beams.scores
    torch.testing.assert_close(scores, exact.gather(1, found), rtol=1e-4, atol=1e-5)
    assert found.sort(1).values.tolist() == every.tolist()
