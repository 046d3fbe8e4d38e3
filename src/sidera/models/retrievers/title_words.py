"""How alike items' titles are: the cosine of their words' squared-rarity vectors, by an index from words to items.

    words = TitleWords(["red tea cup", "blue tea cup", "garden hose"])
    ids, alike = words.nearest(words.rows(["green tea cup"]), 2)      # items 0 and 1

A word that one title alone has, or more than a twentieth of them, tells nothing and is left out. Words are those of
``catalog.tfidf``. The words and their weights are fixed by the first titles; later ones join the index with the words
that it knows.

Shape legend: N items · B rows that ask · K neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sidera.catalog.tfidf import words_of

FREQUENT, FEW = 0.05, 50  # a word in more than this share of the titles, and in more than so many
MOST = 2000  # titles of a word, so that a search in a large catalogue stays short
CELLS = 1 << 23  # similarities held at once


@dataclass(frozen=True)
class WordRows:
    """Words of several texts, weighted so that each text has length 1."""

    offsets: np.ndarray  # (B + 1,)
    words: np.ndarray  # (W,) places in the vocabulary
    weights: np.ndarray  # (W,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: np.ndarray) -> WordRows:
        """The rows of these numbers, one behind the other."""
        lengths = np.diff(self.offsets)[rows]
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - ends + lengths, lengths)
        return WordRows(np.concatenate([[0], ends]), self.words[places], self.weights[places])


class TitleWords:
    """An index of titles, None or "" where there is none."""

    def __init__(self, titles: Sequence[str | None]) -> None:
        bags = [set(words_of(title or "")) for title in titles]
        frequency = Counter(word for bag in bags for word in bag)
        most = min(max(FREQUENT * len(bags), FEW), MOST)
        known = sorted(word for word, count in frequency.items() if 1 < count <= most)
        self.vocabulary = {word: place for place, word in enumerate(known)}
        self.rarity = np.array([np.log(1 + len(bags) / frequency[word]) for word in known])
        self._index(self._rows(bags))

    def __deepcopy__(self, memo: object) -> TitleWords:
        """Itself: it never changes, and models that hold it are copied for every item that comes."""
        return self

    def rows(self, titles: Sequence[str | None]) -> WordRows:
        """The words that each title shares with the first ones."""
        return self._rows([set(words_of(title or "")) for title in titles])

    def with_titles(self, titles: Sequence[str | None]) -> TitleWords:
        """Another index with these items behind the ones that are there."""
        new, old = self.rows(titles), self.items
        longer = TitleWords.__new__(TitleWords)
        longer.vocabulary, longer.rarity = self.vocabulary, self.rarity
        offsets = np.concatenate([old.offsets, old.offsets[-1] + new.offsets[1:]])
        words, weights = np.concatenate([old.words, new.words]), np.concatenate([old.weights, new.weights])
        longer._index(WordRows(offsets, words, weights))
        return longer

    def scores(self, asked: WordRows) -> np.ndarray:
        """(B, N) float32 cosines; 0 where no word is shared."""
        number = len(self.items)
        counts = self.starts[asked.words + 1] - self.starts[asked.words]
        places = np.arange(counts.sum()) + np.repeat(self.starts[asked.words] - np.cumsum(counts) + counts, counts)
        rows = np.repeat(np.repeat(np.arange(len(asked)), np.diff(asked.offsets)), counts)
        values = np.repeat(asked.weights, counts) * self.posted_weights[places]
        sums = np.bincount(rows * number + self.posted_items[places], values, len(asked) * number)
        return sums.astype(np.float32).reshape(len(asked), number)

    def nearest(self, asked: WordRows, k: int, itself: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(B, K) the most alike items and their cosines, 0 where no more share a word. ``itself``: row b asks for item
        b, which is not its own neighbour."""
        number = len(self.items)
        width = min(k, number)
        ids, alike = np.zeros((len(asked), k), np.int64), np.zeros((len(asked), k), np.float32)
        step = max(1, CELLS // max(1, number))
        for start in range(0, len(asked), step):
            rows = np.arange(start, min(start + step, len(asked)))
            found = self.scores(asked.take(rows))
            if itself:
                found[np.arange(len(rows)), rows] = 0
            best = np.argsort(-found, axis=1, kind="stable")[:, :width] if number <= 4 * k else _best(found, width)
            ids[rows, :width], alike[rows, :width] = best, np.take_along_axis(found, best, 1)
        return ids, alike

    def _rows(self, bags: Sequence[set[str]]) -> WordRows:
        found = [sorted(self.vocabulary[word] for word in bag if word in self.vocabulary) for bag in bags]
        lengths = np.array([len(words) for words in found], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        words = np.array([word for each in found for word in each], dtype=np.int64)
        weights, owners = self.rarity[words] if len(words) else np.zeros(0), np.repeat(np.arange(len(found)), lengths)
        norms = np.sqrt(np.bincount(owners, weights**2, len(found)))
        return WordRows(offsets, words, weights / norms[owners])

    def _index(self, items: WordRows) -> None:
        self.items = items
        order = np.argsort(items.words, kind="stable")
        self.posted_items = np.repeat(np.arange(len(items)), np.diff(items.offsets))[order]
        self.posted_weights = items.weights[order]
        self.starts = np.searchsorted(items.words[order], np.arange(len(self.vocabulary) + 1))


def _best(values: np.ndarray, k: int) -> np.ndarray:
    """(B, K) columns of the highest values of each row, the highest first; of equals the first."""
    chosen = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(values, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)
