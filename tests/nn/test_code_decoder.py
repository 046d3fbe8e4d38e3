"""The decoder: jagged streams, its attentions against torch's, grouped heads, steps, sizes out of range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sidera.core import InputError
from sidera.nn import code_decoder
from sidera.nn.code_decoder import CodeDecoder, DecoderLayer, DecoderSize
from sidera.ops import shared_keys
from sidera.ops.shared_keys import Streams

LEVELS = (6, 5, 4)
SIZE = DecoderSize(width=16, num_layers=2, num_heads=4, num_kv_groups=2, ff_width=32, dropout=0.0)


def inputs(size: DecoderSize, batch: int = 3, tokens: int = 7, seed: int = 1) -> tuple[list[Any], torch.Tensor]:
    """Keys and values of every layer and a mask whose rows have 7, 6, ... tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, size.num_kv_groups, tokens, size.head_width)
    pairs = [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for _ in range(size.num_layers)
    ]
    return pairs, torch.arange(tokens) < torch.arange(tokens, tokens - batch, -1)[:, None]


def some_sids(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randint(size, shape, generator=generator) for size in LEVELS], dim=-1)


@pytest.mark.parametrize("counts", [[2, 1, 4], [0, 3, 1], [2, 2, 2], [3, 0, 0]])
@pytest.mark.parametrize("shared", [False, True])
def test_few_queries_written_out_are_the_fused_attention(
    counts: list[int], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, whatever order the histories were taken in; layers may share keys and values."""
    torch.manual_seed(0)
    decoder = CodeDecoder(SIZE, LEVELS)
    pairs, mask = inputs(SIZE)
    if shared:
        pairs = [(pairs[0][0], pairs[0][0])] * SIZE.num_layers
    leaves = list({id(part): part.requires_grad_() for pair in pairs for part in pair}.values())
    streams, sids = Streams.of(torch.tensor([0, *counts]).cumsum(0)), some_sids(sum(counts))
    found, calls = [], []
    written_out = shared_keys._FewQueries.apply
    monkeypatch.setattr(shared_keys._FewQueries, "apply", lambda *given: calls.append(1) or written_out(*given))
    for limit in (code_decoder.FEW_QUERIES, 0):
        monkeypatch.setattr(code_decoder, "FEW_QUERIES", limit)
        log_p = decoder.log_probs(sids, pairs, mask, streams)
        gradients = torch.autograd.grad(log_p.sin().sum(), [*leaves, *decoder.parameters()], materialize_grads=True)
        found.append([log_p, *gradients])
        assert len(calls) == SIZE.num_layers  # by the first of the two only
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [[2, 1, 4], [0, 3, 1], [2, 2, 2], [1, 1, 1]])
def test_jagged_streams_are_their_streams_alone(counts: list[int]) -> None:
    decoder = CodeDecoder(SIZE, LEVELS)
    pairs, mask = inputs(SIZE)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    sids = some_sids(sum(counts))
    together = decoder.log_probs(sids, pairs, mask, Streams.of(offsets))
    for row, count in enumerate(counts):
        mine = slice(int(offsets[row]), int(offsets[row + 1]))
        kept = int(mask[row].sum())  # without padding
        own = [(k[row : row + 1, :, :kept], v[row : row + 1, :, :kept]) for k, v in pairs]
        for stream in range(count):
            alone = decoder.log_probs(sids[mine][stream : stream + 1], own, mask[row : row + 1, :kept], Streams(1, 1))
            torch.testing.assert_close(together[mine][stream], alone[0], rtol=1e-5, atol=1e-5)


def test_code_std_makes_the_codes_heard_beside_what_is_read() -> None:
    """States of another first code, against states of another context, before anything is learned."""
    heard = []
    for code_std in (0.0, 1.0):
        torch.manual_seed(0)
        size = replace(SIZE, width=64, code_std=code_std)
        decoder, (pairs, mask), (others, _) = CodeDecoder(size, LEVELS), inputs(size), inputs(size, seed=3)
        sids = some_sids(3)
        another = (sids + 1) % torch.tensor(LEVELS)
        states = [
            decoder(decoder.embed(codes), read, mask, Streams(3, 1))[:, 1].detach()
            for codes, read in ((sids, pairs), (another, pairs), (sids, others))
        ]
        heard.append(float((states[1] - states[0]).norm() / (states[2] - states[0]).norm()))
    assert heard[0] < 1 < 2 < heard[1]


def test_spread_and_collect_undo_each_other() -> None:
    streams = Streams.of(torch.tensor([0, 2, 2, 5]))
    assert (streams.num_histories, streams.most) == (3, 3)
    x = torch.randn(5, 2, 4)
    table = streams.spread(x)
    assert table.shape == (3, 3, 2, 4)
    assert (table[1] == 0).all()
    assert torch.equal(table[2], x[2:])
    assert torch.equal(streams.collect(table), x)


def test_grouped_heads_equal_heads_that_are_repeated() -> None:
    grouped = DecoderLayer(SIZE, 0)
    full = DecoderLayer(DecoderSize(**{**SIZE.__dict__, "num_kv_groups": SIZE.num_heads}), 0)
    full.load_state_dict(grouped.state_dict())  # queries have the same sizes: keys and values come from outside
    (pair, _), mask = inputs(SIZE)
    repeated = tuple(part.repeat_interleave(SIZE.num_heads // SIZE.num_kv_groups, dim=1) for part in pair)
    x, streams = torch.randn(6, 3, 16), Streams(3, 2)
    torch.testing.assert_close(grouped(x, pair, mask, streams), full(x, repeated, mask, streams), rtol=1e-5, atol=1e-5)


def test_steps_are_the_whole_pass() -> None:
    decoder = CodeDecoder(SIZE, LEVELS).eval()
    pairs, mask = inputs(SIZE)
    sids = some_sids(3, 4)
    expected = decoder.log_probs(sids.flatten(0, 1), pairs, mask, Streams(3, 4)).view(3, 4, 3)
    cache = decoder.new_cache(3, 4)
    parents = torch.zeros(3, 4, dtype=torch.int64)
    logits = decoder.step(cache, pairs, mask, 0, None, None).expand(-1, 4, -1)
    for level in range(3):
        picked = logits.log_softmax(-1).gather(2, sids[:, :, level, None]).squeeze(2)
        torch.testing.assert_close(picked, expected[:, :, level], rtol=1e-5, atol=1e-5)
        if level < 2:
            logits = decoder.step(cache, pairs, mask, level + 1, sids[:, :, level], parents)
            parents = torch.arange(4).expand(3, -1)


def test_a_code_depends_on_no_later_code() -> None:
    decoder = CodeDecoder(SIZE, LEVELS)
    pairs, mask = inputs(SIZE)
    first, second = some_sids(3), some_sids(3)
    second[:, 2] = (second[:, 2] + 1) % LEVELS[2]
    ours = decoder.log_probs(first, pairs, mask, Streams(3, 1))
    theirs = decoder.log_probs(second, pairs, mask, Streams(3, 1))
    assert torch.equal(ours[:, :2], theirs[:, :2])


def test_each_level_is_a_distribution() -> None:
    decoder = CodeDecoder(SIZE, LEVELS)
    pairs, mask = inputs(SIZE)
    sids = torch.cartesian_prod(*(torch.arange(size) for size in LEVELS))
    found = decoder.log_probs(sids.repeat(3, 1), pairs, mask, Streams(3, len(sids))).sum(-1).view(3, -1)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("num_heads", 3, "a divisor of width"),
        ("num_kv_groups", 3, "a divisor of num_heads"),
        ("dropout", 1.0, "0 <= x < 1"),
        ("num_layers", 0, "1"),
        ("code_std", -1.0, "0 "),
        ("num_active", 9, "at most num_experts"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=f"{name}.*{allowed}"):
        DecoderSize(**{**SIZE.__dict__, "num_experts": 4, name: value})
