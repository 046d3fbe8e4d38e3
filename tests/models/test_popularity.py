"""Popularity: the same list for everybody, by training events."""

from __future__ import annotations

import pytest
import torch
from small_catalog import small_catalog

from hand_made import hand_made
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.features import FeatureSchema
from sidera.data.split import item_popularity, leave_one_out
from sidera.data.tiny import checkerboard
from sidera.models.retrievers.popularity import Popularity


def test_scores_are_counts_of_the_training_part() -> None:
    dataset = checkerboard()
    split = leave_one_out(dataset)
    model = Popularity(Popularity.Config(), small_catalog(dataset.num_items + 2, (8, 8, 2)))  # type: ignore[arg-type]
    model.fit_once(View(dataset, split, FeatureSchema()))
    scores = model.item_scores(hand_made(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3])))
    assert scores.tolist() == [[*item_popularity(dataset, split).tolist(), 0, 0]] * 2


def test_an_impossible_history_is_refused() -> None:
    with pytest.raises(InputError, match="max_history = 0"):
        Popularity.Config(max_history=0)
