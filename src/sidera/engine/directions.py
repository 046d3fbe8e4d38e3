"""Directions of what items' codes stand for, which the transition expert compares a history's items with.

An item's vector follows from its codes, so items of one cluster share it. Where a quantizer has few clusters, those of
a catalogue are decoded once and an item is one look-up; elsewhere the clusters that are asked for are decoded.

Shape legend: N items · V clusters · D dims.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sidera.catalog.catalog import Catalog

FEW = 4096  # clusters that are all compared with a history: a table of 1 MB at 64 dims


@dataclass(frozen=True, eq=False)
class _Clusters:
    """Every cluster that the quantizer can write, and that of each item."""

    vectors: Tensor  # (V, D)
    of_item: Tensor  # (N,) int64
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, catalog: Catalog, sizes: tuple[int, ...]) -> _Clusters:
        codes = np.stack(np.unravel_index(np.arange(int(np.prod(sizes))), sizes), axis=1)
        quantizer, own = catalog.quantizer, np.asarray(catalog.codes)[:, : len(sizes)]
        assert quantizer is not None
        vectors = quantizer.decode(torch.from_numpy(codes.astype(np.int64))).float()
        of_item = np.ravel_multi_index(own.T.astype(np.int64), sizes)
        return cls(normalize(vectors, dim=1), torch.from_numpy(of_item))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._moved:
            self._moved[device] = self.vectors.to(device), self.of_item.to(device)
        return self._moved[device]


_KEPT: WeakKeyDictionary[Catalog, _Clusters] = WeakKeyDictionary()


def directions(catalog: Catalog, item_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(...,) items -> directions (V, D) of clusters, each once, and which of them is an item's (...)."""
    sizes = () if catalog.quantizer is None else tuple(catalog.quantizer.level_sizes)
    if sizes and np.prod(sizes) <= FEW:
        clusters = _KEPT.get(catalog)
        if clusters is None:
            clusters = _KEPT[catalog] = _Clusters.of(catalog, sizes)
        vectors, of_item = clusters.on(item_ids.device)
        return vectors, of_item[item_ids]
    return decoded(catalog, item_ids)


def decoded(catalog: Catalog, item_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the clusters of these items alone, decoded now."""
    ids = item_ids.cpu().numpy().reshape(-1)
    levels = 0 if catalog.quantizer is None else len(catalog.quantizer.level_sizes)
    keys = np.zeros(len(ids), np.int64)
    for level, codes in enumerate(np.asarray(catalog.codes[ids], np.int64).T[:levels]):
        keys = keys * catalog.level_sizes[level] + codes
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    vectors = torch.from_numpy(np.asarray(catalog.item_vectors[ids[first]], dtype=np.float32)).to(item_ids.device)
    return normalize(vectors, dim=1), torch.from_numpy(places).view(item_ids.shape).to(item_ids.device)
