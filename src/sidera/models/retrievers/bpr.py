"""BPR: factors that rank what a user had above what they had not (Rendle et al., arXiv 1205.2618), learned by the
library implicit.

    minimise  - log sigmoid(x_u . (y_i - y_j) + b_i - b_j) + regularization (|x|^2 + |y|^2 + b^2)

over triples (user, item that they had, item drawn among those that they had not), by plain gradient steps. Users'
factors are learned too, but not kept: they answer users of the training log alone. A history's vector is the mean of
its items' factors; on validation rows of Amazon Beauty it was no worse than the users' own. ``choose`` takes the
regularization from a grid, by the validation rows.

    sidera run recipes/any/bpr.toml --data data/mine --out runs/any-bpr

Shape legend: B histories · T events of all · N items · D factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.models.retrievers.factors import FactorConfig, ItemFactors, library


class BPR(ItemFactors):
    """Item factors with a bias in their last column, and the mean of a history's factors as its user."""

    @dataclass(frozen=True)
    class Config(FactorConfig):
        iterations: int = 100  # draws of as many triples as there are training events
        regularization: float = 0.01  # weight of the factors' squares
        learning_rate: float = 0.1  # of a gradient step

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_positive("regularization", "learning_rate")

    setting = "regularization"
    grid = (0.001, 0.01, 0.03)
    config: Config

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__(config, catalog, config.factors + 1)

    def learn(self, user_items: Any, regularization: float) -> None:
        """Gradient steps from the seed's factors on, one thread: the triples come in one order."""
        config = self.config
        learned = library("bpr").BayesianPersonalizedRanking(
            factors=config.factors, learning_rate=config.learning_rate, regularization=regularization,
            iterations=config.iterations, use_gpu=False, num_threads=1, random_state=config.seed,
        )  # fmt: skip
        learned.fit(user_items, show_progress=False)
        self.put(learned.item_factors)

    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, 1, D + 1): the last column, 1, meets the items' bias."""
        events = batch.events
        vectors = self.factors[batch.item_ids]  # (T, D + 1)
        sums = vectors.new_zeros(batch.num_histories, vectors.shape[1]).index_add_(0, events.row_ids, vectors)
        means = sums[:, :-1] / events.lengths.clamp(min=1)[:, None]
        return torch.cat((means, torch.ones_like(means[:, :1])), dim=1)[:, None]
