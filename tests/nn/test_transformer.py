"""The causal encoder: no event reads what comes later, no history reads another."""

from __future__ import annotations

import pytest
import torch

from sidera.nn.transformer import CausalEncoder
from sidera.ops.attention import layout_of

LENGTHS = [5, 1, 9, 5, 2]
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)


@pytest.fixture(scope="module")
def encoder() -> CausalEncoder:
    torch.manual_seed(0)
    encoder = CausalEncoder(width=8, num_layers=2, num_heads=2, ff_width=16, max_history=10, dropout=0.0).eval()
    with torch.no_grad():  # far from the small initialisation, so that a leak would show
        for parameter in encoder.parameters():
            parameter.normal_(std=0.5)
    return encoder


@pytest.fixture
def events() -> torch.Tensor:
    return torch.randn(sum(LENGTHS), 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("token", range(sum(LENGTHS)))
def test_a_later_event_changes_no_earlier_state_and_no_other_history(
    encoder: CausalEncoder, events: torch.Tensor, token: int
) -> None:
    layout = layout_of(OFFSETS)
    changed = events.clone()
    changed[token] = torch.randn(8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = encoder(events, layout), encoder(changed, layout)
    differs = (before != after).any(1)
    same_history = layout.row_ids == layout.row_ids[token]
    may_differ = same_history & (layout.positions >= layout.positions[token])
    assert differs[may_differ].all()
    assert not differs[~may_differ].any()


def test_a_history_reads_the_same_alone_and_in_a_batch(encoder: CausalEncoder, events: torch.Tensor) -> None:
    with torch.no_grad():
        together = encoder(events, layout_of(OFFSETS))
        for row, length in enumerate(LENGTHS):
            span = slice(int(OFFSETS[row]), int(OFFSETS[row + 1]))
            alone = encoder(events[span], layout_of(torch.tensor([0, length])))
            torch.testing.assert_close(together[span], alone, rtol=1e-5, atol=1e-5)


def test_order_matters(encoder: CausalEncoder, events: torch.Tensor) -> None:
    layout = layout_of(torch.tensor([0, 3]))
    with torch.no_grad():
        forward, backward = (encoder(part, layout)[-1] for part in (events[:3], events[[1, 0, 2]]))
    assert (forward - backward).abs().max() > 1e-3


def test_dropout_is_active_in_training_only(events: torch.Tensor) -> None:
    encoder = CausalEncoder(width=8, num_layers=1, num_heads=2, ff_width=16, max_history=10, dropout=0.5)
    layout = layout_of(OFFSETS)
    assert not torch.equal(encoder.train()(events, layout), encoder(events, layout))
    assert torch.equal(encoder.eval()(events, layout), encoder(events, layout))
