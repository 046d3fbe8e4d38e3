"""Transitions against a dictionary, and the choice of their settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hand_made import hand_made
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.features import FeatureSchema
from sidera.data.split import leave_one_out
from sidera.data.tiny import checkerboard, checkerboard_next
from sidera.models.retrievers import pairs
from sidera.models.retrievers.transitions import FADINGS, Transitions

NUM_ITEMS = 7


def small_catalog(num_items: int) -> Any:
    return SimpleNamespace(item_keys=np.arange(num_items).astype(str))


def counted(sequences: list[list[int]], norm: float, fading: float, **config: Any) -> Transitions:
    model = Transitions(Transitions.Config(**config), small_catalog(NUM_ITEMS))
    offsets = np.cumsum([0] + [len(sequence) for sequence in sequences])
    flat = np.array([item for sequence in sequences for item in sequence], dtype=np.int64)
    model.count(flat, offsets, norm, fading)
    return model


def scores_of(model: Transitions, history: list[int]) -> np.ndarray:
    batch = hand_made(torch.tensor(history), torch.tensor([0, len(history)]))
    return model.item_scores(batch)[0].numpy()


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9), min_size=1, max_size=6),
    history=st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=6),
    window=st.integers(1, 4),
    step_decay=st.sampled_from([0.5, 1.0]),
    fading=st.sampled_from([0.25, 1.0]),
    norm=st.sampled_from([0.0, 0.5]),
)
def test_scores_equal_a_dictionary(
    sequences: list[list[int]], history: list[int], window: int, step_decay: float, fading: float, norm: float
) -> None:
    counts: dict[tuple[int, int], float] = {}
    events = [item for sequence in sequences for item in sequence]
    for sequence in sequences:
        for place, item in enumerate(sequence):
            for step, after in enumerate(sequence[place + 1 : place + 1 + window]):
                counts[item, after] = counts.get((item, after), 0.0) + step_decay**step
    expected = [
        sum(
            fading**back * np.log1p(counts[item, other] / (events.count(other) * NUM_ITEMS / len(events)) ** norm)
            for back, item in enumerate(reversed(history))
            if (item, other) in counts
        )
        for other in range(NUM_ITEMS)
    ]
    model = counted(sequences, norm, fading, window=window, step_decay=step_decay, neighbours=NUM_ITEMS)
    np.testing.assert_allclose(scores_of(model, history), expected, rtol=1e-4, atol=1e-5)


def test_counts_have_a_direction_and_an_item_may_follow_itself() -> None:
    model = counted([[0, 1, 2], [3, 3]], 0.0, 0.5, window=2)
    assert scores_of(model, [0])[1] > scores_of(model, [0])[2] > 0
    assert scores_of(model, [2]).sum() == 0
    assert scores_of(model, [3])[3] > 0


def test_ranges_of_items_are_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, NUM_ITEMS, 20).tolist() for _ in range(5)]
    whole = counted(sequences, 0.3, 0.5)
    monkeypatch.setattr(pairs, "PAIRS", 50)
    assert torch.equal(counted(sequences, 0.3, 0.5).votes, whole.votes)


def test_the_settings_come_from_the_validation_rows() -> None:
    """On a log whose next item follows from the newest one alone, the quickest fading wins; a given one stays."""
    log = checkerboard()
    view = View(log, leave_one_out(log), FeatureSchema())
    model = Transitions(Transitions.Config(), small_catalog(log.num_items))
    model.fit_once(view)
    assert float(model.chosen[1]) == pytest.approx(min(FADINGS))
    best = scores_of_log(model, [3, 7])
    assert int(best.argmax()) == checkerboard_next()[7]
    fixed = Transitions(Transitions.Config(choose=False, norm=0.9, fading=0.85), small_catalog(log.num_items))
    fixed.fit_once(view)
    assert [round(float(value), 4) for value in fixed.chosen] == [0.9, 0.85]


def scores_of_log(model: Transitions, history: list[int]) -> np.ndarray:
    return model.item_scores(hand_made(torch.tensor(history), torch.tensor([0, len(history)])))[0].numpy()


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(InputError, match="fading"):
        Transitions.Config(fading=0.0)
    with pytest.raises(InputError, match="norm"):
        Transitions.Config(norm=2.0)
