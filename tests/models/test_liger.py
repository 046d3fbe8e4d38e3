"""LIGER: two losses, content in the encoder, and a beam whose proposals and cold items are ordered by cosines."""

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
from sidera.catalog.kept_vectors import KEPT
from sidera.core import InputError
from sidera.data.feature import Feature
from sidera.data.features import FeatureSchema
from sidera.decode.beam import beam_search
from sidera.decode.eligible import Allowed
from sidera.decode.hybrid import hybrid_scores, hybrid_search
from sidera.models import parse_model
from sidera.models.generators.liger import Liger
from sidera.nn.item_embedding import grown
from sidera.nn.sampled_softmax import uniform_softmax
from sidera.ops.trie import CodeTrie

SIZES = {"width": 16, "num_layers": 1, "num_heads": 2, "head_width": 8, "ff_width": 32, "dropout": 0.0}
NUM_ITEMS, LENGTHS = 20, [3, 1, 5]
COLD = torch.tensor([4, 17, 18])


def catalog() -> SmallCatalog:
    """Twenty items of three kinds."""
    schema = FeatureSchema(features=(Feature("kind", "category", "item", "kind", ("a", "b", "c")),))
    kinds = np.random.default_rng(1).integers(1, 4, NUM_ITEMS)
    return replace(small_catalog(NUM_ITEMS, (4, 3, 4)), schema=schema, features={"kind": kinds})


def make(source: SmallCatalog | None = None, **settings: Any) -> Liger:
    torch.manual_seed(0)
    _, config = parse_model({"name": "liger", **SIZES, **settings})
    model: Any = Liger(config, source or catalog())  # type: ignore[arg-type]
    with torch.no_grad():
        model.tower.items.own.weight.normal_()  # an own vector that is read must show
    return model


