"""Texts as vectors without a language model: TF-IDF over words, then a truncated SVD (latent semantic analysis).

    vectors = reduced_tfidf(["red tea cup", "blue tea cup"], dim=128)   # (2, <=128) unit rows

The weights are the usual ones: (1 + ln tf) x (1 + ln((1 + n) / (1 + df))), rows of length 1. The SVD is a randomised
subspace iteration (Halko, Martinsson and Tropp 2011) on sparse products, so torch is all it needs.

Trap: Chinese, Japanese, Thai and their like put no spaces between words. One title would be one word there, shared with
no other. Runs of such letters are cut into single letters and pairs of neighbours instead.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han with its extensions.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
RUN = re.compile(rf"[{UNSPACED}]+")
WORD = re.compile(rf"[^\W{UNSPACED}]{{2,}}")
# English words that say nothing of an item; what else is frequent weighs little by its document frequency
FUNCTION_WORDS = """an and are as at be been but by can did do does for from had has have he her his if in into is it
its me my no not of off on or our out over she so than that the their them then there these they this those to too
under up us very was we were what when where which while who whose why will with would you your"""
STOPPED = frozenset(FUNCTION_WORDS.split())
SWEEPS = 7  # of the subspace iteration
SPARE = 16  # directions beyond those asked for, which make the last ones asked for exact


def words_of(text: str) -> list[str]:
    """Words of two letters or more in lower case; of scripts without spaces every letter and pair of neighbours."""
    text = text.lower()
    return [word for word in WORD.findall(text) if word not in STOPPED] + letter_pairs(text)


def letter_pairs(text: str) -> list[str]:
    """The letters, and the pairs of neighbouring letters, of every run in a script without spaces.

    Pairs of letters are what search engines index such text by.
    """
    found: list[str] = []
    for run in RUN.findall(text):
        found += [*run, *map("".join, pairwise(run))]
    return found


def reduced_tfidf(texts: Sequence[str], dim: int, seed: int = 0) -> Tensor | None:
    """(n,) -> (n, min(dim, n, number of words)), rows scaled by the singular values; None: not a single word."""
    weights = tfidf(texts)
    if weights is None:
        return None
    width = min(dim, *weights.shape)
    if width == 1:
        return weights.to_dense()[:, :1]
    return truncated_svd(weights, width, seed)


def tfidf(texts: Sequence[str]) -> Tensor | None:
    """(n, words) sparse CSR with unit rows (a text without words: a zero row); None when no text has a word."""
    bags = [Counter(words_of(text)) for text in texts]
    frequency = Counter(word for bag in bags for word in bag)
    if not frequency:
        return None
    column_of = {word: column for column, word in enumerate(sorted(frequency))}
    lengths = np.fromiter((len(bag) for bag in bags), np.int64, len(bags))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    columns, counts = np.empty(offsets[-1], np.int64), np.empty(offsets[-1])
    for bag, start in zip(bags, offsets[:-1].tolist(), strict=True):
        pairs = sorted((column_of[word], count) for word, count in bag.items())
        for place, (column, count) in enumerate(pairs, start):
            columns[place], counts[place] = column, count
    document_frequency = np.array([frequency[word] for word in column_of])
    idf = 1 + np.log((1 + len(texts)) / (1 + document_frequency))
    values = (1 + np.log(counts)) * idf[columns]
    rows = np.repeat(np.arange(len(texts)), lengths)
    norms = np.sqrt(np.bincount(rows, weights=values**2, minlength=len(texts)))
    return _csr(offsets, columns, values / norms[rows], (len(texts), len(column_of)))


def truncated_svd(matrix: Tensor, width: int, seed: int = 0) -> Tensor:
    """Sparse (n, m) -> (n, width): left singular vectors times singular values, the largest first."""
    transposed = _transpose(matrix)
    spread = min(width + max(SPARE, width // 4), *matrix.shape)
    basis = torch.randn(matrix.shape[1], spread, generator=torch.Generator().manual_seed(seed))
    for _ in range(SWEEPS):
        left = torch.linalg.qr(matrix @ basis)[0]  # (n, spread)
        basis = torch.linalg.qr(transposed @ left)[0]  # (m, spread)
    left = torch.linalg.qr(matrix @ basis)[0]
    _, values, rotation = torch.linalg.svd(transposed @ left, full_matrices=False)
    return left @ (rotation[:width].T * values[:width])


def _transpose(matrix: Tensor) -> Tensor:
    offsets, columns, values = (part.numpy() for part in (matrix.crow_indices(), matrix.col_indices(), matrix.values()))
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(offsets))
    order = np.argsort(columns, kind="stable")
    counts = np.bincount(columns, minlength=matrix.shape[1])
    return _csr(
        np.concatenate([[0], np.cumsum(counts)]), rows[order], values[order], (matrix.shape[1], matrix.shape[0])
    )


def _csr(offsets: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # torch calls the layout beta
        return torch.sparse_csr_tensor(
            torch.from_numpy(offsets), torch.from_numpy(columns), torch.from_numpy(values.astype(np.float32)), shape,
            check_invariants=False,
        )  # fmt: skip
