"""Experts: routing against a loop over tokens, a bias that only chooses, loads that the rule alone makes even."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from sidera.core import InputError
from sidera.nn.moe import MoE, balance_experts

WIDTH, HIDDEN, EXPERTS, ACTIVE = 12, 8, 6, 2
Gate = Literal["sigmoid", "softmax"]


def experts(gate: Gate = "sigmoid", shared: int = 0, gamma: float = 1e-3) -> MoE:
    torch.manual_seed(0)
    return MoE(WIDTH, HIDDEN, EXPERTS, ACTIVE, shared, gate, gamma)


def tokens(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed))


def looped(moe: MoE, x: Tensor) -> Tensor:
    """One token and one expert at a time."""
    rows = []
    for token in x:
        logits = moe.router(token)
        scores = logits.sigmoid() if moe.gate == "sigmoid" else logits.softmax(0)
        biased = (scores + moe.bias).tolist()
        chosen = sorted(range(EXPERTS), key=biased.__getitem__, reverse=True)[:ACTIVE]
        total = sum(scores[expert] for expert in chosen) if moe.gate == "sigmoid" else 1.0
        row = torch.zeros(WIDTH)
        for expert in chosen:
            gate, up = (token @ moe.gate_up[expert]).chunk(2)
            row = row + scores[expert] / total * ((nn.functional.silu(gate) * up) @ moe.down[expert])
        rows.append(row if moe.shared is None else row + moe.shared(token))
    return torch.stack(rows)


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("shared", [0, 2])
def test_routing_is_the_loop(gate: Gate, shared: int) -> None:
    moe = experts(gate, shared)
    moe.bias.copy_(torch.linspace(-0.2, 0.2, EXPERTS))
    x = tokens(17)
    ours, theirs = moe(x), looped(moe, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(out.sin().sum(), list(moe.parameters())) for out in (ours, theirs)]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert moe(x.view(17, 1, WIDTH)).shape == (17, 1, WIDTH)


def test_the_grouped_product_gives_what_the_experts_give_one_by_one() -> None:
    """In bfloat16, as a device runs it; an expert without a token is among them."""
    torch.manual_seed(0)
    layer, tokens = MoE(16, 8, 4, 2), torch.randn(12, 16)
    counts = torch.tensor([5, 0, 4, 3])
    with torch.autocast("cpu", torch.bfloat16):
        alone, grouped = layer._one_by_one(tokens, counts), layer._grouped(tokens, counts)
    torch.testing.assert_close(grouped, alone, atol=0.03, rtol=0.03)
    gradients = [torch.autograd.grad(out.float().sum(), (layer.gate_up, layer.down)) for out in (alone, grouped)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, atol=0.1, rtol=0.05)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    moe, x = experts(), tokens(9)
    moe.bias[3] = 100.0
    chosen, weights = moe.route(x)
    assert (chosen == 3).any(1).all()
    scores = moe.router(x).sigmoid().gather(1, chosen)
    torch.testing.assert_close(weights, scores / scores.sum(1, keepdim=True))
    assert not any(name.endswith("bias") for name, _ in moe.named_parameters())  # no gradient moves it


def test_gates_differ_in_what_they_add_up_to() -> None:
    x = tokens(9)
    torch.testing.assert_close(experts("sigmoid").route(x)[1].sum(1), torch.ones(9))
    moe = experts("softmax")
    chosen, weights = moe.route(x)
    torch.testing.assert_close(weights, moe.router(x).softmax(-1).gather(1, chosen))
    assert (weights.sum(1) < 1).all()


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_the_rule_alone_evens_out_the_loads(gate: Gate) -> None:
    moe = experts(gate).train()
    skew = 4.0 * moe.router.weight.detach()[0]  # all tokens lean towards the first expert
    with torch.no_grad():
        before = torch.bincount(moe.route(tokens(3000, 99) + skew)[0].flatten(), minlength=EXPERTS)
        for step in range(400):
            moe(tokens(256, step) + skew)
            balance_experts(moe)
        after = torch.bincount(moe.route(tokens(3000, 99) + skew)[0].flatten(), minlength=EXPERTS)
    share = 3000 * ACTIVE / EXPERTS
    assert before.max() > 2 * share
    assert after.min() > 0.8 * share
    assert after.max() < 1.2 * share
    assert all(0.8 < load < 1.2 for load in (moe.load * EXPERTS).tolist())  # relative to a fair share


def test_loads_are_counted_in_training_and_once() -> None:
    moe = experts()
    moe.eval()(tokens(5))
    assert moe.counts.sum() == 0
    moe.train()(tokens(5))
    assert moe.counts.sum() == 5 * ACTIVE
    bias = moe.bias.clone()
    moe.balance()
    assert moe.counts.sum() == 0
    assert ((moe.bias - bias).abs() <= moe.gamma * 1.001).all()
    moved = moe.bias.clone()
    moe.balance()  # nothing was counted since
    assert torch.equal(moe.bias, moved)


def test_more_active_experts_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="num_active = 7"):
        MoE(WIDTH, HIDDEN, EXPERTS, 7)
