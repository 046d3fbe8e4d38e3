"""A generator of lists without a network: every code of a list is looked up by all codes before it."""

from __future__ import annotations

from typing import Any

import torch
from table_generator import TableContext, TableGenerator
from torch import Tensor

from sidera.batch import Batch
from sidera.roles import Loss, StepOutput


class ListTables:
    """A :class:`TableGenerator` whose levels are those of ``session_length`` items one after another."""

    codebook_id = "table"

    def __init__(self, level_sizes: tuple[int, ...], session_length: int, list_beam: int = 4, **settings: Any) -> None:
        self.level_sizes, self.session_length, self.list_beam = level_sizes, session_length, list_beam
        self.inner = TableGenerator(level_sizes * session_length, **settings)

    def loss(self, batch: Batch) -> Loss:
        return self.inner.loss(batch)

    def context(self, batch: Batch) -> TableContext:
        return self.inner.context(batch)

    def new_cache(self, context: TableContext, width: int) -> dict[str, Any]:
        return {**self.inner.new_cache(context, width), "place": 0}

    def step(
        self, context: TableContext, cache: dict[str, Any], level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        place = cache["place"]
        assert level == place % len(self.level_sizes)
        assert (codes is None) == (place == 0)
        cache["place"] += 1
        return self.inner.step(context, cache, place, codes, parents)

    def log_probs(self, context: TableContext, sids: Tensor) -> Tensor:
        return self.log_probs_lists(context, sids[:, :, None])[:, :, 0]

    def code_logits(self, context: TableContext, sids: Tensor) -> list[Tensor]:
        rest = sids.new_zeros(*sids.shape[:2], (self.session_length - 1) * sids.shape[2])
        return list(self.inner.code_logits(context, torch.cat((sids, rest), dim=2)))[: sids.shape[2]]

    def log_probs_lists(self, context: TableContext, sids: Tensor) -> Tensor:
        batch, lists, length, num_levels = sids.shape
        rest = sids.new_zeros(batch, lists, (self.session_length - length) * num_levels)
        stream = torch.cat((sids.flatten(2), rest), dim=2)
        log_p = self.inner.log_probs(context, stream)[:, :, : length * num_levels]
        return log_p.view(sids.shape)
