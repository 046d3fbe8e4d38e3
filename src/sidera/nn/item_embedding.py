"""A vector for every item that a training knew, and for items that came later a fallback from what they are.

An item that came after the training has no trained vector. It gets the mean of the trained vectors of the items that it
is most like: those with the longest prefix of its codes, else those of one of its categories, else all. A model of
trained rows is never changed: :func:`grown` makes another over the longer table, which shares every other weight.

Shape legend: N trained items · M later ones · L levels of a semantic ID · D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn


class ItemRows(Protocol):
    """What is read of a ``data.items.ItemTable``."""

    @property
    def codes(self) -> Any: ...  # (N + M, L)

    @property
    def features(self) -> Mapping[str, Any]: ...  # name -> (N + M, ...), as ``data.feature`` encodes it

    def titles_from(self, first: int) -> list[str | None]: ...  # of the items from ``first`` on


class ItemEmbedding(nn.Embedding):
    """(...,) dense item ids -> (..., D)."""

    def longer(self, items: ItemRows) -> ItemEmbedding:
        """The table of all of ``items``, whose first rows are these."""
        rows = torch.cat((self.weight.detach(), self.late_rows(items)))
        table = type(self)(rows.shape[0], rows.shape[1], _weight=rows)
        return table.requires_grad_(False)

    def late_rows(self, items: ItemRows) -> Tensor:
        """(M, D) of the items behind the trained ones."""
        return fallback_rows(self.weight.detach(), items)


class ItemOffset(ItemEmbedding):
    """What an item's own vector adds to what its content says: nothing where it came later."""

    def late_rows(self, items: ItemRows) -> Tensor:
        """(M, D) zeros."""
        return self.weight.new_zeros(len(items.codes) - len(self.weight), self.weight.shape[1])


def fallback_rows(trained: Tensor, items: ItemRows) -> Tensor:
    """(M, D): for every item behind the trained rows (N, D) the mean of those that it is most like."""
    number, total = len(trained), len(items.codes)
    late = np.arange(number, total)
    found = trained.mean(0).expand(len(late), -1).clone()
    open_mask = np.ones(len(late), dtype=bool)
    for keys in _likeness(items):
        group, which = np.unique(keys, return_inverse=True)
        sizes = np.bincount(which[:number], minlength=len(group))
        known = keys[number:] >= 0
        taken = np.flatnonzero(open_mask & known & (sizes[which[number:]] > 0))
        if not len(taken):
            continue
        wanted = torch.from_numpy(which[number:][taken]).to(trained.device)
        members = torch.from_numpy(which[:number]).to(trained.device)
        sums = trained.new_zeros(len(group), trained.shape[1]).index_add_(0, members, trained)
        means = sums / torch.from_numpy(sizes).to(trained.device).clamp(min=1)[:, None]
        found[torch.from_numpy(taken).to(trained.device)] = means[wanted].to(found.dtype)
        open_mask[taken] = False
        if not open_mask.any():
            break
    return found


def _likeness(items: ItemRows) -> Iterator[np.ndarray]:
    """(N + M,) keys that like items share, the most telling first; -1 where nothing is known."""
    codes = np.asarray(items.codes, dtype=np.int64)
    prefixes = [np.zeros(len(codes), dtype=np.int64)]
    for column in codes.T:  # of numbers below the number of items, so that a product of two fits
        _, numbers = np.unique(prefixes[-1] * (int(codes.max()) + 1) + column, return_inverse=True)
        prefixes.append(numbers)
    yield from reversed(prefixes[1:])
    for values in items.features.values():
        column = np.asarray(values)
        if column.ndim == 1 and column.dtype.kind == "i":  # a category
            yield np.where(column > 0, column, -1)


def with_siblings(old: Tensor, rows: Tensor, parents: Tensor) -> Tensor:
    """(n, D) rows of ``old`` (m, D) by old number (n,); those that are new (-1) get the mean of the nodes with the same
    parent (n,), or of all where every sibling is new."""
    known = rows >= 0
    found = old[rows.clamp(min=0)]
    number = int(parents.max()) + 1
    sums = old.new_zeros(number, old.shape[1]).index_add_(0, parents[known], found[known])
    counts = torch.bincount(parents[known], minlength=number)
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], old.mean(0))
    return torch.where(known[:, None], found, means[parents])


def grown(model: nn.Module, items: ItemRows) -> nn.Module:
    """``model`` over a longer table of items; itself where it has no row per item, or no item came.

    A part that has more than item vectors (a tree of the items) says by a method ``grow(items)`` what else changes, and
    one that has none of them by ``num_items`` how many it knows.
    """
    tables = {name: part for name, part in model.named_modules() if isinstance(part, ItemEmbedding)}
    counts = [part.num_embeddings for part in tables.values()]
    counts += [
        int(cast(Any, part).num_items)
        for part in model.modules()
        if hasattr(part, "grow") and hasattr(part, "num_items")
    ]
    if all(number == len(items.codes) for number in counts):
        return model
    shared = {id(part): part for part in (*model.parameters(), *model.buffers())}
    new = copy.deepcopy(model, cast(dict[int, Any], shared)).eval()
    for name, part in tables.items():
        new.set_submodule(name, part.longer(items))
    for grows in [module for module in new.modules() if hasattr(module, "grow")]:
        cast(Any, grows).grow(items)
    return new
