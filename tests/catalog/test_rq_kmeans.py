"""RQ-KMeans: as good as sklearn, balanced when asked, the same by seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.catalog import balance
from sidera.catalog import kmeans as kmeans_file
from sidera.catalog import nearest as nearest_module
from sidera.catalog.balance import balanced_assign
from sidera.catalog.kmeans import kmeans, reconstruction_error
from sidera.catalog.nearest import nearest
from sidera.catalog.rq_kmeans import RQKMeans, fit_rq_kmeans
from sidera.core import InputError


def blobs(num_points: int, dim: int, num_blobs: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(num_blobs, dim, generator=generator)
    which = torch.randint(num_blobs, (num_points,), generator=generator)
    return centres[which] + torch.randn(num_points, dim, generator=generator)


def test_nearest_agrees_with_cdist_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = blobs(500, 8, 20), blobs(30, 8, 30, seed=1)
    monkeypatch.setattr(nearest_module, "CHUNK_ELEMENTS", 700)  # many chunks, the last one short
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(1))


@pytest.mark.parametrize(("num_blobs", "num_clusters"), [(40, 40), (7, 64)])
def test_kmeans_error_is_within_two_percent_of_sklearn(num_blobs: int, num_clusters: int) -> None:
    sklearn_cluster = pytest.importorskip("sklearn.cluster")
    points = blobs(3000, 12, num_blobs)
    centroids, assignment = kmeans(
        points, num_clusters, balanced=False, iterations=25, generator=torch.Generator().manual_seed(0)
    )
    theirs = sklearn_cluster.KMeans(num_clusters, n_init=1, max_iter=25, random_state=0).fit(points.numpy())
    assert reconstruction_error(points, centroids, assignment) <= 1.02 * theirs.inertia_


def test_kmeans_fills_every_cluster() -> None:
    points = torch.cat([torch.zeros(90, 3), torch.eye(3), 5 * torch.eye(3)])  # nearly all equal
    _, assignment = kmeans(points, 7, balanced=False, iterations=25, generator=torch.Generator().manual_seed(0))
    assert len(assignment.unique()) == 7


def test_balanced_assignment_is_near_the_optimum() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 8, generator=generator) * torch.rand(600, 1, generator=generator)  # crowded in the middle
    centroids = points[:30].clone()
    costs = torch.cdist(points, centroids).square()
    rows, columns = optimize.linear_sum_assignment(costs.repeat_interleave(20, 1).numpy())
    optimum = float(costs[rows, columns // 20].sum())
    assignment, _ = balanced_assign(points, centroids, 20)
    assert int(torch.bincount(assignment).max()) == 20
    assert float(costs[torch.arange(600), assignment].sum()) <= 1.02 * optimum


@pytest.fixture
def shortlists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every balanced assignment bargains on shortlists, as large ones do."""
    monkeypatch.setattr(balance, "WHOLE", 0)
    monkeypatch.setattr(balance, "SHORTLIST", 12)
    monkeypatch.setattr(kmeans_file, "WHOLE", 0)


@pytest.mark.usefixtures("shortlists")
def test_shortlists_are_near_the_optimum_too() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(600, 8, generator=generator) * torch.rand(600, 1, generator=generator)
        centroids = points[:30].clone()
        costs = torch.cdist(points, centroids).square()
        rows, columns = optimize.linear_sum_assignment(costs.repeat_interleave(20, 1).numpy())
        optimum = float(costs[rows, columns // 20].sum())
        cold, prices = balanced_assign(points, centroids, 20)
        warm, _ = balanced_assign(points, centroids, 20, prices)
        for assignment in (cold, warm):
            assert int(torch.bincount(assignment, minlength=30).max()) == 20
            assert float(costs[torch.arange(600), assignment].sum()) <= 1.02 * optimum


@pytest.mark.usefixtures("shortlists")
def test_shortlists_cannot_hold_many_equal_points_and_they_are_placed_all_the_same() -> None:
    points = torch.cat([torch.ones(500, 4), torch.randn(100, 4, generator=torch.Generator().manual_seed(0))])
    codes = fit_rq_kmeans(points, 1, 40, balanced=True, iterations=5, seed=1)[1]
    assert int(torch.bincount(codes[:, 0]).max()) <= 15


def test_a_large_clustering_loses_nothing_by_its_sample_and_its_shortlists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same points whole and in the large way: error within 2 %, nobody above the cap, the same by seed.

    Points without gaps, as item vectors are: on separate blobs single runs of either way differ by several per cent.
    """
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6000, 12, generator=generator) * torch.rand(6000, 1, generator=generator)

    def clustered() -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return kmeans(points, 64, balanced=True, iterations=25, generator=generator)

    whole = clustered()
    for module, name, value in ((balance, "WHOLE", 0), (kmeans_file, "WHOLE", 0), (kmeans_file, "FITTING_SAMPLE", 40)):
        monkeypatch.setattr(module, name, value)
    large, again = clustered(), clustered()
    assert reconstruction_error(points, *large) <= 1.02 * reconstruction_error(points, *whole)
    assert int(torch.bincount(large[1]).max()) <= 94
    assert torch.equal(large[1], again[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 10_000), st.booleans())
def test_balanced_never_exceeds_the_cap(num_points: int, num_clusters: int, seed: int, duplicates: bool) -> None:
    num_clusters = min(num_points, num_clusters)
    points = torch.randn(num_points, 3, generator=torch.Generator().manual_seed(seed))
    if duplicates:
        points = points[torch.zeros(num_points, dtype=torch.int64)]
    codes = fit_rq_kmeans(points, 2, num_clusters, balanced=True, iterations=5, seed=seed)[1]
    for level in range(2):
        assert int(torch.bincount(codes[:, level]).max()) <= -(-num_points // num_clusters)


def test_more_room_than_points_is_refused_the_other_way_round() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        balanced_assign(torch.randn(10, 2), torch.randn(3, 2), 3)


@pytest.mark.parametrize("balanced", [False, True])
def test_same_seed_same_codes(balanced: bool) -> None:
    points = blobs(400, 6, 10)
    runs = [fit_rq_kmeans(points, 2, 16, balanced=balanced, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(runs[0][1], runs[1][1])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].levels, runs[1][0].levels, strict=True))
    assert not torch.equal(runs[0][1], runs[2][1])


def test_codebooks_encode_decode_and_state() -> None:
    points = blobs(400, 6, 10)
    codebooks, codes = fit_rq_kmeans(points, 3, 16)
    assert torch.equal(codebooks.encode(points), codes)  # unbalanced: codes are the nearest
    errors = [float((points - codebooks.decode(codes[:, :depth])).square().sum()) for depth in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 4
    again = RQKMeans.from_state(codebooks.state())
    assert torch.equal(again.decode(codes), codebooks.decode(codes))
    assert again.level_sizes == (16, 16, 16)


def test_more_codes_than_items_is_refused() -> None:
    with pytest.raises(InputError, match="codebook_size = 8 but there are only 5 items"):
        fit_rq_kmeans(torch.randn(5, 2), 1, 8)


def test_one_item() -> None:
    codebooks, codes = fit_rq_kmeans(torch.ones(1, 2), 2, 1, balanced=True)
    assert codes.tolist() == [[0, 0]]
    assert np.allclose(codebooks.decode(codes), 1.0)
