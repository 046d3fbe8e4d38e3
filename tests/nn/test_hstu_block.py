"""HSTU blocks: no event reads what comes later, times count, and a history without times is no surprise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hand_made import hand_made
from sidera.batch import Batch, Requests
from sidera.nn.hstu import HSTUBlock, HSTUEncoder, moments
from sidera.ops.silu_attention import Pairs, looped_silu_attention

LENGTHS = [5, 1, 9, 2]
TOTAL = sum(LENGTHS)


@pytest.fixture(scope="module")
def encoder() -> HSTUEncoder:
    torch.manual_seed(0)
    encoder = HSTUEncoder(width=8, num_layers=2, num_heads=2, max_history=10, dropout=0.0).eval()
    with torch.no_grad():  # far from the small initialisation, so that a leak would show
        for parameter in encoder.parameters():
            parameter.normal_(std=0.5)
    return encoder


def batch_with(times: torch.Tensor | None) -> Batch:
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    ends = None if times is None else times[offsets[1:] - 1] + 500
    return hand_made(torch.arange(TOTAL), offsets, times=times, as_of=ends)


TIMES = torch.cat([torch.randint(0, 10**6, (length,)).sort().values for length in LENGTHS])
VECTORS = torch.randn(TOTAL, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("token", range(TOTAL))
def test_a_later_event_changes_no_earlier_state_and_no_other_history(encoder: HSTUEncoder, token: int) -> None:
    batch = batch_with(TIMES)
    changed = VECTORS.clone()
    changed[token] = 3.0
    with torch.no_grad():
        before, after = encoder(VECTORS, batch), encoder(changed, batch)
    differs, rows, places = (before != after).any(1), batch.events.row_ids, torch.arange(TOTAL)
    may_differ = (rows == rows[token]) & (places >= token)
    assert differs[may_differ].all()
    assert not differs[~may_differ].any()


@pytest.mark.parametrize("token", range(TOTAL))
def test_a_state_knows_when_it_is_asked_and_no_later_time(encoder: HSTUEncoder, token: int) -> None:
    """The time of an event is that at which the state before it is asked: it reaches this one, and none before."""
    moved = TIMES.clone()
    moved[token] = 1_999_990
    as_of = torch.full((len(LENGTHS),), 2_000_000)
    batches = [replace(batch_with(times), requests=Requests(as_of=as_of)) for times in (TIMES, moved)]
    with torch.no_grad():
        before, after = (encoder(VECTORS, batch) for batch in batches)
    differs, rows, places = (before != after).any(1), batches[0].events.row_ids, torch.arange(TOTAL)
    assert not differs[(rows != rows[token]) | (places < token - 1)].any()
    assert differs[token]


def test_a_history_reads_the_same_alone_and_in_a_batch(encoder: HSTUEncoder) -> None:
    batch = batch_with(TIMES)
    with torch.no_grad():
        together = encoder(VECTORS, batch)
        for row in range(len(LENGTHS)):
            span = slice(int(batch.events.offsets[row]), int(batch.events.offsets[row + 1]))
            torch.testing.assert_close(together[span], encoder(VECTORS[span], batch.cut(row, row + 1)))


@pytest.mark.parametrize("lengths", [(5,), (1,), (3, 1, 6, 6), (9, 2)])
@pytest.mark.parametrize("timed", [True, False])
@torch.no_grad()
def test_the_last_states_alone_are_those_of_the_whole(
    encoder: HSTUEncoder, lengths: tuple[int, ...], timed: bool
) -> None:
    offsets, total = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    times = torch.cat([10**5 * torch.arange(length) for length in lengths]) if timed else None
    as_of = 10**6 + torch.arange(len(lengths)) if timed else None
    batch = hand_made(torch.arange(total), offsets, times=times, as_of=as_of)
    found, whole = encoder.last(VECTORS[:total], batch), encoder(VECTORS[:total], batch)[offsets[1:] - 1]
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_a_block_is_what_the_paper_writes() -> None:
    torch.manual_seed(0)
    block, batch = HSTUBlock(8, 2, 10, 0.0).eval(), batch_with(TIMES)
    times, asked = moments(batch)
    x = F.layer_norm(VECTORS, (8,), eps=1e-6)
    gate, query, key, value = F.silu(x @ block.gate_query_key_value.weight.T).chunk(4, dim=1)
    qkv = torch.stack((query, key, value), dim=1).unflatten(2, (2, 4))
    read = looped_silu_attention(qkv, batch.events.offsets, times, asked, block.by_position, block.by_time, 10)
    reference = VECTORS + block.out(gate * F.layer_norm(read.flatten(1), (8,), eps=1e-6))
    with torch.no_grad():
        found = block(VECTORS, Pairs.of(batch.events.offsets, times, asked))
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)


def test_moments() -> None:
    """After an event the next one's time, after the last the request's, without a request its own."""
    offsets = torch.tensor([0, 2, 2, 5])
    times = torch.tensor([10, 30, 5, 5, 4])  # equal, and backward
    batch = hand_made(torch.arange(5), offsets, times=times, as_of=torch.tensor([99, 98, 97]))
    assert moments(batch)[1].tolist() == [30, 99, 5, 4, 97]
    assert moments(replace(batch, requests=Requests()))[1].tolist() == [30, 30, 5, 4, 4]
    torch.manual_seed(0)
    hidden = moments(batch, 0.999)
    assert hidden[0].tolist() == hidden[1].tolist() == [0] * 5


def test_no_times_are_read_as_one_moment(encoder: HSTUEncoder) -> None:
    one_moment = torch.full((TOTAL,), 1234)
    as_of = Requests(as_of=torch.full((len(LENGTHS),), 1234))
    with torch.no_grad():
        without = encoder(VECTORS, batch_with(None))
        equal = encoder(VECTORS, replace(batch_with(one_moment), requests=as_of))
        with_times = encoder(VECTORS, batch_with(TIMES))
    torch.testing.assert_close(without, equal)
    assert (without - with_times).abs().max() > 1e-3


def test_training_hides_some_times_and_drops_units() -> None:
    encoder, batch = HSTUEncoder(8, 1, 1, 10, 0.0), batch_with(TIMES)
    with torch.no_grad():
        encoder.blocks[0].by_time.normal_()  # type: ignore[union-attr]
        draws = {tuple(encoder.train()(VECTORS, batch).sum(1).tolist()) for _ in range(30)}
        assert len(draws) > 1
        assert torch.equal(encoder.eval()(VECTORS, batch), encoder(VECTORS, batch))
