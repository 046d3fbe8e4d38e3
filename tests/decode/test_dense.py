"""Top items against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.core import InputError
from sidera.decode import select
from sidera.decode.dense import dense_search, top_items


def by_sorting(scores, k, exclude, alive):
    scores = scores.clone()
    ids, offsets = exclude
    for row in range(len(scores)):
        scores[row, ids[offsets[row] : offsets[row + 1]]] = -torch.inf
    scores[:, ~alive] = -torch.inf
    expected = [
        sorted((-value, item) for item, value in enumerate(row) if value > -np.inf)[:k] for row in scores.tolist()
    ]
    return [[item for _, item in row] + [-1] * (k - len(row)) for row in expected]


@st.composite
def questions(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_rows, num_items = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    lengths = rng.integers(0, num_items, num_rows)
    ids = torch.from_numpy(rng.integers(0, num_items, lengths.sum()))
    alive = torch.from_numpy(rng.random(num_items) < 0.8)
    return num_rows, num_items, rng, (ids, torch.from_numpy(np.append(0, np.cumsum(lengths)))), alive


@given(questions(), st.sampled_from([1, 3, 50]))
@settings(max_examples=80, deadline=None)
def test_top_items_equal_a_full_sort(question, k):
    num_rows, num_items, rng, exclude, alive = question
    scores = torch.from_numpy(rng.integers(0, 4, (num_rows, num_items))).float()  # many ties
    before = scores.clone()
    ids, values = top_items(scores, k, exclude=exclude, alive=alive)
    assert ids.tolist() == by_sorting(scores, k, exclude, alive)
    assert torch.equal(scores, before)
    found = ids >= 0
    assert torch.equal(values[found], scores.gather(1, ids.clamp(min=0))[found])
    assert (values[~found] == -torch.inf).all()


@given(questions(), st.sampled_from([1, 3, 50]), st.sampled_from([1, 4, 100]))
@settings(max_examples=80, deadline=None)
def test_dense_search_equals_top_items_for_every_chunk_size(question, k, chunk):
    num_rows, num_items, rng, exclude, alive = question
    users = torch.from_numpy(rng.integers(-2, 3, (num_rows, 2, 3))).float()  # whole numbers: exact products, many ties
    items = torch.from_numpy(rng.integers(-2, 3, (num_items, 3))).float()
    scores = torch.einsum("bqd,nd->bqn", users, items).amax(1)
    ids, values = dense_search(users, items, k, exclude=exclude, alive=alive, chunk=chunk)
    expected_ids, expected_values = top_items(scores, k, exclude=exclude, alive=alive)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(values, expected_values)


def test_nan_scores_are_refused():
    with pytest.raises(FloatingPointError, match="NaN"):
        top_items(torch.tensor([[1.0, torch.nan, 0.0]]), 1)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="k is 0; allowed: 1 or more"):
        top_items(torch.zeros(1, 3), 0)
    with pytest.raises(InputError, match="k is 0"):
        dense_search(torch.zeros(1, 1, 2), torch.zeros(3, 2), 0)
    with pytest.raises(InputError, match="exclude names 2 histories; allowed: 1"):
        top_items(torch.zeros(1, 3), 1, exclude=(torch.tensor([0]), torch.tensor([0, 1, 1])))


@pytest.mark.parametrize("columns", [4, 4096])
def test_of_many_equal_scores_the_leftmost_are_taken_wherever_they_stand(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stable sort, with ties at the start, at the end, everywhere and nowhere."""
    monkeypatch.setattr(select, "TIE_COLUMNS", columns)
    generator = torch.Generator().manual_seed(0)
    for distinct in (1, 2, 5, 1000):
        scores = torch.randint(distinct, (7, 200), generator=generator).float()
        scores[0, :150] = -torch.inf
        scores[1] = torch.arange(200.0)
        scores[2, :199] = 9999.0
        for k in (1, 3, 50, 199, 200):
            expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
            assert torch.equal(select.best_first(scores, k), expected)
