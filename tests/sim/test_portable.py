"""Elementary functions and random bits: accurate, and frozen to the bit."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from sidera.sim import portable, randomness

GRID = np.linspace(-30, 30, 20_001, dtype=np.float32)
SHARES = (np.arange(1, 20_000, dtype=np.float32)) / np.float32(20_000)


def test_exp_log_and_sigmoid_agree_with_double_precision() -> None:
    exact = np.exp(GRID.astype(np.float64))
    assert np.abs(portable.exp(GRID) / exact - 1).max() < 3e-7
    positive = portable.exp(GRID)
    assert np.abs(portable.log(positive) - np.log(positive.astype(np.float64))).max() < 3e-6
    assert np.abs(portable.sigmoid(GRID) - 1 / (1 + np.exp(-GRID.astype(np.float64)))).max() < 1e-6


def test_extreme_arguments_stay_finite() -> None:
    ends = np.array([-1e30, -81, 81, 1e30], dtype=np.float32)
    assert np.isfinite(portable.exp(ends)).all()
    assert portable.sigmoid(ends).tolist() == [portable.sigmoid(ends)[0], portable.sigmoid(ends)[1], 1.0, 1.0]


def test_the_normal_quantile_inverts_the_distribution() -> None:
    shares = np.concatenate([SHARES, np.array([1e-7, 1 - 2**-24], dtype=np.float32)])
    back = [0.5 * math.erfc(-float(x) / math.sqrt(2)) for x in portable.normal_quantile(shares)]
    assert np.abs(np.array(back) - shares).max() < 2e-6


def test_numbers_are_the_same_to_the_bit_as_ever() -> None:
    """A change of this digest changes every log of every seed."""
    sha = hashlib.sha256()
    for values in (portable.exp(GRID), portable.sigmoid(GRID), portable.log(SHARES), portable.normal_quantile(SHARES)):
        sha.update(values.astype("<f4").tobytes())
    own = randomness.keys(3, "users", np.arange(100))
    sha.update(randomness.bits_table(randomness.sub_keys(own, 7), 5, 9).astype("<u8").tobytes())
    assert sha.hexdigest()[:16] == "67a7a863ed88543f"


def test_random_numbers_do_not_depend_on_their_neighbours() -> None:
    own = randomness.keys(0, "users", np.arange(50))
    table = randomness.bits_table(own, 10, 4)
    assert np.array_equal(table[:, 2], randomness.bits(own, 12))
    assert np.array_equal(randomness.keys(0, "users", np.array([33]))[0], own[33])
    assert len(np.unique(table)) == table.size


def test_uniform_numbers_fill_the_open_interval_evenly() -> None:
    words = randomness.bits_table(randomness.keys(1, "test", np.arange(2000)), 0, 50).ravel()
    for numbers in (randomness.uniform(words), randomness.low_uniform(words)):
        assert 0 < numbers.min() < 1e-3
        assert 1 - 1e-3 < numbers.max() < 1
        assert np.abs(np.histogram(numbers, 20, (0, 1))[0] / 5000 - 1).max() < 0.06
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert 0 < randomness.uniform(ends)[0] < randomness.uniform(ends)[1] < 1
    assert randomness.below(ends, 7).tolist() == [0, 6]
    assert abs(np.corrcoef(randomness.uniform(words), randomness.low_uniform(words))[0, 1]) < 0.02
