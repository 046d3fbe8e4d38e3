"""The causal item encoder."""

from __future__ import annotations

import pytest
import torch

from sidera.nn.transformer import CausalEncoder
from sidera.ops.attention import layout_of


@pytest.mark.parametrize("lengths", [(5,), (1,), (3, 1, 7, 7), (2, 2)])
def test_the_last_states_alone_are_those_of_the_whole(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = CausalEncoder(16, num_layers=2, num_heads=2, ff_width=32, max_history=8, dropout=0.5).eval()
    for name, weight in encoder.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(weight)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    events, layout, ends = torch.randn(sum(lengths), 16), layout_of(offsets), offsets[1:] - 1
    torch.testing.assert_close(encoder.last(events, layout, ends), encoder(events, layout)[ends])
