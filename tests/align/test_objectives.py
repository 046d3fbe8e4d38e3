"""Objectives against published gradients, against each other, and on the inputs that break them."""

from __future__ import annotations

import math

import pytest
import torch

from sidera.align.objectives import (
    SURROGATES,
    dpo,
    ecpo,
    format_advantages,
    gbpo,
    group_advantages,
    grpo,
    policy_gradient,
    policy_loss,
    s_dpo,
    self_hard_pairs,
)
from sidera.core import InputError

# log pi, log pi_old, then the gradient with respect to log pi of PPO, ECPO and GBPO, for A = +1 and for A = -1
TABLE = [
    (-0.1, -3.0, (0.0, 0.0, 1.0), (-18.17, -1.30, -9.51)),
    (-6.0, -6.0, (1.0, 1.0, 1.0), (-1.0, -1.0, -0.0025)),
    (-1.0, -1.1, (1.105, 1.105, 1.0), (-1.105, -1.105, -0.582)),
    (-8.0, -2.0, (0.0025, 0.0025, 0.0025), (0.0, 0.0, -0.0003)),
]


def slope(surrogate, log_p: float, log_old: float, advantage: float) -> float:
    x = torch.tensor([log_p], dtype=torch.float64, requires_grad=True)
    old, a = (torch.tensor([value], dtype=torch.float64) for value in (log_old, advantage))
    surrogate(x, old, a).sum().backward()
    return float(x.grad)


@pytest.mark.parametrize(("log_p", "log_old", "up", "down"), TABLE)
def test_gradients_are_those_of_the_table(log_p: float, log_old: float, up: tuple, down: tuple) -> None:
    for advantage, expected in ((1.0, up), (-1.0, down)):
        found = [slope(surrogate, log_p, log_old, advantage) for surrogate in (grpo, ecpo, gbpo)]
        assert found == pytest.approx(expected, rel=2e-2, abs=6e-5)  # as far as the table's digits go
        assert slope(policy_gradient, log_p, log_old, advantage) == advantage


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_agree_on_the_policys_own_samples(name: str) -> None:
    """At pi = pi_old and A > 0 every method follows A grad log pi."""
    assert slope(SURROGATES[name], -2.0, -2.0, 1.7) == pytest.approx(1.7)


def test_bounds_hold_everywhere() -> None:
    """ECPO never exceeds 1.3 |A|, GBPO neither |A| nor the logistic slope pi / (1 - pi); GRPO has no bound."""
    for log_p in torch.linspace(-12, -1e-3, 60).tolist():
        for log_old in (-12.0, -5.0, -0.5):
            assert abs(slope(ecpo, log_p, log_old, -1.0)) <= 1.3 + 1e-9
            pi = math.exp(log_p)
            assert abs(slope(gbpo, log_p, log_old, -1.0)) <= pi / (1 - pi) + 1e-9
            assert 0 <= slope(gbpo, log_p, log_old, 1.0) <= 1
    assert abs(slope(grpo, -0.001, -12.0, -1.0)) > 1e5


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_certain_and_impossible_codes_have_finite_gradients(advantage: float) -> None:
    for surrogate in (ecpo, gbpo):
        x = torch.tensor([0.0, -80.0], requires_grad=True)
        surrogate(x, torch.tensor([-1.0, -1.0]), torch.full((2,), advantage)).sum().backward()
        assert x.grad.isfinite().all()


def test_token_and_item_level_differ_by_the_number_of_codes() -> None:
    log_p = torch.randn(2, 3, 4).requires_grad_()
    advantage, mask = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    grads = []
    for level in ("token", "item"):
        loss = policy_loss(ecpo, log_p, log_p.detach(), advantage, mask, level)
        grads.append(torch.autograd.grad(loss, log_p)[0])
    torch.testing.assert_close(4 * grads[0], grads[1])


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("level", ["token", "item"])
def test_what_is_no_item_leaves_no_trace(name: str, level: str) -> None:
    log_p = torch.randn(2, 3, 2).requires_grad_()
    held = log_p.masked_fill(torch.tensor([[[0], [1], [0]], [[0], [0], [0]]]).bool(), -math.inf)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    loss = policy_loss(SURROGATES[name], held, held.detach(), torch.ones(2, 3), mask, level)
    loss.backward()
    assert loss.isfinite()
    assert log_p.grad.isfinite().all()
    assert (log_p.grad[0, 1] == 0).all()
    nothing = policy_loss(SURROGATES[name], held, held.detach(), torch.ones(2, 3), torch.zeros_like(mask), level)
    assert float(nothing) == 0.0


