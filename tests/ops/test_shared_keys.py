"""Streams reading their history's table of keys, against one history at a time: both bodies, masks, shared keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sidera.ops.attention import looped_attention
from sidera.ops.shared_keys import Streams, shared_attention

GROUPS, HEADS, KEYS, DIM, HISTORIES = 2, 6, 9, 4, 4
COUNTS = [(2, 2, 2, 2), (0, 1, 1, 5), (1, 1, 3, 3), (0, 0, 0, 2)]  # streams of each history, rising


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, counts: tuple[int, ...]) -> Tensor:
    offsets, lengths = torch.tensor([0, *counts]).cumsum(0) * q.shape[1], torch.nn.functional.pad(mask.sum(1), (1, 0))
    keys, values = (part.transpose(1, 2)[mask] for part in (k, v))  # (Tk, R, E)
    read = looped_attention(q.flatten(0, 1), keys, values, offsets=offsets, key_offsets=lengths.cumsum(0))
    return read.view_as(q)


def make(counts: tuple[int, ...], padded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(sum(counts), 3, HEADS, DIM, generator=generator, requires_grad=True)
    k, v = (torch.randn(HISTORIES, GROUPS, KEYS, DIM, generator=generator, requires_grad=True) for _ in range(2))
    lengths = torch.tensor([KEYS, 1, 5, 2]) if padded else torch.full((HISTORIES,), KEYS)
    return q, k, v, torch.arange(KEYS) < lengths[:, None]


def both_bodies(counts: tuple[int, ...]) -> list[Streams]:
    streams = Streams.of(torch.tensor([0, *counts]).cumsum(0))
    written, histories, moved = streams.sorted()
    assert written.runs
    for order in (histories, moved):
        assert order is None or torch.equal(order, torch.arange(len(order)))  # the counts rise already
    return [streams, written]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients_are_those_of_the_loop(counts: tuple[int, ...], padded: bool, shared: bool) -> None:
    q, k, v, mask = make(counts, padded)
    leaves, v = ((q, k), k) if shared else ((q, k, v), v)
    expected = reference(q, k, v, mask, counts)
    theirs = torch.autograd.grad(expected.sin().sum(), leaves)
    for streams in both_bodies(counts):
        found = shared_attention(q, k, v, mask, streams)
        torch.testing.assert_close(found, expected)
        for one, other in zip(torch.autograd.grad(found.sin().sum(), leaves), theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_keys_of_any_layout_and_a_second_pass_backward() -> None:
    """Gradients are written into memory of their own, so the keys' strides must not matter."""
    counts = (1, 1, 2, 2)
    q, k, v, mask = make(counts, padded=True)
    strided_k, strided_v = (part.detach().transpose(1, 2).contiguous().transpose(1, 2) for part in (k, v))
    strided = (strided_k.requires_grad_(), strided_v.requires_grad_())
    assert not strided[0].is_contiguous()
    expected = torch.autograd.grad(reference(q, k, v, mask, counts).sin().sum(), (k, v))
    loss = shared_attention(q, *strided, mask, both_bodies(counts)[1]).sin().sum()
    for _ in range(2):
        for one, other in zip(torch.autograd.grad(loss, strided, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
