"""One vector per item, from its id, its codes, its categories and its numbers.

The id's own vector starts at zero and is dropped for whole items in training: an item that was never trained on, or
seldom, is then what its content says and nothing random.

Shape legend: N items · D width · F numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sidera.nn.item_embedding import ItemOffset, ItemRows


class ItemFeatures(nn.Module):
    """(...,) item ids -> (..., D)."""

    def __init__(
        self,
        codes: np.ndarray,
        level_sizes: tuple[int, ...],
        categories: Mapping[str, np.ndarray],
        numbers: np.ndarray | None,
        width: int,
        id_dropout: float = 0.2,
    ) -> None:
        """``codes`` (N, L); ``categories`` field -> (N,), 0: unknown; ``numbers`` (N, F), None: none are known."""
        super().__init__()
        self.width, self.id_dropout = width, id_dropout
        self.own = ItemOffset(len(codes), width)
        nn.init.zeros_(self.own.weight)
        self.register_buffer("codes", torch.from_numpy(np.asarray(codes, dtype=np.int64)), persistent=False)
        self.code = nn.ModuleList(nn.Embedding(size, width) for size in level_sizes)
        self.fields = tuple(categories)
        for name, values in categories.items():
            table = torch.from_numpy(np.asarray(values, dtype=np.int64))
            self.register_buffer(f"category_{name}", table, persistent=False)
        self.category = nn.ModuleDict(
            {name: nn.Embedding(int(values.max(initial=0)) + 1, width) for name, values in categories.items()}
        )
        known = torch.zeros(len(codes), 0) if numbers is None else torch.from_numpy(np.asarray(numbers))
        self.numbers: Tensor
        self.register_buffer("numbers", known, persistent=False)
        self.from_numbers = nn.Linear(known.shape[1], width, bias=False) if known.shape[1] else None
        for module in (*self.code, *self.category.values()):
            nn.init.normal_(module.weight, std=0.5 * width**-0.5)

    @property
    def num_items(self) -> int:
        return self.own.num_embeddings

    def grow(self, items: ItemRows) -> None:
        """Take in items that came later: their codes, their categories (0 where one is new), and of their numbers the
        mean, which is 0."""
        device, late = self.numbers.device, len(items.codes) - len(self.numbers)
        self.codes = torch.from_numpy(np.asarray(items.codes, dtype=np.int64)).to(device)
        for name in self.fields:
            values = torch.from_numpy(np.asarray(items.features[name], dtype=np.int64)).to(device)
            known_mask = values < cast(nn.Embedding, self.category[name]).num_embeddings
            setattr(self, f"category_{name}", torch.where(known_mask, values, 0))
        self.numbers = torch.cat((self.numbers, self.numbers.new_zeros(late, self.numbers.shape[1])))

    def category_ids(self, field: str) -> Tensor:
        """(N,) category of every item, 0: unknown."""
        return getattr(self, f"category_{field}")

    def table(self) -> Tensor:
        """(N, D) of all items: cheaper than one by one as soon as a batch names most of them."""
        own = self.own.weight
        if self.training and self.id_dropout:
            own = own * (torch.rand(len(own), 1, device=own.device) >= self.id_dropout)
        codes = self.codes
        parts = [own, *(embed(codes[:, level]) for level, embed in enumerate(self.code))]
        parts += [embed(self.category_ids(name)) for name, embed in self.category.items()]
        if self.from_numbers is not None:
            parts.append(self.from_numbers(self.numbers))
        return torch.stack(parts).sum(0)
