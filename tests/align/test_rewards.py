"""Rewards report their parts, and one that is broken ends the run with its name."""

from __future__ import annotations

import pytest
import torch
from reward_world import Numbers, asked

from sidera.align.rewards import NetworkReward, RewardBatch, Rewards, Together
from sidera.batch import Reads
from sidera.core import InputError

GROUP = [[0, 1, 2, -1], [3, 4, 5, 5]]


class Constant:
    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, question: RewardBatch) -> Rewards:
        return Rewards(torch.full(question.item_ids.shape, self.value))


class Legal:
    """1 for codes that name an item."""

    def __call__(self, question: RewardBatch) -> Rewards:
        legal = (question.item_ids >= 0).float()
        return Rewards(legal, {"legal": legal})


class Raises:
    def __call__(self, question: RewardBatch) -> Rewards:
        raise KeyError("no such table")


def test_a_sum_reports_what_it_is_made_of() -> None:
    reward = Together({"number": (2.0, Numbers()), "format": (0.5, Legal())})
    found = reward(asked(GROUP))
    expected = 2 * torch.tensor([[1, 2, 3, 0], [4, 5, 6, 6.0]]) + 0.5 * torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1.0]])
    torch.testing.assert_close(found.total, expected)
    assert set(found.parts) == {"number", "format"}
    assert found.parts["format"].sum() == 7


@pytest.mark.parametrize(
    ("reward", "message"),
    [(Constant(float("nan")), "reward 'odd' of request 0, item 0 is nan"), (Raises(), "reward 'odd' failed: KeyError")],
)
def test_a_broken_reward_is_named(reward: object, message: str) -> None:
    together = Together({"number": (1.0, Numbers()), "odd": (1.0, reward)})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=message) as caught:
        together(asked(GROUP))
    assert "leave it out" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_constant_reward_ends_the_run_after_three_steps() -> None:
    together = Together({"flat": (1.0, Constant(0.3))})
    for _ in range(2):
        together(asked(GROUP))
    with pytest.raises(InputError, match="reward 'flat' gave all items of every group the same number for 3 steps"):
        together(asked(GROUP))


def test_a_reward_that_differs_once_starts_anew() -> None:
    class Once:
        calls = 0

        def __call__(self, question: RewardBatch) -> Rewards:
            self.calls += 1
            return Numbers()(question) if self.calls == 3 else Constant(1.0)(question)

    reward = Once()
    together = Together({"hit": (1.0, reward)})
    for _ in range(5):
        together(asked(GROUP))
    with pytest.raises(InputError, match="the same number for 3 steps"):
        together(asked(GROUP))
    assert reward.calls == 6  # three steps after the one that differed


def test_no_reward_at_all() -> None:
    with pytest.raises(InputError, match="no reward is named"):
        Together({})


class FourTasks(torch.nn.Module):
    """Stands for a P-Score: task t of item i is i * 10 ** -t."""

    tasks = ("p", "click", "like")
    reads = Reads(10)

    def context(self, batch: object) -> object:
        return batch

    def score(self, context: object, candidates: torch.Tensor) -> torch.Tensor:
        return torch.stack([candidates * 10.0**-place for place in range(3)], dim=-1)


def test_a_network_answers_with_the_tasks_it_is_asked_for() -> None:
    reward = NetworkReward(FourTasks(), {"p": 1.0, "like": 100.0})  # type: ignore[arg-type]
    found = reward(asked(GROUP))
    numbers = torch.tensor([[0, 1, 2, 0], [3, 4, 5, 5.0]])
    torch.testing.assert_close(found.total, 2 * numbers)
    torch.testing.assert_close(found.parts["like"], numbers / 100)
    with pytest.raises(InputError, match="names the task 'clicks'"):
        NetworkReward(FourTasks(), {"clicks": 1.0})  # type: ignore[arg-type]
