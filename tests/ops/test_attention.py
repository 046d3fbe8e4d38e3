"""Every body of attention against one row at a time: values and gradients, whatever the lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sidera.ops import attention as op
from sidera.ops.attention import Layout, attention, equal_layout, layout_of, looped_attention, sorted_layout

HEADS, DIM = 2, 4


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def agree(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(out.sin().sum(), inputs, materialize_grads=True) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def check_own(layout: Layout, lengths: list[int], seed: int = 0, with_bias: bool = False, causal: bool = False) -> None:
    """Rows that read themselves."""
    packed = randn(sum(lengths), 3, HEADS, DIM, seed=seed)
    bias = randn(HEADS, 50, 50, seed=seed + 1) if with_bias else None
    found = attention(None, packed, layout, bias=bias, causal=causal)
    assert found.shape == (sum(lengths), HEADS, DIM)
    if sum(lengths):
        expected = looped_attention(*packed.unbind(1), offsets=offsets_of(lengths), bias=bias, causal=causal)
        agree(found, expected, [packed] if bias is None else [packed, bias])


def check_asked(layout: Layout, lengths: list[int], each: int, seed: int = 0) -> None:
    """Rows that are read by queries of their own."""
    query, key_value = randn(each * len(lengths), HEADS, DIM, seed=seed), randn(sum(lengths), 2, HEADS, DIM, seed=seed)
    found = attention(query, key_value, layout.asked_by(each), scale=0.7)
    bounds = {"offsets": torch.arange(len(lengths) + 1) * each, "key_offsets": offsets_of(lengths)}
    expected = looped_attention(query, *key_value.unbind(1), **bounds, scale=0.7)
    if sum(lengths):
        agree(found, expected, [query, key_value])
    else:
        assert torch.equal(found, torch.zeros_like(query))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=0, max_size=12),
    how=st.sampled_from(["plain", "causal", "bias"]),
    max_groups=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_rows_in_groups_of_like_length(lengths: list[int], how: str, max_groups: int, seed: int) -> None:
    layout = layout_of(offsets_of(lengths), max_groups)
    check_own(layout, lengths, seed, with_bias=how == "bias", causal=how == "causal")


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), max_size=9), each=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_rows_read_by_queries_of_their_own(lengths: list[int], each: int, seed: int) -> None:
    """Rows without tokens among them."""
    check_asked(layout_of(offsets_of(lengths)), lengths, each, seed)


@pytest.mark.parametrize("lengths", [[7], [5, 5, 3, 1], [1, 2, 2], [4, 4]])
@pytest.mark.parametrize("with_bias", [False, True])
def test_neighbours_of_equal_length(lengths: list[int], with_bias: bool) -> None:
    check_own(sorted_layout(lengths), lengths, with_bias=with_bias)
    check_asked(sorted_layout(lengths), lengths, 3)


@pytest.mark.parametrize("length", [1, 3, op.FEW_POSITIONS, op.FEW_POSITIONS + 1])
def test_equal_rows_of_a_few_positions(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out where they are short; both bodies give what the loop gives."""
    calls, pairs = [], op._pairs
    monkeypatch.setattr(op, "_pairs", lambda *given: calls.append(1) or pairs(*given))
    check_own(equal_layout(6, length), [length] * 6, causal=True)
    written = len(calls)
    assert written == (length <= op.FEW_POSITIONS)
    monkeypatch.setattr(op, "FEW_POSITIONS", 0)
    check_own(equal_layout(6, length), [length] * 6, causal=True)
    assert len(calls) == written


def test_dropped_weights_have_their_gradient() -> None:
    """Finite differences of the written body; every call draws the same masks."""
    layout = sorted_layout([3, 2, 2])
    packed = randn(7, 3, HEADS, 3, seed=0).detach().double().requires_grad_()
    key_value = randn(7, 2, HEADS, 3, seed=1).detach().double().requires_grad_()
    query = randn(6, HEADS, 3, seed=2).detach().double().requires_grad_()
    bias = randn(HEADS, 4, 4, seed=3).detach().double().requires_grad_()

    def own(packed: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attention(None, packed, layout, bias=bias, scale=1.0, rate=0.4)

    def asked(query: Tensor, key_value: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attention(query, key_value, layout.asked_by(2), rate=0.4)

    # scores and softmax are float32 whatever comes in: wide steps, loose bounds
    bounds = {"eps": 1e-2, "atol": 2e-2, "rtol": 2e-2, "nondet_tol": 1e-6}
    assert torch.autograd.gradcheck(own, (packed, bias), **bounds)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(asked, (query, key_value), **bounds)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=12), max_groups=st.integers(1, 6))
def test_layout_names_every_token_once(lengths: list[int], max_groups: int) -> None:
    layout = layout_of(offsets_of(lengths), max_groups)
    tokens = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    assert list(zip(layout.row_ids.tolist(), layout.positions.tolist(), strict=True)) == tokens
    assert layout.restore is not None
    assert layout.restore.sort().values.tolist() == list(range(len(tokens)))
    assert len(layout.keys) <= max_groups
    for rows, members in zip(layout.keys, layout.members, strict=True):
        own = [lengths[row] for row in members.tolist()]
        assert rows.length == max(own)
        assert (rows.lengths is None) == (len(set(own)) == 1)


def test_groups_save_padding() -> None:
    lengths = [2] * 50 + [4] * 20 + [50]
    padded = sum(rows.num_rows * rows.length for rows in layout_of(offsets_of(lengths)).keys)
    assert padded < 1.5 * sum(lengths)
    assert padded < 0.1 * len(lengths) * max(lengths)


@pytest.mark.parametrize("lengths", [[1], [7], [5, 5, 5]])
def test_equal_lengths_make_one_group_without_a_mask(lengths: list[int]) -> None:
    (rows,) = layout_of(offsets_of(lengths)).keys
    assert rows.mask() is None


@pytest.mark.parametrize("asked", [None, 3])
def test_neighbours_padded_into_one_table_answer_as_exact_groups_do(asked: int | None) -> None:
    """What a device runs, on the CPU: values and gradients of keys, queries and bias."""
    layout = op.sorted_layout([5, 4, 4, 2, 1])
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(16, 3 if asked is None else 2, 2, 8, generator=generator, requires_grad=True)
    bias = torch.randn(2, 9, 9, generator=generator, requires_grad=True)
    inputs = [packed, bias]
    query = None
    if asked is not None:
        layout = layout.asked_by(asked)
        query = torch.randn(5 * asked, 2, 8, generator=generator, requires_grad=True)
        inputs.append(query)
    padded = layout.padded(packed.device)
    assert len(padded.keys) == 1
    assert padded is layout.padded(packed.device)
    outputs = [
        op.attention(query, packed, layout, bias=bias, scale=0.5),
        op._fused(query, packed, padded, bias, False, 0.5, 0.0),
    ]
    torch.testing.assert_close(*outputs)
    pull = torch.randn(outputs[0].shape, generator=generator)
    for exact, other in zip(*(torch.autograd.grad(output, inputs, pull) for output in outputs), strict=True):
        torch.testing.assert_close(exact, other)
