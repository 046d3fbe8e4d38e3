"""The correction of negatives that come as often as they are consumed, against all draws one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from sidera.nn.sampled_softmax import log_chance, log_shares


def test_the_items_of_a_batch_stand_for_all_items() -> None:
    """Over all possible batches the corrected sum of exp(score) is on average that of every item."""
    shares, scores, num_draws = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.5, -1.0, 2.0]), 4
    corrected = (scores - log_chance(shares.log(), num_draws)).exp()
    mean = 0.0
    for drawn in product(range(3), repeat=num_draws):
        mean += float(shares[list(drawn)].prod() * corrected[sorted(set(drawn))].sum())
    torch.testing.assert_close(torch.tensor(mean), scores.exp().sum())


def test_shares_of_items_that_never_come_are_not_zero() -> None:
    shares = log_shares(np.array([2, 2, 0]), num_items=4).exp()
    torch.testing.assert_close(shares, torch.tensor([2.0, 1.0, 3.0, 1.0]) / 7)
    assert float(log_chance(torch.tensor(0.0), 5)) == 0.0  # a single item is in every batch
