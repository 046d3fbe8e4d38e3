"""Attention of few queries against torch's: runs of every kind, masks, shared keys and values, layouts of memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.ops.few_queries import Run, few_queries_attention

GROUPS, HEADS, KEYS, DIM = 2, 3, 9, 4
RUNS = [((4, 2),), ((1, 0), (2, 1), (1, 5)), ((2, 3), (2, 1)), ((3, 0), (1, 2))]


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """History after history by torch's own attention."""
    counts = [each for histories, each in runs for _ in range(histories)]
    parts = []
    for history, rows in enumerate(q.split(counts)):
        for row in rows:  # (R, h, E)
            parts.append(F.scaled_dot_product_attention(row, k[history], v[history], attn_mask=mask[history]))
    return torch.stack(parts)


def make(runs: tuple[Run, ...], padded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = sum(histories * each for histories, each in runs)
    q = torch.randn(total, GROUPS, HEADS, DIM, generator=generator, requires_grad=True)
    k, v = (torch.randn(4, GROUPS, KEYS, DIM, generator=generator, requires_grad=True) for _ in range(2))
    lengths = torch.tensor([KEYS, 1, 5, 2]) if padded else torch.full((4,), KEYS)
    return q, k, v, torch.arange(KEYS) < lengths[:, None]


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients_are_those_of_torch(runs: tuple[Run, ...], padded: bool, shared: bool) -> None:
    q, k, v, mask = make(runs, padded)
    wanted = (q, k) if shared else (q, k, v)
    found = [form(q, k, k if shared else v, mask, runs) for form in (few_queries_attention, reference)]
    torch.testing.assert_close(*found)
    ours, theirs = (torch.autograd.grad(output.sin().sum(), wanted) for output in found)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_keys_of_any_layout_and_a_second_pass_backward() -> None:
    """Gradients are written into memory of their own, so the keys' strides must not matter."""
    runs: tuple[Run, ...] = ((2, 1), (2, 2))
    q, k, v, mask = make(runs, padded=True)
    strided_k, strided_v = (part.detach().transpose(1, 2).contiguous().transpose(1, 2) for part in (k, v))
    strided = (strided_k.requires_grad_(), strided_v.requires_grad_())
    assert not strided[0].is_contiguous()
    expected = torch.autograd.grad(reference(q, k, v, mask, runs).sin().sum(), (k, v))
    loss = few_queries_attention(q, *strided, mask, runs).sin().sum()
    for _ in range(2):
        for one, other in zip(torch.autograd.grad(loss, strided, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
