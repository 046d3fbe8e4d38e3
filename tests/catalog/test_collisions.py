"""Collision policies: unique codes whatever the vectors, and no code used twice over time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.catalog.collisions import resolve
from sidera.catalog.matching import cheapest_matching
from sidera.catalog.rq_kmeans import RQKMeans, fit_rq_kmeans
from sidera.catalog.sinkhorn import sinkhorn_codes
from sidera.core import InputError


def with_duplicates(num_items: int, num_distinct: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn(num_distinct, 4, generator=generator)
    return distinct[torch.randint(num_distinct, (num_items,), generator=generator)]


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(4, 64),
    num_distinct=st.integers(1, 64),
    num_levels=st.integers(1, 3),
    policy=st.sampled_from(["extra_digit", "greedy", "sinkhorn"]),
    balanced=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_codes_are_unique(
    num_items: int, num_distinct: int, num_levels: int, policy: str, balanced: bool, seed: int
) -> None:
    vectors = with_duplicates(num_items, num_distinct, seed)
    codebooks, codes = fit_rq_kmeans(vectors, num_levels, 4, balanced=balanced, iterations=4, seed=seed)
    popularity = np.arange(num_items)
    if policy != "extra_digit" and num_items > 4**num_levels:
        with pytest.raises(InputError, match=f"{num_items} items but .* name only {4**num_levels}"):
            resolve(policy, codes.numpy(), vectors, codebooks, popularity)
        return
    resolved = resolve(policy, codes.numpy(), vectors, codebooks, popularity)
    assert len(np.unique(resolved.codes, axis=0)) == num_items
    assert (resolved.codes >= 0).all()
    assert (resolved.codes < np.array(resolved.level_sizes)).all()
    if policy == "extra_digit":
        assert np.array_equal(resolved.codes[:, :-1], codes.numpy())
    else:
        moved = (resolved.codes != codes.numpy()).any(axis=1).sum()
        assert resolved.num_moved == moved >= resolved.num_overflowed


def test_extra_digit_counts_by_popularity_and_rounds_its_level_up() -> None:
    codebooks = RQKMeans((torch.tensor([[0.0], [1.0]]),))
    codes = np.array([[0], [1], [0], [0]])
    resolved = resolve("extra_digit", codes, torch.zeros(4, 1), codebooks, np.array([5, 0, 9, 5]))
    assert resolved.codes.tolist() == [[0, 1], [1, 0], [0, 0], [0, 2]]
    assert resolved.level_sizes == (2, 8)


def test_greedy_gives_the_last_codes_at_least_total_distance() -> None:
    last = torch.tensor([[0.0], [1.0], [2.0]])
    codebooks = RQKMeans((torch.zeros(1, 1), last))
    vectors = torch.tensor([[0.1], [0.4], [0.2]])  # all nearest to code 0; moving 0.4 then 0.2 costs least
    resolved = resolve("greedy", np.array([[0, 0], [0, 0], [0, 0]]), vectors, codebooks, np.zeros(3))
    costs = (vectors - last.T).square()
    total = sum(float(costs[item, code]) for item, code in enumerate(resolved.codes[:, 1]))
    best = min(
        sum(float(costs[item, code]) for item, code in enumerate(order))
        for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    )
    assert total == pytest.approx(best)
    assert resolved.num_moved == 2


def test_greedy_sends_overflow_to_the_next_best_prefix() -> None:
    codebooks = RQKMeans((torch.tensor([[0.0], [10.0], [3.0]]), torch.tensor([[0.0], [1.0]])))
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    vectors = torch.tensor([[0.0], [0.1], [1.2]])
    resolved = resolve("greedy", codes, vectors, codebooks, np.zeros(3))
    assert resolved.num_overflowed == 1
    assert resolved.codes[2].tolist() == [2, 0]  # the farthest from prefix 0 leaves, to 3.0 and not to 10.0


def test_sinkhorn_parts_items_of_one_code_and_only_those() -> None:
    """Ten items take the nearest of 16 codes: those that stand alone stay, the others spread over codes near them."""
    generator = torch.Generator().manual_seed(1)
    codebooks = RQKMeans((torch.zeros(1, 4), torch.randn(16, 4, generator=generator)))
    vectors = torch.randn(10, 4, generator=generator)
    codes = codebooks.encode(vectors)
    resolved = resolve("sinkhorn", codes.numpy(), vectors, codebooks, np.zeros(10, int))
    alone = torch.bincount(codes[:, 1], minlength=16)[codes[:, 1]] == 1
    assert 0 < int(alone.sum()) < 10
    assert np.array_equal(resolved.codes[alone.numpy()], codes.numpy()[alone.numpy()])
    assert resolved.num_residual == 0
    assert len(np.unique(resolved.codes, axis=0)) == 10
    costs = torch.cdist(vectors, codebooks.levels[1]).square()
    spent = float(costs[torch.arange(10), torch.from_numpy(resolved.codes[:, 1]).long()].sum())
    assert spent < 1.3 * float(costs.min(1).values.sum())


def test_sinkhorn_gives_every_code_its_share() -> None:
    costs = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 0.5, 8)
    assert torch.bincount(costs.argmin(1), minlength=8).max() > 16
    assert torch.bincount(sinkhorn_codes(costs), minlength=8).max() <= 12
    assert torch.equal(sinkhorn_codes(costs + torch.arange(64)[:, None]), sinkhorn_codes(costs))


def test_equal_vectors_are_what_transport_leaves_over() -> None:
    codebooks = RQKMeans((torch.zeros(1, 1), torch.arange(5.0)[:, None]))
    vectors = torch.tensor([[2.0], [2.0], [2.0]])
    resolved = resolve("sinkhorn", codebooks.encode(vectors).numpy(), vectors, codebooks, np.zeros(3, int))
    assert sorted(resolved.codes[:, 1].tolist()) == [1, 2, 3]
    assert resolved.num_residual == 2


def test_share_leaves_codes_alone() -> None:
    vectors = with_duplicates(20, 3, 0)
    codebooks, codes = fit_rq_kmeans(vectors, 2, 2)
    assert np.array_equal(resolve("share", codes.numpy(), vectors, codebooks, np.zeros(20)).codes, codes.numpy())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 1000), st.booleans())
def test_matching_agrees_with_scipy(num_rows: int, spare: int, seed: int, ties: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    costs = rng.normal(size=(num_rows, num_rows + spare))
    costs = np.round(costs) if ties else costs
    columns = cheapest_matching(costs)
    assert len(set(columns.tolist())) == num_rows
    rows, best = optimize.linear_sum_assignment(costs)
    assert costs[np.arange(num_rows), columns].sum() == pytest.approx(costs[rows, best].sum())
