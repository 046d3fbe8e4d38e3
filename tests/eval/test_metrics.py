"""Metrics against a slow reference that walks over rows and orders, and on cases worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.eval.metrics import (
    PopularitySlices,
    auc,
    coverage,
    exposure_counts,
    gini,
    length_slices,
    row_metrics,
    target_ranks,
)


def slow_metrics(served: list[int], target: int, ks: list[int]) -> dict[str, float]:
    """One row, one position at a time."""
    found: dict[str, float] = {}
    for k in ks:
        found[f"recall@{k}"] = found[f"ndcg@{k}"] = 0.0
        for place, item in enumerate(served[:k]):
            if item == target:
                found[f"recall@{k}"] = 1.0
                found[f"ndcg@{k}"] = 1 / math.log2(place + 2)
    found[f"mrr@{len(served)}"] = next((1 / (p + 1) for p, item in enumerate(served) if item == target), 0.0)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 15), st.integers(1, 30))
def test_metrics_equal_the_slow_reference(seed: int, num_rows: int, k: int, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    item_ids = np.full((num_rows, k), -1)
    for row in item_ids:
        row[: min(k, num_items)] = rng.permutation(num_items)[:k]
    targets = rng.integers(num_items, size=num_rows)
    ks = sorted({1, (k + 1) // 2, k})
    fast = row_metrics(target_ranks(item_ids, targets), ks)
    for row in range(num_rows):
        for name, value in slow_metrics(item_ids[row].tolist(), int(targets[row]), ks).items():
            assert fast[name][row] == pytest.approx(value), name
            if not name.startswith("mrr"):
                assert fast[f"expected_{name}"][row] == pytest.approx(value)  # nothing ties


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_expected_metrics_average_over_every_order_inside_a_shared_id(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    leaves = rng.integers(4, size=7)  # semantic ID of each of 7 items
    leaf_order = rng.permutation(4)
    served = [item for leaf in leaf_order for item in np.flatnonzero(leaves == leaf)]
    target = int(rng.integers(7))
    item_ids = np.array([(served + [-1] * k)[:k]])
    sizes = np.array([(leaves == leaves[target]).sum()])
    ranks = target_ranks(item_ids, np.array([target]), leaves[item_ids], leaves[[target]], sizes)
    fast = row_metrics(ranks, [k])

    groups = [list(itertools.permutations(np.flatnonzero(leaves == leaf).tolist())) for leaf in leaf_order]
    orders = [list(itertools.chain.from_iterable(parts)) for parts in itertools.product(*groups)]
    slow = [slow_metrics((order + [-1] * k)[:k], target, [k]) for order in orders]
    for name in (f"recall@{k}", f"ndcg@{k}"):
        assert fast[f"expected_{name}"][0] == pytest.approx(np.mean([one[name] for one in slow]))
    if ranks.tie_start[0]:
        places = [order.index(target) + 1 for order in orders]
        assert ranks.expected_rank[0] == pytest.approx(np.mean(places))


def test_by_hand() -> None:
    # the target is 3rd of a list of 4; 2nd row: not there; 3rd row: alone at the top, then padding
    item_ids = np.array([[5, 6, 7, 8], [1, 2, 3, 4], [9, -1, -1, -1]])
    metrics = row_metrics(target_ranks(item_ids, np.array([7, 7, 9])), [2, 4])
    assert metrics["recall@2"].tolist() == [0, 0, 1]
    assert metrics["recall@4"].tolist() == [1, 0, 1]
    assert metrics["ndcg@4"].tolist() == [0.5, 0, 1]  # 1 / log2(1 + 3)
    assert metrics["mrr@4"].tolist() == pytest.approx([1 / 3, 0, 1])


def test_a_hit_of_the_semantic_id_is_not_a_hit_of_the_item() -> None:
    """Three items share the first ID; the target is served last of them. Counting IDs would say recall@1 = 1."""
    item_ids, leaves = np.array([[0, 1, 2, 3]]), np.array([[0, 0, 0, 1]])
    ranks = target_ranks(item_ids, np.array([2]), leaves, np.array([0]), np.array([3]))
    metrics = row_metrics(ranks, [1, 2, 3])
    assert (ranks.rank[0], ranks.expected_rank[0]) == (3, 2.0)
    assert [metrics[f"recall@{k}"][0] for k in (1, 2, 3)] == [0, 0, 1]
    assert [metrics[f"expected_recall@{k}"][0] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_target_that_cannot_be_served_is_missed_though_its_id_is_there() -> None:
    ranks = target_ranks(np.array([[0, 1]]), np.array([2]), np.array([[0, 0]]), np.array([0]), np.array([0]))
    assert row_metrics(ranks, [2])["expected_recall@2"][0] == 0


def test_padding_is_never_a_hit() -> None:
    """Padding has id -1 and some leaf (that of the last item, when indexed carelessly)."""
    ranks = target_ranks(np.array([[4, -1]]), np.array([9]), np.array([[0, 7]]), np.array([7]), np.array([2]))
    assert (ranks.rank[0], ranks.tie_start[0]) == (0, 0)


def test_cutting_a_long_list_equals_ranking_a_short_one() -> None:
    item_ids = np.random.default_rng(0).permuted(np.tile(np.arange(30), (50, 1)), axis=1)
    targets = np.arange(50) % 30
    short, cut = target_ranks(item_ids[:, :7], targets), target_ranks(item_ids, targets).cut(7)
    for name in ("rank", "tie_start", "tie_size", "length"):
        assert np.array_equal(getattr(short, name), getattr(cut, name))


def test_a_cut_off_beyond_the_list_is_refused() -> None:
    with pytest.raises(ValueError, match="@5 asked of lists of 3"):
        row_metrics(target_ranks(np.array([[1, 2, 3]]), np.array([1])), [5])


def test_exposure_coverage_gini() -> None:
    exposure = exposure_counts(np.array([[0, 1], [0, -1]]), 4)
    assert exposure.tolist() == [2, 1, 0, 0]
    assert coverage(exposure) == 0.5
    assert gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 12])) == pytest.approx(0.75)  # (n - 1) / n when one item takes all
    assert gini(np.zeros(3, dtype=int)) == 0
    values = np.array([1, 4, 0, 7, 2])
    slow = sum(abs(a - b) for a in values for b in values) / (2 * len(values) ** 2 * values.mean())
    assert gini(values) == pytest.approx(slow)


def test_popularity_slices_part_all_targets_once() -> None:
    popularity = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 50, 90])
    slices = PopularitySlices.of(popularity)
    assert (slices.head_min, slices.tail_max) == (50, 4)  # 10 warm items: the top 2, the lower 5
    masks = slices.assign(popularity)
    assert np.sum(list(masks.values()), axis=0).tolist() == [1] * 12
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"head": 2, "mid": 3, "tail": 5, "cold": 2}


@pytest.mark.parametrize("popularity", [[0, 0], [3], [2, 2, 2, 2], []])
def test_popularity_slices_of_odd_catalogues(popularity: list[int]) -> None:
    counts = np.array(popularity, dtype=np.int64)
    masks = PopularitySlices.of(counts).assign(counts)
    assert np.sum(list(masks.values()), axis=0).tolist() == [1] * len(popularity)
    assert masks["cold"].tolist() == [count == 0 for count in popularity]


def test_length_slices_part_all_histories_once() -> None:
    lengths = np.arange(0, 300)
    masks = length_slices(lengths)
    assert np.sum(list(masks.values()), axis=0).tolist() == [1] * 300
    assert np.flatnonzero(masks["5-9"]).tolist() == [5, 6, 7, 8, 9]
    assert masks["50+"].sum() == 250


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(scores, np.ones(60)))
