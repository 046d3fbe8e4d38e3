"""Group tokens: which events stand in which token, and what a token of a group is."""

from __future__ import annotations

import torch

from hand_made import hand_made
from sidera.nn.code_decoder import DecoderSize
from sidera.nn.group_tokens import GroupTokens, with_queries
from sidera.ops.attention import layout_of

SIZE = DecoderSize(width=8, num_layers=1, num_heads=2, num_kv_groups=2, ff_width=16, dropout=0.0)


def make() -> GroupTokens:
    torch.manual_seed(0)
    return GroupTokens(SIZE, recent=3, groups=((2, 2), (1, 4))).eval()


def test_a_long_history_by_hand() -> None:
    """11 events: 4 in the early group, two groups of 2, the newest 3 alone. 6 events: one group is not full."""
    group = make()
    lengths = [11, 6, 0, 2]
    events = hand_made(torch.arange(19), torch.tensor([0, *lengths]).cumsum(0)).events
    vectors = torch.randn(19, 8)
    parts = [
        [range(0, 4), range(4, 6), range(6, 8), [8], [9], [10]],
        [[11], range(12, 14), [14], [15], [16]],
        [],
        [[17], [18]],
    ]
    expected = []
    for row in parts:
        for place, members in enumerate(row):
            part = vectors[list(members)]
            if len(row) - place > 3:  # older than the newest three
                part = group.inside(part, layout_of(torch.tensor([0, len(part)])))
            expected.append(part.mean(0))
    with torch.no_grad():
        tokens, slots, offsets = group(vectors, events)
    assert offsets.tolist() == [0, 6, 11, 11, 13]
    assert slots.tolist() == [5, 4, 3, 2, 1, 0, 4, 3, 2, 1, 0, 1, 0]
    torch.testing.assert_close(tokens, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_order_inside_a_group_does_not_count_and_its_members_do() -> None:
    group = make()
    events = hand_made(torch.arange(7), torch.tensor([0, 7])).events  # groups of events 0-1 and 2-3
    vectors = torch.randn(7, 8)
    turned, other = vectors.clone(), vectors.clone()
    turned[[0, 1]] = vectors[[1, 0]]
    other[[1, 2]] = vectors[[2, 1]]
    with torch.no_grad():
        first, second, third = (group(values, events)[0] for values in (vectors, turned, other))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    assert (first[:2] - third[:2]).abs().amax(1).min() > 1e-3
    assert torch.equal(first[2:], third[2:])


def test_queries_stand_behind_every_row() -> None:
    tokens, queries = torch.arange(4.0)[:, None], torch.tensor([[-1.0], [-2.0]])
    out, offsets, places = with_queries(tokens, torch.tensor([0, 3, 3, 4]), queries)
    assert out.flatten().tolist() == [0, 1, 2, -1, -2, -1, -2, 3, -1, -2]
    assert offsets.tolist() == [0, 5, 7, 10]
    assert places.tolist() == [[3, 4], [5, 6], [8, 9]]
