"""One cache for all beam searches: what a beam reads is what its own ancestors wrote, whatever order beams stand in."""

from __future__ import annotations

import pytest
import torch

from sidera.core import InputError
from sidera.nn.beam_cache import BeamCache

HEADS, WIDTH = 2, 6  # H, E = 3


def whole(stream: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The last of (P, 3*H*E) against all of them, in one piece -> (H*E,)."""
    query, keys, values = stream.view(len(stream), 3, HEADS, -1).unbind(1)  # (P, H, E) each
    shares = (torch.einsum("he,phe->ph", query[-1], keys) + bias).softmax(0)
    return torch.einsum("ph,phe->he", shares, values).flatten()


def test_beams_read_what_their_ancestors_wrote() -> None:
    """Beams die, double and change places; two histories, three layers, 300 beams (more than one piece)."""
    histories, width, positions, layers = 2, 150, 4, 3
    generator = torch.Generator().manual_seed(0)
    cache = BeamCache(histories, width, positions, layers, WIDTH, like=torch.zeros(()))
    streams, parents = torch.zeros(layers, histories, 1, 0, 3 * WIDTH), None
    for position in range(positions):
        if position:
            parents = torch.randint(streams.shape[2], (histories, width), generator=generator)
            index = parents[None, :, :, None, None].expand(layers, -1, -1, position, 3 * WIDTH)
            streams = streams.gather(2, index)
        cache.begin_position(parents)
        new = torch.randn(layers, *streams.shape[1:3], 1, 3 * WIDTH, generator=generator)
        streams = torch.cat((streams, new), dim=3)
        bias = torch.randn(position + 1, HEADS, generator=generator)
        for layer in range(layers):
            query, key_value = new[layer].view(-1, 3 * WIDTH).tensor_split((WIDTH,), dim=1)
            read = cache.attend(layer, query, key_value, HEADS, bias)
            expected = torch.stack([whole(stream, bias) for stream in streams[layer].flatten(0, 1)])
            torch.testing.assert_close(read, expected)


def test_none_lets_every_beam_continue_itself() -> None:
    cache = BeamCache(1, 2, 3, 1, WIDTH, like=torch.zeros(()))
    cache.begin_position(None)
    cache.begin_position(torch.tensor([[0, 0]]))
    cache.begin_position(None)
    assert cache.ancestors.tolist() == [[0, 2, 4], [0, 3, 5]]


def test_more_beams_or_positions_than_there_is_room_for_are_refused() -> None:
    cache = BeamCache(1, 2, 2, 1, WIDTH, like=torch.zeros(()))
    cache.begin_position(None)
    with pytest.raises(InputError, match="position 2 of 3 beams; allowed: 2 positions, 2 beams"):
        cache.begin_position(torch.tensor([[0, 0, 0]]))
    cache.begin_position(torch.tensor([[0, 0]]))
    with pytest.raises(InputError, match="position 3"):
        cache.begin_position(None)
