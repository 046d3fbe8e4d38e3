"""What is known of items, as tensors that the item encoder reads: words, categories, numbers, pictures.

A :class:`ContentReader` is fitted once on the items that are there (vocabularies, means and spreads of numbers), kept
with the encoder, and reads later items by the same rules. Words and categories that it does not know are left out;
numbers that are missing, NaN or infinite make no token.

Shape legend: N items · W words · C categories · F numbers of a column · P pictures · S side in pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from sidera.catalog.config import ContrastiveConfig
from sidera.catalog.content import item_texts, text_vectors
from sidera.catalog.picture_checkpoint import load_picture_encoder
from sidera.catalog.pictures import read_pictures
from sidera.config import parse_section
from sidera.core import InputError

WORD = re.compile(r"\w+")
PICTURES = ("cover", "frames")


@dataclass(frozen=True)
class ItemContent:
    """Of N items. Word and category 0 is "nothing"; masks are True where something is there."""

    words: Tensor  # (N, W) int64
    categories: Tensor  # (N, C) int64
    dense: dict[str, tuple[Tensor, Tensor]]  # name -> (N, F) float32, (N,) mask: one token each
    pixels: dict[str, tuple[Tensor, Tensor]]  # cover, frames -> (N, P, S, S, 3) uint8, (N, P) mask
    features: dict[str, tuple[Tensor, Tensor]]  # of a frozen encoder -> (N, P, T, F) float32, (N, P) mask
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        return len(self.words)

    def take(self, ids: Tensor) -> ItemContent:
        """The rows that ``ids`` name."""

        def rows(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
            return {name: (values[ids], mask[ids]) for name, (values, mask) in pairs.items()}

        return ItemContent(
            self.words[ids], self.categories[ids], rows(self.dense), rows(self.pixels), rows(self.features)
        )

    def known_mask(self) -> Tensor:
        """(N,) items of which anything is known."""
        known = (self.words > 0).any(1) | (self.categories > 0).any(1)
        for _, mask in self.dense.values():
            known = known | mask
        for _, mask in (*self.pixels.values(), *self.features.values()):
            known = known | mask.any(1)
        return known


@dataclass(frozen=True)
class ContentReader:
    """How a table of items becomes an :class:`ItemContent`."""

    config: ContrastiveConfig
    text_fields: tuple[str, ...]
    words: tuple[str, ...] = ()  # the first is word 1
    categories: tuple[str, ...] = ()  # "field=value"
    numbers: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)  # means, spreads

    @classmethod
    def fit(cls, items: pa.Table, config: ContrastiveConfig, text_fields: Sequence[str]) -> ContentReader:
        """Vocabularies and scales; InputError when an input that is asked for is in no item."""
        words: Sequence[str] = ()
        if "words" in config.inputs:
            texts = item_texts(items, text_fields)
            words = _frequent((word for text in texts for word in set(_words(text))), config.vocabulary)
            if not words:
                raise InputError(
                    'the input "words" of [catalog.contrastive] finds no word in any item',
                    fix="import items with texts, or use other inputs",
                )
        lists = _category_lists(items, config.category_fields)
        categories = _frequent((value for values in lists for value in values), config.vocabulary)
        if "categories" in config.inputs and not categories:
            raise InputError(
                f"[catalog.contrastive] category_fields = {list(config.category_fields)!r} are empty everywhere"
            )
        numbers = {}
        for name in config.number_fields:
            values = _numbers(items, name)
            known = values[np.isfinite(values).all(1)]
            if not len(known):
                raise InputError(f"[catalog.contrastive] number_fields: {name!r} holds no finite number")
            spread = known.std(0)
            numbers[name] = (tuple(known.mean(0).tolist()), tuple(np.where(spread > 0, spread, 1.0).tolist()))
        return cls(config, tuple(text_fields), tuple(words), tuple(categories), numbers)

    def read(
        self, items: pa.Table, item_keys: Sequence[str] | np.ndarray, image_folder: str | Path | None = None
    ) -> ItemContent:
        """Content of these items; pictures come from ``image_folder``, by default the config's. InputError when no item
        has any content.
        """
        config = self.config
        report: dict[str, Any] = {}
        texts = item_texts(items, self.text_fields) if {"words", "text"} & set(config.inputs) else [""] * len(item_keys)
        places = {word: place for place, word in enumerate(self.words, 1)}
        words = _table([[places.get(word, 0) for word in _words(text)] for text in texts], config.max_words)
        places = {value: place for place, value in enumerate(self.categories, 1)}
        lists = _category_lists(items, config.category_fields)
        categories = _table([[places.get(value, 0) for value in values] for values in lists], config.max_categories)
        dense = {name: self._scaled(items, name) for name in config.number_fields}
        if "text" in config.inputs:
            vectors = text_vectors(texts)
            dense["text"] = (vectors, vectors.abs().sum(1) > 0)
        pixels, features = {}, {}
        frozen = None if config.image_encoder == "small" else load_picture_encoder(config.image_encoder)
        for kind in (kind for kind in PICTURES if kind in config.inputs):
            size = config.image_size if frozen is None else frozen.image_size
            found = read_pictures(image_folder or str(config.image_folder), kind, item_keys, size)
            report[kind] = found.report()
            if frozen is None:
                pixels[kind] = (found.pixels, found.mask)
            else:
                shown = frozen.features(found.pixels[found.mask])  # (pictures, T, F)
                table = torch.zeros(*found.mask.shape, *shown.shape[1:])
                table[found.mask] = shown
                features[kind] = (table, found.mask)
        content = ItemContent(words, categories, dense, pixels, features, report)
        known = content.known_mask()
        if not known.any():
            raise InputError(
                "no item has any content: there is nothing to encode", fix="check [catalog.contrastive] inputs"
            )
        report["items_without_content"] = int((~known).sum())
        return content

    def _scaled(self, items: pa.Table, name: str) -> tuple[Tensor, Tensor]:
        means, spreads = self.numbers[name]
        values = _numbers(items, name)
        if values.shape[1] != len(means):
            raise InputError(
                f"item column {name!r} holds {values.shape[1]} numbers an item", allowed=f"{len(means)}, as when fitted"
            )
        known = np.isfinite(values).all(1)
        scaled = np.where(known[:, None], (values - np.array(means)) / np.array(spreads), 0.0).clip(-10, 10)
        return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(known)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ContentReader:
        return cls(
            parse_section(ContrastiveConfig, values["config"], "[catalog.contrastive]"),
            tuple(values["text_fields"]),
            tuple(values["words"]),
            tuple(values["categories"]),
            {name: (tuple(means), tuple(spreads)) for name, (means, spreads) in values["numbers"].items()},
        )


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _frequent(values: Iterable[str], limit: int) -> list[str]:
    """The most frequent, ties in alphabetical order: the same vocabulary for any order of items."""
    counts = Counter(values)
    return sorted(counts, key=lambda value: (-counts[value], value))[:limit]


def _table(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """(N, width) int64, the known entries of each row from the left, 0 behind them."""
    table = torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        known = [value for value in row if value][:width]
        table[place, : len(known)] = torch.tensor(known, dtype=torch.int64)
    return table


def _category_lists(items: pa.Table, fields: Sequence[str]) -> list[list[str]]:
    """(N,) "field=value" of every field, lists spread out."""
    lists: list[list[str]] = [[] for _ in range(items.num_rows)]
    for name in fields:
        for values, entry in zip(lists, _column(items, name, "category_fields").to_pylist(), strict=True):
            for value in entry if isinstance(entry, list) else [entry]:
                if value is not None and value != "":
                    values.append(f"{name}={value}")
    return lists


def _numbers(items: pa.Table, name: str) -> np.ndarray:
    """(N, F) float64 of a column of numbers or of lists of one length; NaN where it is missing."""
    column = _column(items, name, "number_fields")
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column).drop_null().unique().to_pylist()
        if len(lengths) != 1 or not lengths[0] or not _is_number(kind.value_type):
            raise InputError(
                f"item column {name!r} holds lists of {sorted(lengths)} entries of {kind.value_type}",
                allowed="lists of numbers of one length",
            )
        values = np.full((items.num_rows, lengths[0]), np.nan)
        there = column.is_valid().to_numpy(zero_copy_only=False)
        flat = pc.list_flatten(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        values[there] = flat.reshape(-1, lengths[0])
        return values
    if not _is_number(kind):
        raise InputError(f"item column {name!r} holds {kind}", allowed="numbers, or lists of numbers")
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)[:, None]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _column(items: pa.Table, name: str, key: str) -> pa.ChunkedArray:
    if name not in items.column_names:
        raise InputError(f"[catalog.contrastive] {key} names {name!r}", allowed=", ".join(items.column_names))
    return items[name]
