"""Popularity: the same list for everybody, by training events."""

from __future__ import annotations

import pytest
import torch
from small_catalog import small_catalog
from tests.hand_made import hand_made

from sidera.core import InputError
from sidera.models.retrievers.popularity import Popularity


def test_scores_are_the_catalogues_counts() -> None:
    catalog = small_catalog()
    model = Popularity(Popularity.Config(), catalog)  # type: ignore[arg-type]
    scores = model.item_scores(hand_made(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3])))
    assert scores.tolist() == [catalog.popularity.tolist()] * 2


def test_an_impossible_history_is_refused() -> None:
    with pytest.raises(InputError, match="max_history = 0"):
        Popularity.Config(max_history=0)
