"""Multi-token prediction on TIGER: the first decoder state also says every later code (Gloeckle et al. 2024,
arXiv 2404.19737, with heads side by side; DeepSeek-V3, arXiv 2412.19437, uses it as a training aid and for drafts).

    sidera run recipes/any/tiger_mtp.toml --data data/mine --out runs/any-tiger-mtp

A TIGER with one more head for each level but the first. The head of level l reads the state that writes the first
code and predicts code l without having seen the codes before it; its loss is added with ``mtp_weight``. Three ways to
answer:

* ``beam``: TIGER's own search, which the heads do not change;
* ``draft``: the heads score all items at once, TIGER itself scores the best of these exactly (``decode.drafted``);
* ``exact``: the heads alone (``decode.parallel``). Later codes of a residual quantizer mean nothing without the first,
  so this loses what the codes say of each other.

Shape legend: B histories · L levels · K codes of a level · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.config import check_value
from sidera.models.generators.tiger import BEGIN, Tiger
from sidera.models.generators.tiger_decode import TigerContext
from sidera.nn.counters import TRAINING, matmul_flops
from sidera.nn.t5 import own_casts


class LaterHead(nn.Module):
    """The state of the first code -> what a later level's codes are compared with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, state: Tensor) -> Tensor:
        """(B, D) -> (B, D)"""
        found: Tensor = state + self.down(F.silu(self.up(self.norm(state))))
        return found


class TigerMTP(Tiger):
    """A TIGER whose first state says all codes."""

    @dataclass(frozen=True)
    class Config(Tiger.Config):
        mtp_weight: float = 0.3  # of the later heads' loss, a level; the first level's is TIGER's own

        def __post_init__(self) -> None:
            super().__post_init__()
            check_value("[model]", "mtp_weight", self.mtp_weight, 0 <= self.mtp_weight <= 10, "0 to 10")
            fits = self.normalize == "level"
            check_value("[model]", "normalize", self.normalize, fits, '"level": heads score the codes of a level')

    ways = ("beam", "draft", "exact")

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.mtp_weight = config.mtp_weight
        self.later = nn.ModuleList(LaterHead(config.width) for _ in self.level_sizes[1:])
        self._parts = tuple(part for part in self.modules() if part._parameters)

    def _level_losses(self, states: Tensor, tokens: Tensor) -> Tensor:
        """(L,) sums of cross-entropies; those of later levels hold the later heads' too."""
        own, first = super()._level_losses(states, tokens), states[:, 0]
        later = [own.new_zeros(())]
        for level, logits in enumerate(self._later_logits(first), start=1):
            target = tokens[:, level] - self.level_starts[level]
            later.append(F.cross_entropy(logits.float(), target, reduction="sum"))
        return own + self.mtp_weight * torch.stack(later)

    def _later_logits(self, first: Tensor) -> list[Tensor]:
        """(B, D) states of the first code -> (B, K) of every later level."""
        found = []
        for level, head in enumerate(self.later, start=1):
            found.append(self._logits(cast(Tensor, head(first.float())).to(first.dtype), level)[1])
        return found

    def code_log_probs(self, context: TigerContext) -> list[Tensor]:
        """L of (B, K), from the state that writes the first code."""
        with own_casts(self.embedding.weight) as dtype:
            begin = self.embedding.weight[BEGIN].expand(context.num_histories, -1)
            first = self.decoder(begin, context.states, 1, context.layout, dtype=dtype).to(dtype)
            first = torch.empty_like(first).index_copy(0, context.order, first)
            logits = [self._logits(first, 0)[1], *self._later_logits(first)]
        return [scores.float().log_softmax(-1) for scores in logits]

    def code_vectors(self) -> list[Tensor]:
        """L of (K, D)"""
        starts = zip(self.level_starts, self.level_sizes, strict=True)
        return [self.embedding.weight[start : start + size] for start, size in starts]

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        targets, width = batch.num_histories, self.config.width
        heads = matmul_flops(self.later, targets) + 2.0 * targets * sum(self.level_sizes[1:]) * width
        return super().flops_per_batch(batch) + TRAINING * heads
