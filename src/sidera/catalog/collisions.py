"""What to do when two items get the same codes.

* ``extra_digit`` (TIGER): one more level, a running number inside each shared prefix, most popular item first.
* ``greedy``: inside a prefix the last codes are dealt out one-to-one at the least total distance; items that a full
  prefix cannot hold move to the next-best prefix.
* ``sinkhorn`` (LC-Rec): n items of one semantic ID are dealt out by optimal transport to the n nearest last codes that
  no other item has, in at most 20 rounds; what still collides then (equal vectors do) moves to the nearest free code.
* ``share``: nothing; items of one semantic ID are served in order of popularity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.matching import cheapest_matching
from sidera.catalog.placing import CodeSpace
from sidera.catalog.quantizers import Quantizer
from sidera.catalog.sinkhorn import sinkhorn_codes
from sidera.core import InputError
from sidera.ops.trie import MAX_CODES, CodeTrie

DIGIT_STEP = 8  # the extra level's size is rounded up to a multiple: equal shapes for nearby catalogues, room to grow
SINKHORN_ROUNDS = 20
POLICIES = ("extra_digit", "greedy", "sinkhorn", "share")


@dataclass(frozen=True)
class Resolved:
    """Codes after the policy, and what it cost."""

    codes: np.ndarray  # (N, L) int32
    level_sizes: tuple[int, ...]
    num_moved: int  # items whose codes are not the quantizer's
    num_overflowed: int  # of those, items that had to leave their prefix
    num_residual: int = 0  # of those that moved, items that transport left on a code of another


def resolve(policy: str, codes: np.ndarray, vectors: Tensor, quantizer: Quantizer, popularity: np.ndarray) -> Resolved:
    """Apply the policy named in the recipe to the quantizer's codes (N, num_levels)."""
    codes = codes.astype(np.int32)
    if policy == "share":
        return Resolved(codes, quantizer.level_sizes, 0, 0)
    if policy == "extra_digit":
        return _extra_digit(codes, quantizer.level_sizes, popularity)
    sizes = quantizer.level_sizes
    if len(codes) > math.prod(sizes):
        raise InputError(
            f"{len(codes)} items but {' x '.join(map(str, sizes))} codes name only {math.prod(sizes)}",
            fix='give [catalog.quantizer] a larger codebook_size or more levels, or use collision = "extra_digit"',
        )
    return (_greedy if policy == "greedy" else _sinkhorn)(codes, vectors, quantizer)


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
            fix="give [catalog.quantizer] more codes or levels, or set balanced = true",
        )
    order = np.lexsort((np.arange(len(codes)), -popularity, buckets))
    starts = np.cumsum(counts) - counts
    digits = np.empty(len(codes), np.int32)
    digits[order] = np.arange(len(codes)) - starts[buckets[order]]
    size = min(MAX_CODES, -(-int(counts.max()) // DIGIT_STEP) * DIGIT_STEP)
    return Resolved(np.column_stack([codes, digits]), (*level_sizes, size), 0, 0)


def _greedy(codes: np.ndarray, vectors: Tensor, quantizer: Quantizer) -> Resolved:
    fixed, sizes = codes.copy(), quantizer.level_sizes
    prefixes = torch.from_numpy(codes[:, :-1].astype(np.int64))
    distances = (vectors - quantizer.decode(prefixes)).square().sum(1).numpy()  # (N,) to what the prefix says
    buckets, counts = bucket_ids(codes[:, :-1])
    order = np.argsort(buckets, kind="stable")
    overflow: list[int] = []
    for members in np.split(order, np.cumsum(counts)[:-1]):
        if len(np.unique(codes[members, -1])) == len(members):
            continue
        costs = quantizer.next_costs(prefixes[members[0]], vectors[members]).numpy()  # (n, K) + a constant a row
        if len(members) > sizes[-1]:  # the farthest from the prefix leave
            by_distance = np.argsort(distances[members], kind="stable")
            overflow += members[by_distance[sizes[-1] :]].tolist()
            members, costs = members[by_distance[: sizes[-1]]], costs[by_distance[: sizes[-1]]]
        fixed[members, -1] = cheapest_matching(costs)
    _place(fixed, overflow, vectors, quantizer)
    moved = int((fixed != codes).any(axis=1).sum())
    return Resolved(fixed, sizes, moved, len(overflow))


def _sinkhorn(codes: np.ndarray, vectors: Tensor, quantizer: Quantizer) -> Resolved:
    fixed = codes.copy()
    neighbours = _shared(codes[:, :-1])  # items of one prefix
    for _ in range(SINKHORN_ROUNDS):
        before = fixed.copy()
        for members in neighbours:
            for same in _shared(fixed[members, -1:]):
                _transport(members, same, fixed, vectors, quantizer)
        if np.array_equal(fixed, before):
            break
    residual = [item for members in _shared(fixed) for item in members[1:].tolist()]
    _place(fixed, residual, vectors, quantizer)
    left = int((fixed[:, :-1] != codes[:, :-1]).any(axis=1).sum())
    moved = int((fixed != codes).any(axis=1).sum())
    return Resolved(fixed, quantizer.level_sizes, moved, left, len(residual))


def _transport(members: np.ndarray, same: np.ndarray, codes: np.ndarray, vectors: Tensor, quantizer: Quantizer) -> None:
    """Deal the last codes near them out to those ``members`` of a prefix, by their places ``same``, that share one."""
    items = members[same]
    costs = quantizer.next_costs(torch.from_numpy(codes[items[0], :-1].astype(np.int64)), vectors[items])
    costs[:, np.delete(codes[members, -1], same)] = torch.inf
    means = costs.mean(dim=0)
    offered = means.argsort(stable=True)[: min(len(items), int(means.isfinite().sum()))]
    codes[items, -1] = offered[sinkhorn_codes(costs[:, offered])].numpy()


def _shared(codes: np.ndarray) -> list[np.ndarray]:
    """The rows of every row of codes that stands there more than once."""
    buckets, counts = bucket_ids(codes)
    order = np.argsort(buckets, kind="stable")
    return [members for members in np.split(order, np.cumsum(counts)[:-1]) if len(members) > 1]


def _place(codes: np.ndarray, items: list[int], vectors: Tensor, quantizer: Quantizer) -> None:
    """Give ``items`` the nearest codes that no other item has."""
    if items:
        staying = np.setdiff1d(np.arange(len(codes)), items)
        space = CodeSpace(CodeTrie.build(codes[staying], quantizer.level_sizes))
        for item in items:
            codes[item] = space.place(vectors[item], quantizer)
