"""An index answers as the exact scan does: filters, seen, late and removed items included; recall is measured."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from sidera.core import InputError
from sidera.decode import vector_index
from sidera.decode.dense import dense_search
from sidera.decode.vector_index import IndexConfig, IndexKind, VectorIndex, recall_of

pytest.importorskip("faiss", reason="an index needs faiss (extra: dense)")
NUM_ITEMS, DIMS = 3000, 16
KINDS: list[IndexKind] = ["flat", "ivf", "hnsw"]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """In quarters: products are exact on any processor, and equal scores are equal."""
    return (4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).round() / 4


def items(number: int = NUM_ITEMS) -> torch.Tensor:
    """In thirty clusters, and every fiftieth item twice."""
    vectors = 2 * drawn(30, DIMS, seed=1)[torch.arange(NUM_ITEMS) % 30] + drawn(NUM_ITEMS, DIMS, seed=2)
    vectors[1::50] = vectors[::50]
    return vectors[:number]


def users(number: int = 40, queries: int = 1) -> torch.Tensor:
    return drawn(number, queries, DIMS, seed=3)


def build(kind: IndexKind, number: int = NUM_ITEMS, recall: float = 0.9) -> VectorIndex:
    return VectorIndex.build(items(number), IndexConfig(kind, recall), lambda: users(100))


def bars(number: int = 40) -> dict[str, Any]:
    """Another half of the items for each user, and up to 60 that were seen: the best of them first."""
    best, _ = dense_search(users(number), items(), 60)
    lengths = torch.arange(number) % 61
    seen = torch.cat([best[row, : lengths[row]] for row in range(number)])
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return {"exclude": (seen, offsets), "alive": drawn(number, NUM_ITEMS, seed=4) > 0}


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("barred", [False, True])
def test_the_exact_index_is_the_scan(queries: int, barred: bool) -> None:
    limits = bars() if barred else {}
    wanted = dense_search(users(queries=queries), items(), 10, **limits)
    found = build("flat").search(users(queries=queries), 10, **limits)
    torch.testing.assert_close(found[1], wanted[1])
    assert found[0].tolist() == wanted[0].tolist()  # of equal items the lower first


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_looks_until_it_finds_what_it_should(kind: IndexKind) -> None:
    index, lower = build(kind, recall=0.97), build(kind, recall=0.3)
    assert index.recall >= 0.97
    assert index.effort >= lower.effort
    found, scores = index.search(users(), 10)
    wanted, _ = dense_search(users(), items(), 10)
    assert recall_of(found, wanted) > 0.85
    torch.testing.assert_close(scores, (users()[:, 0, None] * items()[found]).sum(-1), rtol=1e-4, atol=1e-4)
    assert (scores.diff() <= 0).all()
    assert all(len(set(row)) == 10 for row in found.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_filters_and_seen_items_are_exact(kind: IndexKind) -> None:
    limits = bars()
    found, scores = build(kind).search(users(), 10, **limits)
    assert (found >= 0).all()
    assert scores.isfinite().all()
    seen, offsets = limits["exclude"]
    for row in range(len(found)):
        assert not {*found[row].tolist()} & {*seen[offsets[row] : offsets[row + 1]].tolist()}
        assert limits["alive"][row, found[row]].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_leaves_little_is_answered_whole(kind: IndexKind) -> None:
    alive = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    alive[[5, 700, 2999]] = True
    exclude = (torch.tensor([700]), torch.tensor([0, *[1] * 40]))
    found, scores = build(kind).search(users(), 5, alive=alive, exclude=exclude)
    assert [sorted(row) for row in found.tolist()] == [[-1, -1, -1, 5, 2999], *[[-1, -1, 5, 700, 2999]] * 39]
    assert (scores.isinf() == (found < 0)).all()
    nothing, _ = build(kind).search(users(), 5, alive=torch.zeros(NUM_ITEMS, dtype=torch.bool))
    assert (nothing == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_all_items_can_be_asked_for(kind: IndexKind) -> None:
    found, _ = build(kind, number=50, recall=0.5).search(users(3), 60)
    wanted, _ = dense_search(users(3), items(50), 60)
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_late_items_are_found_and_an_index_is_built_again_when_there_are_many(
    kind: IndexKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(kind, number=NUM_ITEMS - 9)
    longer = items()
    longer[-1] = 50 * users(1)[0, 0]
    grown = index.extended(longer, lambda: users(100))
    assert grown.built is index.built
    assert grown.search(users(1), 3)[0][0, 0] == NUM_ITEMS - 1
    assert index.search(users(1), 3)[0][0, 0] < NUM_ITEMS - 9  # the older one has not changed
    monkeypatch.setattr(vector_index, "FEW_LATE", 5)
    monkeypatch.setattr(vector_index, "LATE_SHARE", 10**6)
    again = index.extended(longer, lambda: users(100))
    assert again.num_built == NUM_ITEMS
    assert again.search(users(1), 3)[0][0, 0] == NUM_ITEMS - 1


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"index = 'lsh'; allowed: flat, ivf, hnsw"):
        IndexConfig("lsh")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="index_recall = 2"):
        IndexConfig("ivf", 2)
    with pytest.raises(FloatingPointError):
        build("flat").search(users() * float("nan"), 3)
    monkeypatch.setattr(vector_index, "MOST_EFFORT", 1)
    with pytest.raises(InputError, match=r"finds 0\.\d+ of the exact top 10"):
        build("ivf", recall=0.999)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"faiss.*pip install 'sidera\[dense\]'"):
        build("flat")
