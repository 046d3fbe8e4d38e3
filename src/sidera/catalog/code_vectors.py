"""Embeddings of codes that start where the quantizer put them: codes that say alike begin near each other.

    start_from_centroids(table.weight, catalog, level=0, std=0.02)

The centroids of a level are centred, turned into the table's width by directions that the level's number decides, and
scaled to the deviation that a random start would have. A level that no quantizer wrote (an extra digit) stays random.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.catalog import Catalog


def start_from_centroids(rows: Tensor, catalog: Catalog, level: int, std: float) -> None:
    """Overwrite ``rows`` (K, width) of a level's codes; ``std``: the deviation of their numbers."""
    if catalog.quantizer is not None and level < len(catalog.quantizer.level_sizes):
        start_from(rows, catalog.quantizer.code_vectors(level), level, std)


def start_nodes(levels: Iterable[Sequence[Any]], catalog: Catalog, std: float) -> None:
    """Overwrite tables of a tree's nodes, some a level: a node begins at what the codes up to it say of a vector. The
    rows of a level are its prefixes in code order."""
    codes, quantizer = np.asarray(catalog.codes), catalog.quantizer
    for level, tables in enumerate(levels):
        if quantizer is not None and level < len(quantizer.level_sizes):
            prefixes = torch.from_numpy(np.unique(codes[:, : level + 1], axis=0).astype(np.int64))
            for table in tables:
                start_from(table.weight, quantizer.decode(prefixes), level, std)


def start_from(rows: Tensor, vectors: Tensor, seed: int, std: float) -> None:
    """Overwrite ``rows`` (K, width) by what ``vectors`` (K, d) say; nothing happens where these are all equal."""
    centred = (vectors - vectors.mean(0)).float()
    size = max(rows.shape[1], centred.shape[1])
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    placed = centred @ directions[: centred.shape[1], : rows.shape[1]]
    spread = float(placed.square().mean().sqrt())
    if spread > 0:
        with torch.no_grad():
            rows.copy_(placed * (std / spread))
