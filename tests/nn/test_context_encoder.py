"""The report's encoder: jagged histories against one history at a time, every token reading every other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sidera.nn.code_decoder import DecoderSize
from sidera.nn.context_encoder import ContextEncoder
from sidera.nn.moe import MoE
from sidera.ops.attention import layout_of

SIZE = DecoderSize(width=16, num_layers=1, num_heads=4, ff_width=24, dropout=0.0, num_experts=4, expert_width=8)


def alone(encoder: ContextEncoder, x: Tensor) -> Tensor:
    """One history (s, D) in plain torch."""
    for block in encoder.blocks:
        q, k, v = block.qkv(block.norm_attention(x)).view(len(x), 3, 4, 4).unbind(1)  # type: ignore[operator]
        scores = torch.einsum("qhe,khe->hqk", q, k) / 2
        read = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v).flatten(1)
        x = x + block.out(read)  # type: ignore[operator]
        x = x + block.ff(block.norm_ff(x))  # type: ignore[operator]
    return encoder.norm(x)


@pytest.mark.parametrize("sparse", [False, True])
def test_jagged_histories_are_each_encoded_alone(sparse: bool) -> None:
    torch.manual_seed(0)
    encoder = ContextEncoder(SIZE, 2, sparse)
    assert isinstance(encoder.blocks[0].ff, MoE) == sparse
    lengths = [5, 1, 9, 3]
    x, offsets = torch.randn(sum(lengths), 16), torch.tensor([0, *lengths]).cumsum(0)
    states = encoder(x, layout_of(offsets))
    for first, last in pairwise(offsets.tolist()):
        torch.testing.assert_close(states[first:last], alone(encoder, x[first:last]), rtol=1e-4, atol=1e-5)


def test_the_first_token_reads_the_last() -> None:
    encoder = ContextEncoder(SIZE, 1, False)
    x = torch.randn(4, 16)
    changed = x.clone()
    changed[3] += 1
    layout = layout_of(torch.tensor([0, 4]))
    assert not torch.allclose(encoder(x, layout)[0], encoder(changed, layout)[0])
