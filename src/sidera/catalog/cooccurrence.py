"""Item vectors from behaviour: which items occur near each other in the users' training events.

Counts of item pairs inside a window (nearer pairs weigh more) become positive pointwise mutual information, whose
truncated eigenvectors are the item vectors (Levy & Goldberg 2014: what word2vec factorises). Torch and numpy only.

Trap: only events before ``split.train_ends`` may enter, otherwise the catalogue knows the answers of the test.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.config import CatalogConfig
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.split import Split

SWEEPS = 12  # of the subspace iteration
MANY_PAIRS = 8_000_000  # counted pairs, from which on a sweep costs seconds and FEW_SWEEPS have to do
FEW_SWEEPS = 5  # Halko, Martinsson and Tropp 2011: four power steps bring the leading subspace near its optimum


def behaviour_vectors(dataset: Dataset, split: Split, config: CatalogConfig) -> Tensor:
    """(N, D) float32 with D at most ``config.vector_dim``; items without a training neighbour get the zero row."""
    rows, columns, weights = cooccurrence(dataset, split, config.window)
    if not len(rows):
        raise InputError(
            "vectors = ['behaviour'] needs a user with two different training items, and there is none",
            fix='use vectors = ["text"] or ["tfidf"], or more data',
        )
    matrix = ppmi(rows, columns, weights, dataset.num_items)
    dim = min(config.vector_dim, dataset.num_items)
    sweeps = SWEEPS if len(rows) <= MANY_PAIRS else FEW_SWEEPS
    directions, values = top_eigenpairs(matrix, dim, config.seed, sweeps)  # (N, D), (D,)
    vectors = directions * values.clamp(min=0).pow(config.singular_power)
    known = np.bincount(rows, minlength=dataset.num_items) > 0
    vectors[torch.from_numpy(~known)] = 0.0
    return vectors


def cooccurrence(dataset: Dataset, split: Split, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symmetric counts as (row, column, weight) triples, each pair of items once; a pair d events apart weighs 1/d."""
    train = np.arange(dataset.num_events) < split.train_ends[dataset.event_users]
    items, users = dataset.item_ids[train], dataset.event_users[train]
    keys, weights = [], []
    for distance in range(1, min(window, len(items) - 1) + 1):
        left, right = items[:-distance], items[distance:]
        pair = (users[:-distance] == users[distance:]) & (left != right)
        left, right = left[pair], right[pair]
        keys += [left * dataset.num_items + right, right * dataset.num_items + left]
        weights += [np.full(2 * len(left), 1.0 / distance)]
    if not keys:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    totals = np.bincount(inverse, weights=np.concatenate(weights))
    return unique // dataset.num_items, unique % dataset.num_items, totals


def ppmi(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, num_items: int) -> Tensor:
    """Positive pointwise mutual information as a sparse CSR tensor (N, N)."""
    degree = np.bincount(rows, weights=weights, minlength=num_items)  # (N,)
    values = np.log(weights * degree.sum() / (degree[rows] * degree[columns]))
    keep = values > 0
    indices = torch.from_numpy(np.stack([rows[keep], columns[keep]]))
    sparse = torch.sparse_coo_tensor(
        indices, torch.from_numpy(values[keep]).float(), (num_items, num_items), check_invariants=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # torch calls the layout beta
        return sparse.coalesce().to_sparse_csr()


def top_eigenpairs(matrix: Tensor, count: int, seed: int, sweeps: int = SWEEPS) -> tuple[Tensor, Tensor]:
    """The algebraically largest eigenpairs of a symmetric sparse matrix, by subspace iteration.

    (N, N) -> (N, count), (count,) in descending order. A shift by the largest absolute row sum would make the matrix
    positive but slow the iteration; oversampling keeps room for negative eigenvalues instead.
    """
    num_items = matrix.shape[0]
    width = min(num_items, count + max(16, count // 2))
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(num_items, width, generator=generator))[0]  # (N, width)
    for _ in range(sweeps):
        basis = torch.linalg.qr(matrix @ basis)[0]
    values, rotation = torch.linalg.eigh(basis.T @ (matrix @ basis))  # ascending
    order = torch.arange(width - 1, width - 1 - count, -1)
    return basis @ rotation[:, order], values[order]
