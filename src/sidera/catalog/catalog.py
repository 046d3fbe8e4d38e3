"""The Catalog: items, their codes, and the trie of what may be generated. Immutable; changes give a new one.

Two identities. ``codebook_id`` names the encoder, the codebooks, the collision policy and the codes of the items that
the codebooks were fitted on: a model is bound to it. ``items_version`` counts comings and goings: the model stays, the
answers change. A removed item keeps its code for ever, so that no code ever means two items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sidera.catalog import storage
from sidera.catalog.placing import CodeSpace
from sidera.catalog.rq_kmeans import RQCodebooks
from sidera.config import digest
from sidera.core import CatalogMismatch, InputError
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.ops.trie import CodeTrie


@dataclass(frozen=True, eq=False)
class Catalog:
    """Items with their semantic IDs; make one with :func:`sidera.catalog.build.build_catalog` or ``load``."""

    item_keys: np.ndarray  # (N,) object of str: an array of fixed width would cost the longest key N times
    codes: np.ndarray  # (N, L) int32; L = 0: no codes, for models that score items
    level_sizes: tuple[int, ...]
    codebooks: RQCodebooks
    collision: str  # extra_digit | greedy | share | none
    codebook_id: str
    items_version: int
    removed: np.ndarray  # (N,) bool
    popularity: np.ndarray  # (N,) int64 training events
    titles: list[str | None]
    report: Mapping[str, Any] = field(default_factory=dict)
    schema: FeatureSchema = field(default_factory=FeatureSchema)  # how events, items and users are read
    categories: Mapping[str, np.ndarray] = field(default_factory=dict)  # item field -> (N,) int64, 0: unknown
    numbers: np.ndarray | None = None  # (N, F) float32 of ``data.features.item_numbers``; None: nothing is known

    def __post_init__(self) -> None:
        for array in (self.item_keys, self.codes, self.removed, self.popularity):
            array.setflags(write=False)
        if len(self.ids_by_key) != len(self.item_keys):
            keys, counts = np.unique(self.item_keys, return_counts=True)
            raise InputError(f"item id {str(keys[counts.argmax()])!r} occurs {counts.max()} times", allowed="once each")

    @property
    def num_items(self) -> int:
        return len(self.item_keys)

    @property
    def num_levels(self) -> int:
        return len(self.level_sizes)

    @property
    def has_codes(self) -> bool:
        return bool(self.level_sizes)

    def check_codes(self, reader: str) -> None:
        """InputError when ``reader`` (who wants codes, for the message) is given a catalogue without them."""
        if not self.has_codes:
            raise InputError(
                f"{reader} reads semantic IDs and the catalogue has none",
                fix="build it with --set catalog.quantizer=rq_kmeans",
            )

    @cached_property
    def ids_by_key(self) -> dict[str, int]:
        return {str(key): index for index, key in enumerate(self.item_keys)}

    @cached_property
    def items(self) -> ItemTable:
        """What batches are told of the items."""
        return ItemTable(self.codes, self.categories, self.items_version)

    @cached_property
    def serving_order(self) -> np.ndarray:
        """(N,) item ids, most popular first; ties keep the catalogue's order."""
        return np.argsort(-self.popularity, kind="stable")

    @cached_property
    def item_vectors(self) -> np.ndarray:
        """(N, D) float32: every item as its codes tell it, the sum of their vectors in the codebooks.

        Coarser than what the codebooks were fitted on, but there for every item that is served, and for ever the same.
        """
        if not self.has_codes:  # nothing is known of them
            return np.zeros((self.num_items, 1), dtype=np.float32)
        codes = torch.from_numpy(np.asarray(self.codes, dtype=np.int64))
        return self.codebooks.decode(codes).numpy()

    @cached_property
    def trie(self) -> CodeTrie:
        """The legal prefixes, without removed items."""
        self.check_codes("a search for items")
        return CodeTrie.build(self.codes, self.level_sizes, order=self.serving_order, alive=~self.removed)

    def ids_of(self, keys: Sequence[str]) -> np.ndarray:
        """(n,) dense ids of publisher's keys; InputError names the first that the catalogue does not hold."""
        try:
            return np.fromiter((self.ids_by_key[key] for key in keys), np.int64, count=len(keys))
        except KeyError as error:
            raise InputError(
                f"the catalogue holds no item {error.args[0]!r}", allowed=f"one of its {self.num_items} item ids"
            ) from None

    def check_codebook(self, expected: str) -> None:
        """CatalogMismatch when a model trained on codebook ``expected`` is given this Catalog."""
        if expected != self.codebook_id:
            raise CatalogMismatch(
                f"the model was trained on codebook {expected}, this catalogue has codebook {self.codebook_id}",
                fix="give the catalogue that the model was trained with, or train the model again",
            )

    def at_training(self, num_items: int) -> Catalog:
        """The first ``num_items`` items: those a model has rows for. Later comers only ever stand behind them."""
        if num_items == self.num_items:
            return self
        return replace(
            self,
            item_keys=self.item_keys[:num_items],
            codes=self.codes[:num_items],
            removed=np.zeros(num_items, dtype=bool),
            popularity=self.popularity[:num_items],
            titles=self.titles[:num_items],
            categories={name: values[:num_items] for name, values in self.categories.items()},
            numbers=None if self.numbers is None else self.numbers[:num_items],
        )

    def without(self, keys: Sequence[str]) -> Catalog:
        """This Catalog less some items; their codes stay taken."""
        ids = self.ids_of(keys)
        if len(np.unique(ids)) != len(ids):
            twice = next(key for place, key in enumerate(keys) if key in keys[:place])
            raise InputError(f"item {twice!r} is named twice", fix="name each item to remove once")
        if self.removed[ids].any():
            raise InputError(f"item {keys[int(self.removed[ids].argmax())]!r} is removed already")
        removed = self.removed.copy()
        removed[ids] = True
        return replace(self, removed=removed, items_version=self.items_version + 1)

    def with_items(
        self,
        keys: Sequence[str],
        vectors: Tensor | np.ndarray | None,
        titles: Sequence[str | None] | None = None,
        table: pa.Table | None = None,
    ) -> Catalog:
        """This Catalog and new items, coded by the frozen codebooks; vectors (n, D) as the codebooks' encoder makes.

        A catalogue without codes takes ``vectors = None``.
        ``table``: a row per new item with the columns that categories are read from; None: they are unknown.
        """
        if table is not None and table.num_rows != len(keys):
            raise InputError(f"the table has {table.num_rows} rows for {len(keys)} items", allowed="one each")
        for key in keys:
            if key in self.ids_by_key:
                raise InputError(f"item {key!r} is in the catalogue already", fix="leave it out of the new items")
        if titles is not None and len(titles) != len(keys):
            raise InputError(f"{len(titles)} titles for {len(keys)} items", allowed="one each, None where unknown")
        codes = self._codes_of(keys, vectors)
        count = len(keys)
        new = self.schema.item_categories(table) if table is not None else {}
        return replace(
            self,
            item_keys=np.concatenate([self.item_keys.astype(object), np.array(keys, dtype=object)]),
            codes=np.concatenate([self.codes, codes]),
            removed=np.concatenate([self.removed, np.zeros(count, bool)]),
            popularity=np.concatenate([self.popularity, np.zeros(count, np.int64)]),
            titles=[*self.titles, *(titles if titles is not None else [None] * count)],
            items_version=self.items_version + 1,
            categories={
                name: np.concatenate([values, new.get(name, np.zeros(count, np.int64))])
                for name, values in self.categories.items()
            },
            numbers=None if self.numbers is None else np.pad(self.numbers, ((0, count), (0, 0))),  # 0: the mean
        )

    def _codes_of(self, keys: Sequence[str], vectors: Tensor | np.ndarray | None) -> np.ndarray:
        """(n, L) int32 free codes for new items."""
        if not self.has_codes:
            return np.zeros((len(keys), 0), dtype=np.int32)
        if vectors is None:
            raise InputError(f"no vectors for {len(keys)} new items", allowed=f"({len(keys)}, {self.codebooks.dim})")
        vectors = torch.as_tensor(vectors, dtype=torch.float32)
        if tuple(vectors.shape) != (len(keys), self.codebooks.dim):
            raise InputError(
                f"vectors have shape {tuple(vectors.shape)}", allowed=f"({len(keys)}, {self.codebooks.dim})"
            )
        for key, finite in zip(keys, vectors.isfinite().all(dim=1).tolist(), strict=True):
            if not finite:
                raise InputError(f"the vector of item {key!r} holds NaN or inf")
        if self.collision == "share":
            return self.codebooks.encode(vectors).numpy().astype(np.int32)
        space = CodeSpace(self.codebooks, self.level_sizes, self.codes)
        return np.array([space.place(vector) for vector in vectors], np.int32).reshape(len(keys), self.num_levels)

    def save(
        self,
        path: str | Path,
        *,
        artifact_digest: str | None = None,
        parents: Mapping[str, str] | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the artifact; the digest defaults to one of codebook, version and items."""
        storage.save(self, path, artifact_digest or self.content_digest(), dict(parents or {}), dict(recipe or {}))

    def content_digest(self) -> str:
        return digest(
            [self.codebook_id, self.items_version, self.item_keys.tolist(), self.codes.tolist(), self.removed.tolist()]
        )

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Read an artifact that ``save`` wrote; ArtifactError when it is missing, truncated or edited."""
        return storage.load(path, cls)


def codebook_identity(encoder: Any, codebooks: RQCodebooks, collision: str, codes: np.ndarray) -> str:
    """16 hex digits over what a model's codes mean."""
    content = hashlib.sha256(digest([encoder, collision]).encode())
    for level in codebooks.levels:
        content.update(level.contiguous().numpy().tobytes())
    content.update(np.ascontiguousarray(codes, dtype="<i4").tobytes())
    return content.hexdigest()[:16]
