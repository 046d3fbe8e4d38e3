"""Items that the vectors say nothing about: borrow from items that are described alike, else fill the emptiest codes.

Only behaviour leaves such items (never seen in training). Alone, without content beside it, it would put them all into
one cluster of zero vectors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.tfidf import letter_pairs

NUM_NEIGHBOURS = 5
WORD = re.compile(r"\w+")
CHUNK = 256  # cold items compared at once


def borrow_by_words(vectors: Tensor, texts: Sequence[str]) -> Tensor:
    """Zero rows of (N, D) become the mean of known rows that share their rarest words; none shared: still zero."""
    known = vectors.abs().sum(1) > 0
    cold, warm = (~known).nonzero().squeeze(1), known.nonzero().squeeze(1)
    if not cold.numel() or not warm.numel() or not any(texts):
        return vectors
    words = _word_matrix(texts)  # (N, V) sparse, unit rows
    vectors = vectors.clone()
    warm_words = words.index_select(0, warm)
    for ids in cold.split(CHUNK):
        queries = words.index_select(0, ids).to_dense().T.contiguous()  # (V, n)
        similarity, neighbours = (warm_words @ queries).T.topk(min(NUM_NEIGHBOURS, len(warm)), dim=1)  # (n, 5)
        shares = similarity / similarity.sum(1, keepdim=True).clamp(min=1e-12)
        vectors[ids] = (shares.unsqueeze(2) * vectors[warm[neighbours]]).sum(1)
    return vectors


def spread(codes: np.ndarray, unknown: np.ndarray, level_sizes: Sequence[int]) -> np.ndarray:
    """(N, L) -> (N, L): items of the mask ``unknown`` (N,) get the least used code under each prefix."""
    codes = codes.copy()
    counts = Counter(tuple(row[: level + 1]) for row in codes[~unknown].tolist() for level in range(len(row)))
    uses: dict[
        tuple[int, ...], np.ndarray
    ] = {}  # prefix -> (K,) items below each of its codes, where one was asked for
    for item in np.flatnonzero(unknown):
        prefix: tuple[int, ...] = ()
        for size in level_sizes:
            if prefix not in uses:
                uses[prefix] = np.array([counts[(*prefix, code)] for code in range(size)])
            code = int(uses[prefix].argmin())  # of equals the lowest
            uses[prefix][code] += 1
            prefix = (*prefix, code)
        codes[item] = prefix
    return codes


def _word_matrix(texts: Sequence[str]) -> Tensor:
    """Unit rows of inverse document frequencies, one column a word that two texts share."""
    bags = [{*WORD.findall(text.lower()), *letter_pairs(text.lower())} for text in texts]
    frequency = Counter(word for bag in bags for word in bag)
    column_of = {word: column for column, word in enumerate(sorted(w for w, count in frequency.items() if count > 1))}
    rows, columns, values = [], [], []
    for row, bag in enumerate(bags):
        idf = {column_of[word]: float(np.log(len(texts) / frequency[word])) for word in bag if word in column_of}
        norm = sum(value * value for value in idf.values()) ** 0.5
        for column, value in sorted(idf.items()):
            rows.append(row)
            columns.append(column)
            values.append(value / max(norm, 1e-12))
    indices = torch.tensor([rows, columns], dtype=torch.int64)
    shape = (len(texts), max(1, len(column_of)))
    return torch.sparse_coo_tensor(indices, torch.tensor(values), shape, check_invariants=False).coalesce()
