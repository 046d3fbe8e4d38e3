"""Item-kNN against dictionaries."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_catalog import small_catalog

from hand_made import hand_made
from sidera.core import InputError
from sidera.models.retrievers.item_knn import ItemKNN

NUM_ITEMS = 12


def reference_similarity(sequences: list[list[int]], config: ItemKNN.Config) -> dict[tuple[int, int], float]:
    weights: Counter[tuple[int, int]] = Counter()
    for sequence in sequences:
        for place, item in enumerate(sequence):
            for step in range(1, config.window + 1):
                if place + step < len(sequence) and sequence[place + step] != item:
                    weights[item, sequence[place + step]] += 1 / step
                    weights[sequence[place + step], item] += config.backward / step
    events = Counter(item for sequence in sequences for item in sequence)
    return {
        (left, right): weight / ((events[left] + config.shrink) * (events[right] + config.shrink)) ** 0.5
        for (left, right), weight in weights.items()
    }


def counted(sequences: list[list[int]], **settings: Any) -> ItemKNN:
    model = ItemKNN(ItemKNN.Config(**settings), small_catalog(NUM_ITEMS))  # type: ignore[arg-type]
    offsets = np.cumsum([0] + [len(sequence) for sequence in sequences])
    model.count(np.array([item for sequence in sequences for item in sequence], dtype=np.int64), offsets)
    return model


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9), min_size=1, max_size=6),
    history=st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=6),
    window=st.integers(1, 4),
    backward=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_scores_equal_a_dictionary(
    sequences: list[list[int]], history: list[int], window: int, backward: float
) -> None:
    model = counted(sequences, window=window, backward=backward, neighbours=NUM_ITEMS)
    similarity = reference_similarity(sequences, model.config)
    expected = [
        sum(
            0.5 ** (back / model.config.half_life) * similarity.get((item, candidate), 0.0)
            for back, item in enumerate(reversed(history))
        )
        for candidate in range(NUM_ITEMS)
    ]
    found = model.item_scores(hand_made(torch.tensor(history), torch.tensor([0, len(history)])))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_only_the_nearest_neighbours_are_kept() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, NUM_ITEMS, 8).tolist() for _ in range(20)]
    model = counted(sequences, neighbours=3)
    similarity = reference_similarity(sequences, model.config)
    for item in range(NUM_ITEMS):
        best = sorted((value for (left, _), value in similarity.items() if left == item), reverse=True)[:3]
        np.testing.assert_allclose(model.votes[item].numpy(), best, rtol=1e-5)


def test_users_do_not_meet() -> None:
    """The last event of one user and the first of the next are no pair."""
    assert counted([[1], [2]]).votes.sum() == 0
    assert counted([[1, 2]]).votes.sum() > 0


def test_counting_twice_counts_once() -> None:
    model = counted([[1, 2, 3], [1, 2]], neighbours=4)
    before = model.votes.clone()
    model.count(np.array([1, 2, 3, 1, 2]), np.array([0, 3, 5]))
    torch.testing.assert_close(model.votes, before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"window": 0}, "window = 0"),
        ({"half_life": 0.0}, "half_life = 0.0"),
        ({"neighbours": 0}, "neighbours = 0"),
        ({"backward": -1.0}, "backward = -1.0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        ItemKNN.Config(**change)
