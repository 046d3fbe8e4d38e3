"""ALS: weighted matrix factorisation of who had what (Hu, Koren and Volinsky 2008), learned by the library implicit.

    minimise  sum over users u and items i:  c_ui (p_ui - x_u . y_i)^2 + regularization (|x|^2 + |y|^2)

p is 1 for an item that the user had, else 0; its weight c is ``alpha`` times how often, else 1. A history's vector is
the exact minimiser over x with the item factors held fixed ("fold-in"), so it is the same for a user of the training
log and for anybody else:

    x = (Y'Y + regularization I + sum over the history's items (c_i - 1) y_i y_i')^-1  sum c_i y_i

Order and time say nothing here. ``choose`` takes ``alpha`` from a grid, by the validation rows.

    sidera run recipes/any/als.toml --data data/mine --out runs/any-als

Shape legend: B histories · S longest history · T events of all · N items · D factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.models.retrievers.factors import FactorConfig, ItemFactors, library
from sidera.ops.jagged import Jagged


class ALS(ItemFactors):
    """Item factors, and the least-squares user of each history."""

    @dataclass(frozen=True)
    class Config(FactorConfig):
        iterations: int = 15  # alternations between users and items
        regularization: float = 1.0  # weight of the factors' squares
        alpha: float = 10.0  # weight of an item that the user had, against 1 of every other

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_positive("regularization", "alpha")

    setting = "alpha"
    grid = (3.0, 10.0, 40.0)
    config: Config
    gram: Tensor  # (D, D) Y'Y + regularization I

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(config, catalog, config.factors)
        self.register_buffer("gram", torch.eye(config.factors))

    def learn(self, user_items: Any, alpha: float) -> None:
        """Alternate from the seed's factors on, one thread."""
        config = self.config
        learned = library("als").AlternatingLeastSquares(
            factors=config.factors, regularization=config.regularization, alpha=alpha,
            iterations=config.iterations, use_gpu=False, num_threads=1, random_state=config.seed,
        )  # fmt: skip
        learned.fit(user_items, show_progress=False)
        self.put(learned.item_factors)
        identity = torch.eye(config.factors, device=self.factors.device)
        self.gram.copy_(self.factors.T @ self.factors + config.regularization * identity)

    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, 1, D)"""
        ids, real = Jagged(batch.item_ids, batch.events.offsets).pad(-1)  # (B, S)
        times = (ids[:, :, None] == ids[:, None, :]).sum(2)  # (B, S) how often the history holds the item of a place
        # float64: a row's padding depends on the histories beside it and would else move the last digits
        vectors = (self.factors[ids.clamp(min=0)] * real[:, :, None]).double()  # (B, S, D)
        alpha = self.chosen[0].double()
        weights = alpha - 1 / times.double()  # over an item's places the sum is c - 1
        outer = (vectors * weights[:, :, None]).transpose(1, 2) @ vectors  # (B, D, D)
        found: Tensor = torch.linalg.solve(self.gram.double() + outer, alpha * vectors.sum(1))
        return found.float()[:, None]
