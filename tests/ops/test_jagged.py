"""Grouped jagged attention against the padded reference: values and gradients, whatever the lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.ops.jagged import jagged_attention, jagged_layout, looped_attention


def offsets_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def make_qkv(num_tokens: int, seed: int, num_heads: int = 2, dim: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_tokens, num_heads, dim, generator=generator).requires_grad_() for _ in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=0, max_size=12),
    causal=st.booleans(),
    max_groups=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_grouped_equals_padded(lengths: list[int], causal: bool, max_groups: int, seed: int) -> None:
    offsets = offsets_of(lengths)
    fast, slow = make_qkv(sum(lengths), seed), make_qkv(sum(lengths), seed)
    ours = jagged_attention(*fast, jagged_layout(offsets, max_groups), causal=causal)
    reference = looped_attention(*slow, offsets, causal=causal)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    if not sum(lengths):
        assert ours.shape == (0, 2, 4)
        return
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed + 1))
    (ours * weights).sum().backward()
    (reference * weights).sum().backward()
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=12), max_groups=st.integers(1, 6))
def test_layout_names_every_token_once(lengths: list[int], max_groups: int) -> None:
    layout = jagged_layout(offsets_of(lengths), max_groups)
    tokens = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert list(zip(layout.rows.tolist(), layout.positions.tolist(), strict=True)) == tokens
    assert layout.restore.sort().values.tolist() == list(range(len(tokens)))
    assert len(layout.groups) <= max_groups
    for group in layout.groups:
        assert group.gather.shape[1] == int(group.lengths.max())
        assert group.padded == (group.lengths.unique().numel() > 1)


def test_groups_save_padding() -> None:
    lengths = [2] * 50 + [4] * 20 + [50]
    padded_places = sum(group.gather.numel() for group in jagged_layout(offsets_of(lengths)).groups)
    assert padded_places < 1.5 * sum(lengths)
    assert padded_places < 0.1 * len(lengths) * max(lengths)


@pytest.mark.parametrize("lengths", [[1], [7], [5, 5, 5]])
def test_equal_lengths_make_one_group_without_a_mask(lengths: list[int]) -> None:
    (group,) = jagged_layout(offsets_of(lengths)).groups
    assert not group.padded
