"""QFormer: jagged, padded and the loop give the same; empty rows are finite and equal; rows do not see each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sidera.core import InputError
from sidera.nn.qformer import CrossAttention, QFormer, QFormerLayer

LENGTHS = (3, 0, 7, 1, 7, 12, 0)


def looped_qformer(module: QFormer, rows: list[Tensor]) -> Tensor:
    """The reference of :class:`QFormer`: one row, one query and one head at a time. (s_i, D) each -> (B, Q, D)."""
    outputs = []
    for tokens in rows:
        tokens = module.norm_tokens(tokens)
        for query in module.queries:
            state = query
            for layer in module.layers:
                assert isinstance(layer, QFormerLayer)
                state = state + _read_alone(layer.attention, state, tokens)
                state = state + layer.down(F.gelu(layer.up(layer.norm(state))))
            outputs.append(module.norm(state))
    return torch.stack(outputs).view(len(rows), -1, module.queries.shape[1])


def _read_alone(attention: CrossAttention, state: Tensor, tokens: Tensor) -> Tensor:
    """One query (D,) reads one row (s, D): softmax(q k / sqrt(E)) v, head by head."""
    if not len(tokens):
        return torch.zeros_like(state)
    query = attention.query(attention.norm(state)).view(attention.num_heads, -1)  # (H, E)
    keys, values = attention.key_value(tokens).chunk(2, dim=-1)  # each (s, D)
    heads = []
    for head, key, value in zip(query, keys.chunk(len(query), -1), values.chunk(len(query), -1), strict=True):
        weights = (key @ head * len(head) ** -0.5).softmax(0)  # (s,)
        heads.append(weights @ value)
    return attention.out(torch.cat(heads))


def rows_of(width: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator) for length in LENGTHS]


def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest, rows[0].shape[1]), 9.0)  # what stands in padding must not matter
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
        mask[place, : len(row)] = True
    return tokens, mask


@pytest.fixture
def former() -> QFormer:
    torch.manual_seed(1)
    return QFormer(16, num_queries=4, num_layers=2, num_heads=2, token_width=6).eval()


def test_jagged_and_padded_agree_with_the_loop(former: QFormer) -> None:
    rows = rows_of(6)
    expected = looped_qformer(former, rows)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    tokens, mask = padded(rows)
    torch.testing.assert_close(former(torch.cat(rows), offsets=offsets), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(former(tokens, mask=mask), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (len(LENGTHS), 4, 16)


def test_gradients_agree_between_jagged_and_padded(former: QFormer) -> None:
    rows = rows_of(6)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    tokens, mask = padded(rows)
    target = torch.randn(len(LENGTHS), 4, 16, generator=torch.Generator().manual_seed(2))
    gradients = []
    for out in (former(torch.cat(rows), offsets=offsets), former(tokens, mask=mask)):
        gradients.append(torch.autograd.grad((out * target).sum(), list(former.parameters())))
    for jagged, with_padding in zip(*gradients, strict=True):
        assert jagged.isfinite().all()
        torch.testing.assert_close(jagged, with_padding, rtol=1e-3, atol=1e-4)


def test_rows_without_tokens_are_alike_and_rows_with_tokens_are_not(former: QFormer) -> None:
    rows = rows_of(6)
    out = former(torch.cat(rows), offsets=torch.tensor([0, *LENGTHS]).cumsum(0))
    assert torch.equal(out[1], out[6])
    similarity = torch.nn.functional.cosine_similarity(out[2].flatten(), out[4].flatten(), dim=0)
    assert similarity < 0.9  # at the start already, a row is what it read


def test_order_of_tokens_does_not_matter_but_their_number_does(former: QFormer) -> None:
    row = rows_of(6)[5][None]
    torch.testing.assert_close(former(row.flip(1)), former(row), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(former(row[:, :3]), former(row), atol=1e-3)


@pytest.mark.parametrize("sizes", [(16, 0, 1, 2), (16, 4, 0, 2), (16, 4, 1, 3)])
def test_impossible_sizes_are_named(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="QFormer"):
        QFormer(*sizes)


def test_flat_tokens_need_offsets(former: QFormer) -> None:
    with pytest.raises(InputError, match="offsets"):
        former(torch.zeros(5, 6))
