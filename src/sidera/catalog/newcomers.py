"""A place among the codes for an item that came after the codebook was made.

A codebook is a space of vectors, and what made them (behaviour, an encoder, a file) is not there when an item arrives.
The items that are there have vectors: what their codes say. A new item gets the mean of those that it is most like: the
five whose texts share its rarest words, those that the same users met next to it, else those of one of its categories,
else of all. ``cold.borrow_by_words`` places cold items of a first catalogue by the same rule.

    texts = TextNeighbours(catalog.titles.tolist())
    placed = newcomer_places(catalog, ["A blue tea cup"], texts)
    catalog.with_items(["cup-9"], placed.vectors, ["A blue tea cup"])  # placed.by: ["words"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidera.catalog.catalog import Catalog
from sidera.catalog.cold import NUM_NEIGHBOURS
from sidera.catalog.tfidf import words_of

FREQUENT = 0.2  # of the texts: a word in more of them tells nothing
SAMPLED = 1000  # items that stand for a category, or for all
WINDOW = 3  # places before and behind an event, in which other items are its neighbours


class TextNeighbours:
    """Which items are described by the same rare words: an index from words to items, that can grow."""

    def __init__(self, texts: Sequence[str | None] = ()) -> None:
        self._items: dict[str, list[int]] = {}
        self.num_items = 0
        self.extend(texts)

    def extend(self, texts: Sequence[str | None]) -> None:
        """The next items."""
        for text in texts:
            for word in set(words_of(text or "")):
                self._items.setdefault(word, []).append(self.num_items)
            self.num_items += 1

    def nearest(self, text: str | None, below: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(n,) at most five items with a number below ``below``, the most alike first, and their weights (n,)."""
        scores: dict[int, float] = {}
        for word in set(words_of(text or "")):
            items = self._items.get(word, ())
            if not items or len(items) > max(FREQUENT * self.num_items, NUM_NEIGHBOURS):
                continue
            weight = float(np.log(1 + self.num_items / len(items))) ** 2
            for item in items:
                if item < below:
                    scores[item] = scores.get(item, 0.0) + weight
        best = sorted(scores, key=lambda item: (-scores[item], item))[:NUM_NEIGHBOURS]
        return np.array(best, np.int64), np.array([scores[item] for item in best])


class Placed(NamedTuple):
    """Where new items are put, and by what."""

    vectors: Tensor | None  # (n, D) in the space of the catalogue's quantizer; None where it has no codes
    by: list[str]  # (n,) "words", "users" or "words, users"; "category"; "nothing": in the middle of all items


def newcomer_places(
    catalog: Catalog,
    texts: Sequence[str | None],
    index: TextNeighbours,
    categories: Mapping[str, NDArray[np.int64]] | None = None,
    beside: Sequence[Mapping[int, float]] | None = None,
) -> Placed:
    """Places of n new items.

    ``index``: of the catalogue's texts. ``categories``: field -> (n,), as :meth:`FeatureSchema.categories_of` reads
    them. ``beside``: of each new item the items that users met next to it, with weights (:func:`met_beside`).
    """
    if catalog.quantizer is None:
        return Placed(None, ["nothing"] * len(texts))
    found, reasons = torch.zeros(len(texts), catalog.quantizer.dim), list[str]()
    everything = _some(np.arange(catalog.num_items))
    for row, text in enumerate(texts):
        means, by = list[Tensor](), list[str]()
        by_words = index.nearest(text, catalog.num_items)
        met = {} if beside is None else beside[row]
        by_users = np.array(list(met), np.int64), np.array(list(met.values()))
        for name, (ids, weights) in (("words", by_words), ("users", by_users)):
            if len(ids):
                by.append(name)
                means.append(_mean(catalog, ids, weights))
        if not means:
            like = _of_category(catalog, {name: int(values[row]) for name, values in (categories or {}).items()})
            by.append("nothing" if like is None else "category")
            means.append(_mean(catalog, everything if like is None else like, None))
        found[row] = torch.stack(means).mean(0)
        reasons.append(", ".join(by))
    return Placed(found, reasons)


def met_beside(
    item_ids: NDArray[np.int64], offsets: NDArray[np.int64], first_new: int, num_items: int
) -> list[dict[int, float]]:
    """Of every item from ``first_new`` on: the older items within three places of its events, with their counts.

    ``item_ids`` (E,) user by user, ``offsets`` (U + 1,).
    """
    found: list[dict[int, float]] = [{} for _ in range(num_items - first_new)]
    users = np.searchsorted(offsets, np.arange(len(item_ids)), side="right")
    for place in np.flatnonzero(item_ids >= first_new).tolist():
        low, high = max(0, place - WINDOW), min(len(item_ids), place + WINDOW + 1)
        mine = found[int(item_ids[place]) - first_new]
        for near in range(low, high):
            other = int(item_ids[near])
            if other < first_new and users[near] == users[place]:
                mine[other] = mine.get(other, 0.0) + 1.0
    return found


def _mean(catalog: Catalog, ids: NDArray[np.int64], weights: NDArray[np.float64] | None) -> Tensor:
    vectors = torch.from_numpy(np.asarray(catalog.item_vectors[ids], dtype=np.float32))
    if weights is None:
        return vectors.mean(0)
    shares = torch.from_numpy((weights / weights.sum()).astype(np.float32))
    return shares @ vectors


def _of_category(catalog: Catalog, categories: Mapping[str, int]) -> NDArray[np.int64] | None:
    for name, category in categories.items():
        if category > 0:
            ids = np.flatnonzero(np.asarray(catalog.features[name]) == category)
            if len(ids):
                return _some(ids)
    return None


def _some(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids if len(ids) <= SAMPLED else ids[np.linspace(0, len(ids) - 1, SAMPLED).astype(np.int64)]
