"""What to do when two items get the same codes.

* ``extra_digit`` (TIGER): one more level, a running number inside each shared prefix, most popular item first.
* ``greedy``: inside a prefix the last codes are dealt out one-to-one at the least total distance; items that a full
  prefix cannot hold move to the next-best prefix.
* ``share``: nothing; items of one semantic ID are served in order of popularity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.config import MAX_CODES
from sidera.catalog.matching import cheapest_matching
from sidera.catalog.placing import CodeSpace
from sidera.catalog.rq_kmeans import RQCodebooks
from sidera.core import InputError
from sidera.ops.trie import CodeTrie

DIGIT_STEP = 8  # the extra level's size is rounded up to a multiple: equal shapes for nearby catalogues, room to grow


@dataclass(frozen=True)
class Resolved:
    """Codes after the policy, and what it cost."""

    codes: np.ndarray  # (N, L) int32
    level_sizes: tuple[int, ...]
    num_moved: int  # items whose codes are not the quantizer's
    num_overflowed: int  # of those, items that had to leave their prefix


def resolve(
    policy: str, codes: np.ndarray, vectors: Tensor, codebooks: RQCodebooks, popularity: np.ndarray
) -> Resolved:
    """Apply the policy named in the recipe to the quantizer's codes (N, num_levels)."""
    codes = codes.astype(np.int32)
    if policy == "share":
        return Resolved(codes, codebooks.level_sizes, 0, 0)
    if policy == "extra_digit":
        return _extra_digit(codes, codebooks.level_sizes, popularity)
    return _greedy(codes, vectors, codebooks)


def bucket_ids(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the group of equal rows that each row belongs to (N,), and the groups' sizes."""
    if codes.shape[1] == 0:
        return np.zeros(len(codes), np.int64), np.array([len(codes)])
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return inverse.reshape(-1), counts


def _extra_digit(codes: np.ndarray, level_sizes: tuple[int, ...], popularity: np.ndarray) -> Resolved:
    buckets, counts = bucket_ids(codes)
    if counts.max() > MAX_CODES:
        raise InputError(
            f"{counts.max()} items share one semantic ID: more than an extra digit can number",
            allowed=f"at most {MAX_CODES}",
            fix="raise [catalog] codebook_size or num_levels, or set balanced = true",
        )
    order = np.lexsort((np.arange(len(codes)), -popularity, buckets))
    starts = np.cumsum(counts) - counts
    digits = np.empty(len(codes), np.int32)
    digits[order] = np.arange(len(codes)) - starts[buckets[order]]
    size = min(MAX_CODES, -(-int(counts.max()) // DIGIT_STEP) * DIGIT_STEP)
    return Resolved(np.column_stack([codes, digits]), (*level_sizes, size), 0, 0)


def _greedy(codes: np.ndarray, vectors: Tensor, codebooks: RQCodebooks) -> Resolved:
    sizes = codebooks.level_sizes
    if len(codes) > math.prod(sizes):
        raise InputError(
            f"{len(codes)} items but {' x '.join(map(str, sizes))} codes name only {math.prod(sizes)}",
            fix='raise [catalog] codebook_size or num_levels, or use collision = "extra_digit"',
        )
    fixed = codes.copy()
    prefixes = torch.from_numpy(codes[:, :-1].astype(np.int64))
    distances = (vectors - codebooks.decode(prefixes)).square().sum(1).numpy()  # (N,) to what the prefix says
    buckets, counts = bucket_ids(codes[:, :-1])
    order = np.argsort(buckets, kind="stable")
    overflow: list[int] = []
    for members in np.split(order, np.cumsum(counts)[:-1]):
        if len(np.unique(codes[members, -1])) == len(members):
            continue
        costs = codebooks.next_costs(prefixes[members[0]], vectors[members]).numpy()  # (n, K) + a constant a row
        if len(members) > sizes[-1]:  # the farthest from the prefix leave
            by_distance = np.argsort(distances[members], kind="stable")
            overflow += members[by_distance[sizes[-1] :]].tolist()
            members, costs = members[by_distance[: sizes[-1]]], costs[by_distance[: sizes[-1]]]
        fixed[members, -1] = cheapest_matching(costs)
    if overflow:
        staying = np.setdiff1d(np.arange(len(codes)), overflow)
        space = CodeSpace(CodeTrie.build(fixed[staying], sizes))
        for item in overflow:
            fixed[item] = space.place(vectors[item], codebooks)
    moved = int((fixed != codes).any(axis=1).sum())
    return Resolved(fixed, sizes, moved, len(overflow))