def test_group_advantages_are_standardised_and_dead_groups_named() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 99.0], [0.3, 0.3, 0.3, 0.3], [1.0, 5.0, 5.0, 5.0], [7.0, 7.0, 1.0, 1.0]])
    legal = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    found = group_advantages(rewards, legal)
    torch.testing.assert_close(found.values[0], torch.tensor([-1.0, 0.0, 1.0, 0.0]) * 1.5**0.5)
    assert (found.values[1:] == 0).all()
    assert found.mask.sum(1).tolist() == [3, 0, 0, 0]
    assert found.zero_share == 0.75


def test_an_almost_constant_reward_is_constant() -> None:
    """The last digit of a float must not become an advantage of 1."""
    rewards = torch.full((1, 8), 0.7)
    rewards[0, 3] = rewards[0, 3].nextafter(torch.tensor(1.0))
    assert group_advantages(rewards, torch.ones(1, 8, dtype=torch.bool)).zero_share == 1.0


def test_a_reward_that_is_no_number_is_refused_unless_nobody_asks_for_it() -> None:
    rewards = torch.tensor([[1.0, float("nan")], [2.0, 1.0]])
    with pytest.raises(InputError, match="the reward of request 0, member 1 is nan; allowed: finite numbers"):
        group_advantages(rewards, torch.ones(2, 2, dtype=torch.bool))
    legal = torch.tensor([[True, False], [True, True]])
    assert group_advantages(rewards, legal).values.isfinite().all()


def test_format_members_are_drawn_at_random_and_only_legal_ones_count() -> None:
    uniforms = torch.rand(4000, 8, generator=torch.Generator().manual_seed(0))
    legal = torch.zeros(4000, 8, dtype=torch.bool)
    legal[:, ::2] = True
    values, mask = format_advantages(legal, 3, uniforms)
    assert torch.equal(values, mask.float())
    assert not mask[:, 1::2].any()
    shares = mask[:, ::2].float().mean(0)  # every member is as likely as another
    assert (shares - 3 / 8).abs().max() < 4 * (3 / 8 * 5 / 8 / 4000) ** 0.5


def test_dpo_pulls_pairs_apart_and_s_dpo_with_one_rejected_is_dpo() -> None:
    chosen, rejected = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    loss = dpo(chosen, rejected, torch.zeros(3), torch.zeros(3), beta=0.5)
    assert float(loss) == pytest.approx(math.log(2))
    loss.backward()
    torch.testing.assert_close(chosen.grad, torch.full((3,), -0.5 * 0.5 / 3))
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    a, b, c, d = torch.randn(4, 5)
    torch.testing.assert_close(s_dpo(a, b[:, None], c, d[:, None], 0.7), dpo(a, b, c, d, 0.7))


def test_s_dpo_is_its_formula_and_skips_rows_without_rejected() -> None:
    chosen, rejected, mask = torch.randn(3), torch.randn(3, 4), torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    mask[2, 1:] = False
    zeros = torch.zeros(3), torch.zeros(3, 4)
    rows = [
        -math.log(1 / (1 + sum(math.exp(0.3 * float(r - c)) for r, m in zip(row, keep, strict=True) if m)))
        for c, row, keep in zip(chosen, rejected, mask, strict=True)
    ]
    found = s_dpo(chosen, rejected, zeros[0], zeros[1], 0.3, mask)
    assert float(found) == pytest.approx((rows[0] + rows[2]) / 2, rel=1e-5)
    assert float(s_dpo(chosen, rejected, zeros[0], zeros[1], 0.3, torch.zeros_like(mask))) == 0.0


def test_self_hard_pairs_take_best_and_worst_of_what_is_legal() -> None:
    rewards = torch.tensor([[0.1, 0.9, 0.5, 2.0], [0.4, 0.4, 0.4, 0.4]])
    legal = torch.tensor([[True, True, True, False], [True, True, True, True]])
    best, worst, there = self_hard_pairs(rewards, legal)
    assert (int(best[0]), int(worst[0])) == (1, 0)
    assert there.tolist() == [True, False]
