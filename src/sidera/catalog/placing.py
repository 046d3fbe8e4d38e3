"""The first free code in the order of distance, for items that come late or that a full prefix turned away."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from torch import Tensor

from sidera.catalog.rq_kmeans import RQCodebooks
from sidera.core import InputError


class CodeSpace:
    """Which codes are taken, counted for every prefix so that full branches are skipped.

    ``level_sizes`` has one level more than the codebooks when a running digit ends the semantic ID.
    """

    def __init__(self, codebooks: RQCodebooks, level_sizes: tuple[int, ...], taken: np.ndarray) -> None:
        self.codebooks, self.level_sizes = codebooks, level_sizes
        self.used: Counter[tuple[int, ...]] = Counter()
        for codes in taken.tolist():
            self._take(tuple(codes))

    def place(self, vector: Tensor) -> tuple[int, ...]:
        """Take the nearest free code for a vector (D,): nearest at each level, later levels give way first."""
        codes = self._search((), vector)
        if codes is None:
            raise InputError(
                f"no free code: all {math.prod(self.level_sizes)} codes are taken (removed items keep theirs)",
                fix="build a new catalogue with a larger [catalog] codebook_size or num_levels",
            )
        self._take(codes)
        return codes

    def _search(self, prefix: tuple[int, ...], residual: Tensor) -> tuple[int, ...] | None:
        level = len(prefix)
        if self.used[prefix] >= math.prod(self.level_sizes[level:]):  # of a whole code: 1
            return None
        if level == len(self.level_sizes):
            return prefix
        if level == len(self.codebooks.levels):  # the running digit: the lowest free one
            return next((*prefix, digit) for digit in range(self.level_sizes[level]) if not self.used[(*prefix, digit)])
        centroids = self.codebooks.levels[level]
        for code in (centroids - residual).square().sum(1).argsort(stable=True).tolist():
            found = self._search((*prefix, code), residual - centroids[code])
            if found is not None:
                return found
        return None

    def _take(self, codes: tuple[int, ...]) -> None:
        for level in range(len(codes) + 1):
            self.used[codes[:level]] += 1
