"""Attention for long histories: each kind against a slow loop, its limit case, and no reading of what comes later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sidera.nn.attention_kinds import AttentionKind, FullAttention, Kind
from sidera.nn.latent_attention import LatentAttention, rotate
from sidera.nn.linear_attention import LinearAttention, causal_linear_attention
from sidera.nn.sparse_attention import SparseAttention
from sidera.ops.attention import layout_of

LENGTHS = [5, 1, 19, 7]
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)
KINDS: tuple[Kind, ...] = ("full", "linear", "mla", "sparse")
WIDTH, HEADS = 8, 2


def make(kind: Kind, **changes: Any) -> Any:
    torch.manual_seed(0)
    module = AttentionKind(kind, **{"latent_width": 6, "block_size": 4, "num_blocks": 2, **changes}).build(WIDTH, HEADS)
    with torch.no_grad():  # far from the small initialisation, so that a leak would show
        for parameter in module.parameters():
            parameter.normal_(std=0.6)
    return module.eval()


@pytest.fixture
def events() -> torch.Tensor:
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_event_changes_no_earlier_one_and_no_other_history(kind: Kind, events: torch.Tensor) -> None:
    module, layout = make(kind), layout_of(OFFSETS)
    with torch.no_grad():
        before = module(events, layout)
        for token in range(sum(LENGTHS)):
            changed = events.clone()
            changed[token] = 2.0
            differs = (module(changed, layout) - before).abs().amax(1) > 1e-6
            may_differ = (layout.row_ids == layout.row_ids[token]) & (layout.positions >= layout.positions[token])
            assert not differs[~may_differ].any()
            assert differs[token]


@pytest.mark.parametrize("kind", KINDS)
def test_a_history_reads_the_same_alone_and_in_a_batch(kind: Kind, events: torch.Tensor) -> None:
    module = make(kind)
    with torch.no_grad():
        together = module(events, layout_of(OFFSETS))
        for row, length in enumerate(LENGTHS):
            span = slice(int(OFFSETS[row]), int(OFFSETS[row + 1]))
            alone = module(events[span], layout_of(torch.tensor([0, length])))
            torch.testing.assert_close(together[span], alone, rtol=1e-4, atol=1e-5)
        assert module(events[:0], layout_of(torch.tensor([0, 0]))).shape == (0, WIDTH)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_linear_equals_the_loop_over_pairs(chunk: int) -> None:
    qkv = torch.randn(2, 11, 3, HEADS, 4, generator=torch.Generator().manual_seed(2))
    q, k, v = qkv.unbind(2)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weights = torch.einsum("bqhe,bkhe->bhqk", q, k).tril()
    reference = torch.einsum("bhqk,bkhe->bqhe", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(causal_linear_attention(qkv, chunk), reference, rtol=1e-4, atol=1e-5)


def test_linear_keeps_a_state_of_one_size() -> None:
    """The last event's answer out of the running sums alone."""
    module: LinearAttention = make("linear")
    x = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(3))
    q, k, v = module.qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(1)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    state, total = torch.einsum("the,thf->hef", k, v), k.sum(0)
    last = torch.einsum("he,hef->hf", q[-1], state) / (q[-1] * total).sum(-1, keepdim=True)
    found = module(x, layout_of(torch.tensor([0, 30])))[-1]
    torch.testing.assert_close(found, last.flatten(), rtol=1e-4, atol=1e-5)


def test_mla_answers_out_of_latents_alone(events: torch.Tensor) -> None:
    """The form that keeps C + R numbers an event is the form that is trained."""
    module: LatentAttention = make("mla")
    layout = layout_of(OFFSETS)
    with torch.no_grad():
        found = module(events, layout)
        query, latents, places = module.parts(events, layout)
        for token in range(len(events)):
            known = slice(int(OFFSETS[layout.row_ids[token]]), token + 1)
            one = module.from_latents(query[token], latents[known], places[known])
            torch.testing.assert_close(found[token], one, rtol=1e-4, atol=1e-5)
    assert latents.shape[1] + places.shape[1] < 2 * WIDTH


def test_rotation_makes_products_depend_on_the_distance() -> None:
    a, b = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(4))
    products = [float(rotate(a, torch.tensor([i])) @ rotate(b, torch.tensor([i - 3])).T) for i in (3, 10, 50)]
    assert products == pytest.approx([products[0]] * 3, abs=1e-4)
    assert torch.equal(rotate(a, torch.tensor([0])), a)


def looped_sparse(module: SparseAttention, x: torch.Tensor) -> torch.Tensor:
    """One query after another, as the file's first lines say."""
    size, dims = module.block_size, WIDTH // HEADS
    q, k, v = module.qkv(x).unflatten(-1, (3, HEADS, dims)).unbind(1)  # (t, H, E)
    gates = module.gate(x).sigmoid().unflatten(-1, (3, HEADS))

    def read(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(H, E), (t, H, E), (t, H, E) -> (H, E)"""
        weights = (torch.einsum("he,the->ht", query, keys) * dims**-0.5).softmax(1)
        return torch.einsum("ht,the->he", weights, values)

    out = []
    for i in range(len(x)):
        block, nothing = i // size, torch.zeros(HEADS, dims)
        parts = [slice(m * size, (m + 1) * size) for m in range(block)]
        summaries, chosen = nothing, nothing
        if block:
            keys = torch.stack([module.key((k[part] + module.place[0][:, None]).mean(0)) for part in parts])
            values = torch.stack([module.value((v[part] + module.place[1][:, None]).mean(0)) for part in parts])
            summaries = read(q[i], keys, values)
            says = (torch.einsum("he,the->ht", q[block * size], keys) * dims**-0.5).softmax(1).sum(0)
            best = says.topk(min(module.num_blocks, block)).indices.tolist()
            picked = torch.cat([torch.arange(m * size, (m + 1) * size) for m in best])
            chosen = read(q[i], k[picked], v[picked])
        window = slice(max(0, i - size + 1), i + 1)
        branches = torch.stack((summaries, chosen, read(q[i], k[window], v[window])))
        out.append((gates[i][..., None] * branches).sum(0).flatten())
    return torch.stack(out)


@pytest.mark.parametrize(("block_size", "num_blocks"), [(4, 2), (3, 1), (5, 9), (1, 2), (32, 4)])
def test_sparse_equals_the_loop(block_size: int, num_blocks: int, events: torch.Tensor) -> None:
    module: SparseAttention = make("sparse", block_size=block_size, num_blocks=num_blocks)
    x = events[6:25]
    with torch.no_grad():
        found = module(x, layout_of(torch.tensor([0, len(x)])))
        torch.testing.assert_close(found, looped_sparse(module, x), rtol=1e-4, atol=1e-5)


def test_sparse_is_full_where_the_window_holds_everything(events: torch.Tensor) -> None:
    module: SparseAttention = make("sparse", block_size=32)
    full: FullAttention = make("full")
    full.qkv.load_state_dict(module.qkv.state_dict())
    with torch.no_grad():
        module.gate.weight.zero_()
        module.gate.bias.fill_(40.0)  # all gates open
        layout = layout_of(OFFSETS)
        torch.testing.assert_close(module(events, layout), full(events, layout), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: Kind, events: torch.Tensor) -> None:
    module = make(kind)
    module(events, layout_of(OFFSETS)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0, name
