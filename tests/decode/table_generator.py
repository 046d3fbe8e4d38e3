"""A Generator without a network: the logits of every prefix are looked up in random tables.

Small enough to score everything by hand, and able to be wrong in the ways that a cache can be wrong: with
``recompute=True`` it ignores what it kept from the last step and follows the ``parents`` back to level 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hand_made import hand_made
from sidera.batch import Batch
from sidera.roles import Loss, StepOutput

Norm = Literal[
    "codes",  # softmax over the level's codes, left to the decoder
    "vocabulary",  # softmax over more than the level's codes, normalised by the generator
    "none",  # no softmax: sums of multiples of 1/1024, exact in float32 whatever their order
]


@dataclass(frozen=True)
class TableContext:
    histories: Tensor  # (B,) which table each history reads
    nbytes: int = 0

    @property
    def num_histories(self) -> int:
        return self.histories.numel()


class TableGenerator:
    """``tables[l][h, p, k]``: logit of code k after prefix p (mixed-radix number) in history h."""

    codebook_id = "table"

    def __init__(
        self, level_sizes: tuple[int, ...], num_histories: int, seed: int, *, ties: bool = False,
        norm: Norm = "codes", recompute: bool = False,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.level_sizes, self.norm, self.recompute = tuple(level_sizes), norm, recompute
        self.tables: list[Tensor] = []
        prefixes = 1
        for size in level_sizes:
            table = torch.randn(num_histories, prefixes, size, generator=generator)
            if ties or norm == "none":
                table = table.round() if ties else (table * 1024).round() / 1024
            self.tables.append(table)
            prefixes *= size

    def loss(self, batch: Batch) -> Loss:
        raise AssertionError("a table has nothing to learn")

    def context(self, batch: Batch) -> TableContext:
        """One event per history names its table."""
        return TableContext(batch.item_ids)

    def new_cache(self, context: TableContext, width: int) -> dict[str, Any]:
        return {"width": width, "prefix": torch.zeros(context.num_histories, 1, dtype=torch.long), "trail": []}

    def step(
        self, context: TableContext, cache: dict[str, Any], level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        if level:
            assert codes is not None
            assert parents is not None
            assert codes.shape == parents.shape
            assert codes.shape[1] <= cache["width"]
            cache["trail"].append((codes, parents))
            if self.recompute:
                cache["prefix"] = self._prefix_from_trail(cache["trail"])
            else:
                cache["prefix"] = cache["prefix"].gather(1, parents) * self.level_sizes[level - 1] + codes
        logits = self._logits(context, level, cache["prefix"])
        return StepOutput(logits, None if self.norm == "codes" else self._norm(logits))

    def log_probs(self, context: TableContext, sids: Tensor) -> Tensor:
        found, prefix = [], torch.zeros(sids.shape[:2], dtype=torch.long)
        for level, size in enumerate(self.level_sizes):
            logits = self._logits(context, level, prefix)  # (B, G, K)
            found.append(logits.gather(-1, sids[..., level, None])[..., 0] - self._norm(logits))
            prefix = prefix * size + sids[..., level]
        return torch.stack(found, dim=-1)

    def code_logits(self, context: TableContext, sids: Tensor) -> list[Tensor]:
        found, prefix = [], torch.zeros(sids.shape[:2], dtype=torch.long)
        for level, size in enumerate(self.level_sizes):
            found.append(self._logits(context, level, prefix))
            prefix = prefix * size + sids[..., level]
        return found

    def _logits(self, context: TableContext, level: int, prefix: Tensor) -> Tensor:
        return self.tables[level][context.histories[:, None], prefix]

    def _norm(self, logits: Tensor) -> Tensor:
        if self.norm == "none":
            return torch.zeros(logits.shape[:-1])
        norm = logits.logsumexp(-1)
        return norm if self.norm == "codes" else torch.logaddexp(norm, torch.tensor(1.5))

    def _prefix_from_trail(self, trail: list[tuple[Tensor, Tensor]]) -> Tensor:
        codes, beams = trail[-1]
        prefix, weight = codes.clone(), 1
        for level in reversed(range(1, len(trail))):
            weight *= self.level_sizes[level]
            prefix += trail[level - 1][0].gather(1, beams) * weight
            beams = trail[level - 1][1].gather(1, beams)
        return prefix


def indices(num_histories: int) -> Batch:
    """A batch whose history b reads table b."""
    return hand_made(torch.arange(num_histories), torch.arange(num_histories + 1))
