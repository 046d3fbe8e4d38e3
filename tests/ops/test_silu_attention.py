"""HSTU's attention against the loop over whole squares: values, gradients, layouts, hostile times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sidera.ops import silu_attention as module
from sidera.ops.silu_attention import TIME_BUCKETS, Pairs, looped_silu_attention, silu_attention, time_buckets

LONGEST = 12


def case(lengths: list[int], num_heads: int, seed: int = 0) -> tuple[Tensor, ...]:
    """qkv, offsets, times, asked, both tables of biases; times stand still, run backward and leap by years."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    qkv = torch.randn(total, 3, num_heads, 4, generator=generator)
    times = torch.randint(-5, 10**8, (total,), generator=generator)
    times[::3] = 77
    asked = times + torch.randint(-1000, 1000, (total,), generator=generator)
    biases = (torch.randn(size, generator=generator) for size in (LONGEST, TIME_BUCKETS))
    return qkv, offsets, times, asked, *biases


@pytest.mark.parametrize("lengths", [[7], [3, 12, 1, 5], [4, 4, 4], [0, 5, 0, 9], [1, 1], [0]])
@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("strip", [1, 5, 48])
def test_values_and_gradients_equal_the_loop(
    lengths: list[int], num_heads: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRIP", strip)
    qkv, offsets, times, asked, *biases = case(lengths, num_heads)
    weights = torch.randn(qkv[:, 0].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for fast in (True, False):
        inputs = [value.clone().requires_grad_() for value in (qkv, *biases)]
        if fast:
            out = silu_attention(inputs[0], Pairs.of(offsets, times, asked), *inputs[1:], LONGEST)
        else:
            out = looped_silu_attention(inputs[0], offsets, times, asked, *inputs[1:], LONGEST)
        (out * weights).sum().backward()
        results.append((out.detach(), *(value.grad for value in inputs)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_bf16_is_near_f32() -> None:
    qkv, offsets, times, asked, *biases = case([9, 4], 2)
    pairs = Pairs.of(offsets, times, asked)
    exact = silu_attention(qkv, pairs, *biases, LONGEST)
    half = qkv.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = silu_attention(half, pairs, *biases, LONGEST)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert half.grad is not None
    assert half.grad.isfinite().all()
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)


def test_buckets_of_time() -> None:
    seconds = torch.tensor([0, 1, -1, 2, 60, -60, 86_400, 10**9, 2**62])
    buckets = time_buckets(seconds).long()
    by_hand = (seconds.abs().clamp(min=1).double().log() / 0.301).floor().long()
    assert torch.equal(buckets, by_hand.clamp(max=TIME_BUCKETS - 1))
    assert buckets[:3].tolist() == [0, 0, 0]  # equal times, and a second either way
    assert buckets[4] == buckets[5]


def test_a_constant_divides_and_not_the_length() -> None:
    """Trap: weights do not sum to one. Twice the divisor is half the answer, whatever the length of the row."""
    qkv, offsets, times, asked, *biases = case([2, 9], 1)
    pairs = Pairs.of(offsets, times, asked)
    whole, half = (silu_attention(qkv, pairs, *biases, divisor) for divisor in (10, 20))
    torch.testing.assert_close(whole, 2 * half)
