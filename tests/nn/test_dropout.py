"""Dropout from packed random words: right rate, right scale, independent lanes, replayed by the seed."""

from __future__ import annotations

import pytest
import torch

from sidera.core import InputError
from sidera.nn.dropout import Dropout
from sidera.ops.dropout import dropout, keep_mask, rounded_rate


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_rate_and_expectation(rate: float) -> None:
    torch.manual_seed(0)
    kept = keep_mask((1000, 400), rate).float()
    used = rounded_rate(rate)
    assert abs(used - rate) <= 0.5 / 128 or rate > 127 / 128
    deviation = (used * (1 - used) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - (1 - used)) < 5 * deviation
    x = torch.ones(1000, 400)
    assert abs(float(dropout(x, rate).mean()) - 1.0) < 5 * deviation / (1 - used)


def test_lanes_of_a_word_are_independent() -> None:
    """Eight masks come out of one word: none may lean on its neighbour, or on a word before."""
    torch.manual_seed(0)
    lanes = keep_mask((200_000, 8), 0.3).double()
    following = torch.cat([lanes[:-1], lanes[1:]], dim=1)  # (words, 16)
    correlation = torch.corrcoef(following.T) - torch.eye(16)
    assert correlation.abs().max() < 5 / 200_000**0.5


def test_seed_replays_the_mask() -> None:
    module, x = Dropout(0.25), torch.randn(33, 7)  # 231 elements: not whole words
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first, second = module(x), module(x)
    torch.set_rng_state(state)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)


def test_gradient_passes_where_values_pass() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 9, requires_grad=True)
    y = dropout(x, 0.4)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad * x.detach(), y.detach())
    assert 0 < int((y == 0).sum()) < y.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert dropout(torch.ones(10, dtype=dtype), 0.5).dtype == dtype


def test_identity_when_not_training() -> None:
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_bad_rate(rate: float) -> None:
    with pytest.raises(InputError, match="dropout"):
        Dropout(rate)
