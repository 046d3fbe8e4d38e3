"""A batch to ask rewards about, without a model."""

from __future__ import annotations

import pyarrow as pa
import torch

from hand_made import hand_made
from sidera.align.rewards import RewardBatch, Rewards

DAY = 86_400
ITEMS = pa.table(
    {
        "key": [f"i{number}" for number in range(6)],
        "creator": ["a", "a", "a", "b", "c", None],
        "tags": [["x", "y"], ["y"], [], ["z"], None, ["x"]],
        "viral": [True, False, False, True, False, False],
        "created": pa.array([0, 9 * DAY, 10 * DAY, 0, None, 0], pa.int64()),
    }
)


def asked(item_ids: list[list[int]], as_of: int = 10 * DAY) -> RewardBatch:
    number = len(item_ids)
    batch = hand_made(
        torch.zeros(number, dtype=torch.int64), torch.arange(number + 1), as_of=torch.full((number,), as_of)
    )
    return RewardBatch(batch, torch.tensor(item_ids))


class Numbers:
    """A reward that is the item's number + 1."""

    def __call__(self, question: RewardBatch) -> Rewards:
        return Rewards((question.item_ids + 1).float())
