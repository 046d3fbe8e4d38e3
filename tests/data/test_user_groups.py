"""Users divided by their keys: disjoint, stable, of the sizes asked for; and what an items table says in numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sidera.core import InputError
from sidera.data.features import item_numbers
from sidera.data.split import leave_one_out, user_groups
from sidera.data.tiny import checkerboard


def test_groups_have_their_shares_and_hang_on_the_key_alone() -> None:
    keys = [f"u{number}" for number in range(4000)]
    groups = user_groups(keys, (0.5, 0.25, 0.25))
    assert np.abs(np.bincount(groups) / 4000 - (0.5, 0.25, 0.25)).max() < 0.03
    assert user_groups(keys[7:9], (0.5, 0.25, 0.25)).tolist() == groups[7:9].tolist()
    other = user_groups(keys, (0.5, 0.25, 0.25), salt="valid")
    assert 0.3 < (groups == other).mean() < 0.45  # independent: 0.375


@pytest.mark.parametrize("shares", [(), (0.5, 0.6), (1.0, 0.0), (1.5, -0.5)])
def test_shares_must_sum_to_one(shares: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="shares of users"):
        user_groups(["a"], shares)


def test_a_split_of_some_users_teaches_nothing_of_the_others() -> None:
    dataset = checkerboard()
    mask = np.arange(dataset.num_users) % 3 == 0
    split = leave_one_out(dataset).of_users(dataset, mask)
    assert (split.train_ends[~mask] == dataset.offsets[:-1][~mask]).all()
    assert (split.train_ends[mask] > dataset.offsets[:-1][mask]).all()
    assert mask[split.test.user_ids].all()
    assert len(split.test) == mask.sum()


def test_numbers_marks_and_vectors_of_items() -> None:
    items = pa.table(
        {
            "key": ["a", "b", "c", "d"],
            "length": [1.0, 10.0, 100.0, None],
            "viral": [True, False, False, False],
            "year": [1990, 2000, 2010, 2020],
            "content": [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]],
        }
    )
    numbers = item_numbers(items)
    assert numbers.shape == (4, 4)  # no year
    assert numbers[3, 0] == 0  # unknown
    np.testing.assert_allclose(np.diff(numbers[:3, 0]), np.log([11 / 2, 101 / 11]) / numbers_spread(), rtol=1e-5)
    np.testing.assert_allclose(numbers[:, 1:].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(numbers[:, 1:].std(0), 1, atol=1e-5)


def numbers_spread() -> float:
    """Of the logarithms of the lengths that are known."""
    return float(np.log1p([1.0, 10.0, 100.0]).std())


def test_a_table_without_numbers() -> None:
    assert item_numbers(pa.table({"key": ["a", "b"]})).shape == (2, 0)
