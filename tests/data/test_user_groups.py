"""Users divided by their keys: disjoint, stable, of the sizes asked for; and what an items table says in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from sidera.core import InputError
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