def batch(targets: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(2)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    items = torch.randint(NUM_ITEMS, (int(offsets[-1]),), generator=generator)
    return hand_made(items, offsets, torch.tensor([3, 9, 11]) if targets else None, items=catalog())


def trie(alive: np.ndarray | None = None) -> CodeTrie:
    return CodeTrie.build(catalog().codes, catalog().level_sizes, alive=alive)


def cosines(model: Liger) -> torch.Tensor:
    """(B, N) of states at the last token, history by history, with items, item by item."""
    rows, one = [], batch()
    for row in range(one.num_histories):
        own = one.rows(torch.tensor([row]))
        packed = model.packed_rows(own)
        state = model.encoder(model.inputs(packed, own, model.embedding.weight), packed.layout)[-1]
        user = model.user_out(state)
        items = [model.item_out(model.tower(torch.tensor([item])))[0] for item in range(NUM_ITEMS)]
        rows.append(torch.stack([F.cosine_similarity(user, item, dim=0) for item in items]))
    return torch.stack(rows)


@torch.no_grad()
def test_the_losses_are_those_of_tiger_and_of_a_softmax_over_the_catalogue() -> None:
    model = make(dense_weight=0.5).train()
    loss = model.loss(batch(targets=True))
    dense = F.cross_entropy(cosines(model) / 0.07, torch.tensor([3, 9, 11]), reduction="sum")
    assert loss.parts["dense"] == pytest.approx(float(dense) / 3, rel=1e-4)
    codes = sum(loss.parts[f"level_{level}"] for level in range(3))
    assert float(loss.total) / 3 == pytest.approx(codes + 0.5 * loss.parts["dense"], rel=1e-5)


def test_both_losses_teach_the_encoder_and_own_vectors_are_not_read_unless_asked_for() -> None:
    for drop, taught in ((1.0, False), (0.0, True)):
        model = make(id_dropout=drop).train()
        model.loss(batch(targets=True)).total.backward()
        assert bool(model.tower.items.own.weight.grad.any()) == taught
        qkv = model.encoder.layers[0].attention.qkv
        for part in (qkv, model.user_out, model.item_out, model.content, model.tower.up):
            assert part.weight.grad.any()


def test_uniform_negatives_that_are_all_items_give_the_whole_softmax() -> None:
    users, items = torch.randn(3, 8), torch.randn(NUM_ITEMS, 8)
    targets, every = torch.tensor([3, 9, 11]), torch.arange(NUM_ITEMS)
    for row in torch.arange(3).split(1):
        found = uniform_softmax(users[row], items[targets[row]], items, targets[row], every, NUM_ITEMS)
        torch.testing.assert_close(found, F.cross_entropy(users[row] @ items.T, targets[row]))


def test_content_reaches_the_encoder_and_the_items() -> None:
    """Another kind of one item changes states of histories with it, its own vector, and no other."""
    model = make(id_dropout=1.0).eval()
    item = int(batch().item_ids[0])
    kinds = catalog().features["kind"].copy()
    kinds[item] = kinds[item] % 3 + 1
    other: Any = make(id_dropout=1.0).eval()
    other.tower.items.grow(replace(catalog(), features={"kind": kinds}))
    with torch.no_grad():
        before, after = model.item_vectors(), other.item_vectors()
        assert (before != after).any(1).nonzero().flatten().tolist() == [item]
        users, others = (one.context(batch()).users for one in (model, other))
    one = batch()
    rows = zip(one.events.offsets[:-1].tolist(), one.events.offsets[1:].tolist(), strict=True)
    holds = [item in one.item_ids[low:high].tolist() for low, high in rows]
    assert True in holds
    assert False in holds
    assert (users != others).any(1).tolist() == holds


def with_sentences(changed: int | None = None) -> SmallCatalog:
    """The catalogue that keeps vectors; ``changed``: an item that says something else."""
    vectors = np.random.default_rng(5).standard_normal((NUM_ITEMS, 7)).astype(np.float32)
    if changed is not None:
        vectors[changed] += np.arange(7)
    return replace(catalog(), features={**catalog().features, KEPT: vectors})


@torch.no_grad()
def test_the_sentence_vector_is_what_the_encoder_reads_and_what_the_dense_score_seeks() -> None:
    here, there = (make(with_sentences(changed), content="vectors").eval() for changed in (None, 3))
    same = (there.item_vectors() == here.item_vectors()).all(1)
    assert same.tolist() == [item != 3 for item in range(NUM_ITEMS)]  # its own target, and nobody else's
    users = []
    for model in (here, there):
        one = hand_made(torch.tensor([3, 5, 5]), torch.tensor([0, 2, 3]), items=catalog())  # the first reads item 3
        users.append(model.context(one).users)
    assert not torch.allclose(users[0][0], users[1][0])
    torch.testing.assert_close(users[0][1], users[1][1])
    other = with_sentences()
    other = replace(other, codes=other.codes[::-1], features={**other.features, "kind": np.zeros(NUM_ITEMS, np.int64)})
    torch.testing.assert_close(make(other, content="vectors").eval().item_vectors(), here.item_vectors())  # it alone
    assert not torch.allclose(make(other).eval().item_vectors(), make(with_sentences()).eval().item_vectors())


def test_without_kept_vectors_there_is_nothing_to_read() -> None:
    with pytest.raises(InputError, match="keep_vectors = true"):
        make(content="vectors")


def test_as_many_proposals_as_items_are_dense_retrieval() -> None:
    model = make(num_proposed=NUM_ITEMS).eval()
    with torch.no_grad():
        exact = cosines(model) / 0.07
        context = model.context(batch())
    found, scores = hybrid_search(model, context, trie(), width=1, num_results=NUM_ITEMS)
    assert found.tolist() == exact.argsort(1, descending=True).tolist()
    torch.testing.assert_close(scores, exact.gather(1, found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("barred", [False, True])
def test_a_beams_items_and_the_cold_ones_are_ordered_by_their_cosine(barred: bool) -> None:
    """Against sets: the K best of the beam, and all cold items, less what is excluded or not allowed."""
    model = make(num_proposed=4).eval()
    with torch.no_grad():
        exact, context = cosines(model) / 0.07, model.context(batch())
    whole = trie()
    limits: dict[str, Any] = {}
    open_mask = torch.ones(3, NUM_ITEMS, dtype=torch.bool)
    if barred:
        excluded = torch.tensor([17, 2, 5, 4, 0, 1])
        limits["exclude"] = (excluded, torch.tensor([0, 3, 6, 6]))
        open_mask[0, excluded[:3]] = open_mask[1, excluded[3:]] = False
        allowed = torch.rand(3, NUM_ITEMS, generator=torch.Generator().manual_seed(3)) < 0.7
        limits["allowed"] = Allowed.of_items(whole, allowed)
        open_mask &= allowed
    found, scores = hybrid_search(model, context, whole, width=30, num_results=4, cold_ids=COLD, **limits)
    proposed = beam_search(model, context, whole, width=30, num_results=4, **limits).item_ids
    for row in range(3):
        candidates = ({*proposed[row].tolist()} | {*COLD.tolist()}) & {*open_mask[row].nonzero().flatten().tolist()}
        expected = sorted(candidates, key=lambda item: -float(exact[row, item]))[:4]
        assert found[row].tolist() == expected
    torch.testing.assert_close(scores, exact.gather(1, found), rtol=1e-4, atol=1e-4)
    sids = torch.from_numpy(catalog().codes).long()[found]
    torch.testing.assert_close(hybrid_scores(model, context, found, sids), scores, rtol=1e-4, atol=1e-4)


def test_what_is_left_is_answered_and_nothing_else() -> None:
    """Fewer eligible items than results; a barred proposal leaves its place to another."""
    model = make(num_proposed=2).eval()
    alive = np.zeros(NUM_ITEMS, dtype=bool)
    alive[[2, 4, 9]] = True
    with torch.no_grad():
        context = model.context(batch())
    found, scores = hybrid_search(
        model, context, trie(alive), width=5, num_results=5, cold_ids=COLD[:1],
        exclude=(torch.tensor([2]), torch.tensor([0, 1, 1, 1])),
    )  # fmt: skip
    assert [sorted(row) for row in found.tolist()] == [[-1, -1, -1, 4, 9], [-1, -1, 2, 4, 9], [-1, -1, 2, 4, 9]]
    assert (scores.isinf() == (found < 0)).all()


def test_a_late_item_is_compared_though_no_beam_writes_it() -> None:
    """It has the vector of its content, without training, and the same as an equal item's that was there."""
    model, late = make(num_proposed=1).eval(), catalog()
    twin = 7
    table = replace(
        late, codes=np.concatenate((late.codes, late.codes[[twin]])),
        features={"kind": np.append(late.features["kind"], late.features["kind"][twin])},
    )  # fmt: skip
    new: Any = grown(model, table)
    with torch.no_grad():
        vectors, context = new.item_vectors(), new.context(batch())
        own = new.tower.items.own.weight
        assert not own[NUM_ITEMS:].any()
        exact = context.users @ vectors.T / 0.07
    grown_trie = CodeTrie.build(table.codes, table.level_sizes)
    cold = torch.tensor([NUM_ITEMS])
    found, scores = hybrid_search(new, context, grown_trie, width=5, num_results=NUM_ITEMS + 1, cold_ids=cold)
    assert found.sort(1).values.tolist() == [list(range(NUM_ITEMS + 1))] * 3
    torch.testing.assert_close(scores, exact.gather(1, found), rtol=1e-4, atol=1e-4)
    narrow, _ = hybrid_search(new, context, grown_trie, width=1, num_results=1, cold_ids=cold)
    proposed = beam_search(new, context, grown_trie, width=1, num_results=1).item_ids
    better = exact[:, NUM_ITEMS:] > exact.gather(1, proposed)
    assert ((narrow == NUM_ITEMS) == (better | (proposed == NUM_ITEMS))).all()
