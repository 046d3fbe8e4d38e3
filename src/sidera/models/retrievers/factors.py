"""Item factors learned by the library implicit from who had what, in no order: what ALS and BPR share.

The library is optional (``pip install 'sidera[baselines]'``) and is needed to learn, not to answer. It works in one
thread here, so that one seed gives one result. A user's factors are never kept: they are made from the history when it
asks, so that any history is answered.

Shape legend: B histories · T events of all · N items · D factors · U users.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.data.config import View
from sidera.data.split import train_sequences
from sidera.models.retrievers.validation import validation_ndcg


@dataclass(frozen=True)
class FactorConfig:
    """What both models let a recipe say."""

    max_history: int = 50  # events read of a history
    factors: int = 64  # dims of an item
    iterations: int = 15  # passes over the training events
    seed: int = 0  # of the first factors and of what is drawn
    choose: bool = True  # take what the model's page names from a grid, by the validation rows

    def __post_init__(self) -> None:
        check_counts("[model]", self, "max_history", "factors", "iterations")
        check_counts("[model]", self, "seed", low=0)

    def check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            check_value("[model]", name, value, 0 < value < float("inf"), "a finite number above 0")

    @property
    def reads(self) -> Reads:
        return Reads(self.max_history)


class ItemFactors(nn.Module):
    """A vector for every item; a history's vector is made of those of its items."""

    role = "scorer"
    needs = "implicit"  # the module that fit_once imports
    reads_codes = False
    reads_late_items = False  # nothing was learned of them
    setting: str  # the key of the config that is chosen
    grid: tuple[float, ...]  # its values to choose among
    factors: Tensor  # (N, D)
    chosen: Tensor  # (1,) the value that it was learned with

    def __init__(self, config: FactorConfig, catalog: Catalog, width: int) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.register_buffer("factors", torch.zeros(len(catalog.item_keys), width))
        self.register_buffer("chosen", torch.tensor([self.own_setting]))

    @property
    def own_setting(self) -> float:
        """What the recipe says."""
        value: float = getattr(self.config, self.setting)
        return value

    def fit_once(self, view: View) -> None:
        """Learn from the training sequences; InputError where the library is not installed."""
        user_items = training_matrix(view)
        settings = self.grid if self.config.choose and len(view.split.valid) else ()
        trials = {}
        with one_thread():
            for one in settings:
                self.learn_with(user_items, one)
                trials[one] = validation_ndcg(self, view)
            best = max(trials, key=lambda one: trials[one]) if trials else self.own_setting
            if not trials or best != settings[-1]:  # else it was learned last
                self.learn_with(user_items, best)

    def count_again(self, view: View) -> None:
        """Learn from another training part, with the setting that was chosen."""
        with one_thread():
            self.learn_with(training_matrix(view), round(float(self.chosen[0]), 6))

    def learn_with(self, user_items: Any, setting: float) -> None:
        """Learn, and keep the setting."""
        self.chosen.fill_(setting)
        self.learn(user_items, setting)

    @abstractmethod
    def learn(self, user_items: Any, setting: float, /) -> None:
        """Fill the buffers from a sparse matrix (U, N) of counts."""

    @abstractmethod
    def user_vectors(self, batch: Batch) -> Tensor:
        """(B, 1, D)"""

    def item_vectors(self) -> Tensor:
        """(N, D)"""
        return self.factors

    def item_scores(self, batch: Batch) -> Tensor:
        """(B, N), summed in float64: items that were had by the same users tie, whatever histories are beside."""
        return (self.user_vectors(batch)[:, 0].double() @ self.factors.double().T).float()

    def put(self, factors: np.ndarray) -> None:
        """Take over factors (N, D) of the library."""
        self.factors.copy_(torch.from_numpy(np.asarray(factors, dtype=np.float32)))


def library(name: str) -> Any:
    """A module of implicit; InputError where it is not installed."""
    try:
        return import_module(f"implicit.{name}")
    except ImportError as error:
        problem = f"the models als and bpr are learned by the library implicit, which cannot be imported ({error})"
        raise InputError(problem, fix="pip install 'sidera[baselines]'") from None


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for the matrix products of numpy and scipy: implicit calls them for every user."""
    limits: Any = import_module("threadpoolctl").threadpool_limits  # comes with implicit
    with limits(1, "blas"):
        yield


def training_matrix(view: View) -> Any:
    """(U, N) scipy CSR: how often each user had each item in the training part."""
    library("als")  # its absence is said before anything is counted
    sparse = import_module("scipy.sparse")
    item_ids, offsets = train_sequences(view.dataset, view.split)
    shape = (len(offsets) - 1, view.dataset.num_items)
    counts = sparse.csr_matrix((np.ones(len(item_ids), np.float32), item_ids, offsets), shape=shape)
    counts.sum_duplicates()
    return counts
