"""The Catalog: items, their codes, and the trie of what may be generated. Immutable; changes give a new one.

Two identities. ``codebook_id`` names the encoder, the quantizer, the collision policy and the codes of the items that
the quantizer was fitted on: a model is bound to it. ``items_version`` counts comings and goings: the model stays, the
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
from sidera.catalog.kept_vectors import of_late
from sidera.catalog.key_index import KeyIndex
from sidera.catalog.placing import CodeSpace
from sidera.catalog.quantizers import Quantizer, identity
from sidera.config import digest
from sidera.core import CatalogMismatch, InputError
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.ops.allocator import release_memory
from sidera.ops.columns import Column, Marks, Rows, Texts
from sidera.ops.trie import CodeTrie
from sidera.ops.trie_edit import with_items, without_items

RARE_REPEATS = 0.02  # of a user's events behind the first; a list of ten seen items would then hold one hit in fifty
LARGE = 1 << 17  # items, of which a pass over the process's memory is short beside the building
WAITING = 1 << 14  # changes that wait for a trie; with more of them the next one is built from the codes


@dataclass
class _Behind:
    """What a Catalog can take over from the version that it came from, instead of making it again."""

    trie: CodeTrie | None = None  # of an earlier version, and what came and went since
    added: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    space: CodeSpace | None = None
    order: np.ndarray | None = None  # serving order of the first items

    def after(self, trie: CodeTrie | None, added: Sequence[int], gone: Sequence[int]) -> _Behind:
        """Behind the next version; ``trie`` is this version's, if it was made. What comes back (``added`` after it was
        gone) is in the trie still, and what goes before it was put into the trie need not be taken out."""
        if trie is not None:
            return _Behind(trie, list(added), list(gone), self.space, self.order)
        if self.trie is None or len(self.added) + len(self.gone) > WAITING:
            return _Behind(None, [], [], self.space, self.order)
        waiting_added, waiting_gone, coming, going = ({*part} for part in (self.added, self.gone, added, gone))
        added = [*(one for one in self.added if one not in going), *(one for one in added if one not in waiting_gone)]
        gone = [*(one for one in self.gone if one not in coming), *(one for one in gone if one not in waiting_added)]
        return _Behind(self.trie, added, gone, self.space, self.order)


@dataclass(frozen=True, eq=False)
class Catalog:
    """Items with their semantic IDs; make one with :func:`sidera.catalog.build.build_catalog` or ``load``.

    The columns read like numpy arrays (:mod:`sidera.ops.columns`): versions share their rows, and a
    column in a mapped file stays there.
    """

    item_keys: Texts  # (N,)
    codes: Column  # (N, L) int32; L = 0: no codes, for models that score items
    level_sizes: tuple[int, ...]
    quantizer: Quantizer | None  # None: no codes
    collision: str  # extra_digit | greedy | sinkhorn | share | none
    codebook_id: str
    items_version: int
    removed: Marks  # (N,) bool
    popularity: Column  # (N,) int64 training events
    titles: Texts
    report: Mapping[str, Any] = field(default_factory=dict)
    schema: FeatureSchema = field(default_factory=FeatureSchema)  # how events, items and users are read
    features: Mapping[str, Column] = field(default_factory=dict)  # of items -> (N, ...), as the schema encodes them
    ids_by_key: KeyIndex = None  # type: ignore[assignment]  # made of item_keys where it is not given
    _behind: _Behind = field(init=False, default_factory=_Behind, repr=False)

    def __post_init__(self) -> None:
        columns: dict[str, Any] = {
            "item_keys": Texts.of(self.item_keys),
            "titles": Texts.of(self.titles),
            "codes": Column.of(self.codes),
            "popularity": Column.of(self.popularity),
            "removed": Marks.of(self.removed),
            "features": {name: Column.of(values) for name, values in self.features.items()},
        }
        for name, column in columns.items():
            object.__setattr__(self, name, column)
        for numbers in (self.codes, self.popularity):
            numbers.base.setflags(write=False)
        if self.ids_by_key is None or self.ids_by_key.texts is not self.item_keys:
            object.__setattr__(self, "ids_by_key", KeyIndex.build(self.item_keys))

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
                fix="build it with --set catalog.quantizer.name=rq_kmeans",
            )

    @cached_property
    def items(self) -> ItemTable:
        """What batches are told of the items."""
        batched = frozenset(feature.name for feature in self.schema.batched)
        return ItemTable(self.codes, self.features, self.items_version, batched, self.titles)

    @cached_property
    def serving_order(self) -> np.ndarray:
        """(N,) item ids, most popular first; ties keep the catalogue's order."""
        order = self._behind.order
        if order is None:
            order = np.argsort(-np.asarray(self.popularity), kind="stable")
        else:  # later items were never seen in training
            order = (
                np.concatenate([order, np.arange(len(order), self.num_items)]) if len(order) < self.num_items else order
            )
        self._behind.order = order
        return order

    def take_order(self, order: np.ndarray) -> None:
        """``serving_order`` as it was saved, so that it need not be sorted again."""
        self._behind.order = order

    @property
    def filters_seen(self) -> bool:
        """Whether an answer leaves out the items of the history unless it is asked to keep them: users of the training
        log came back to an item in fewer than :data:`RARE_REPEATS` of their events. False where that is unknown."""
        rate = self.report.get("repeat_share")
        return isinstance(rate, float) and rate < RARE_REPEATS

    @property
    def item_vectors(self) -> Any:
        """(N, D) float32, an :class:`ItemVectors`: what the codes say, decoded where asked (``item_vectors[ids]``).

        Coarser than what the quantizer was fitted on, but there for every item that is served, and for ever the same.
        Zeros (N, 1) where there are no codes: nothing is known of the items.
        """
        return ItemVectors(self.codes, self.quantizer)

    @cached_property
    def trie(self) -> CodeTrie:
        """The legal prefixes, without removed items."""
        self.check_codes("a search for items")
        behind = self._behind
        old, gone = behind.trie, np.array(behind.gone, dtype=np.int64)
        if old is not None:
            added = np.array(behind.added, dtype=np.int64)
            left = without_items(old, gone, self.codes[gone])
            if left is not None:
                return with_items(left, added, self.codes[added], self.num_items)
        trie = CodeTrie.build(
            np.asarray(self.codes), self.level_sizes, order=self.serving_order, alive=~np.asarray(self.removed)
        )
        if self.num_items > LARGE:
            release_memory()  # what the sorting took: several times the trie
        return trie

    def find_ids(self, keys: Sequence[str]) -> np.ndarray:
        """(n,) dense ids of publisher's keys, -1 for those that the catalogue does not hold."""
        return self.ids_by_key.find(keys)

    def ids_of(self, keys: Sequence[str]) -> np.ndarray:
        """(n,) dense ids of publisher's keys; InputError names the first that the catalogue does not hold."""
        ids = self.find_ids(keys)
        if (ids < 0).any():
            key = keys[int((ids < 0).argmax())]
            raise InputError(f"the catalogue holds no item {key!r}", allowed=f"one of its {self.num_items} item ids")
        return ids

    def check_features(self, learned: str) -> None:
        """CatalogMismatch when a model that was trained on the features ``learned`` is given this Catalog."""
        if learned != self.schema.digest:
            raise CatalogMismatch(
                f"the model was trained on features {learned}, this catalogue has features {self.schema.digest}",
                fix="give the catalogue that the model was trained with, or train the model again",
            )

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
        keys = self.item_keys.head(num_items)
        return replace(
            self,
            item_keys=keys,
            codes=self.codes.head(num_items),
            removed=Marks.none(num_items),
            popularity=self.popularity.head(num_items),
            titles=self.titles.head(num_items),
            features={name: values.head(num_items) for name, values in self.features.items()},
            ids_by_key=self.ids_by_key.head(keys),
        )

    def without(self, keys: Sequence[str]) -> Catalog:
        """This Catalog less some items; their codes stay taken. The time does not grow with N."""
        ids = self.ids_of(keys)
        if len(np.unique(ids)) != len(ids):
            twice = next(key for place, key in enumerate(keys) if key in keys[:place])
            raise InputError(f"item {twice!r} is named twice", fix="name each item to remove once")
        gone_mask = self.removed[ids]
        if gone_mask.any():
            raise InputError(f"item {keys[int(gone_mask.argmax())]!r} is removed already")
        after = replace(self, removed=self.removed.marked(ids), items_version=self.items_version + 1)
        return self._followed_by(after, [], ids.tolist())

    def restored(self, keys: Sequence[str]) -> Catalog:
        """This Catalog and items that were removed, under the codes that they had."""
        ids = self.ids_of(keys)
        if not self.removed[ids].all():
            raise InputError(f"item {keys[int((~self.removed[ids]).argmax())]!r} is not removed")
        after = replace(self, removed=self.removed.unmarked(ids), items_version=self.items_version + 1)
        if self.collision == "share":  # among items of one code the more popular is served first, not the later one
            return after
        return self._followed_by(after, ids.tolist(), [])

    def described(self, keys: Sequence[str], titles: Mapping[str, str | None], table: pa.Table) -> Catalog:
        """This Catalog where items are called and described otherwise. ``titles``: of those that get another one;
        ``table``: a row per key with the columns whose features change. Codes stay: they are what an item is."""
        ids, named = self.ids_of(keys), self.ids_of(list(titles))
        new = self.schema.said_of_items(table)
        changed = {name: self.features[name].replaced(ids, rows) for name, rows in new.items()}
        after = replace(
            self, titles=self.titles.replaced(named, list(titles.values())) if titles else self.titles,
            features={**self.features, **changed}, items_version=self.items_version + 1,
        )  # fmt: skip
        return self._followed_by(after, [], [])

    def at_version(self, items_version: int) -> Catalog:
        """The same items, counted otherwise: several changes that are published as one are one version."""
        after = replace(self, items_version=items_version)
        return self._followed_by(after, [], [])

    def with_items(
        self,
        keys: Sequence[str],
        vectors: Tensor | np.ndarray | None,
        titles: Sequence[str | None] | None = None,
        table: pa.Table | None = None,
        codes: np.ndarray | None = None,
    ) -> Catalog:
        """This Catalog and new items, coded by the frozen quantizer; vectors (n, D) as its encoder makes.

        ``codes`` (n, L): those that the items got before, free ones; vectors say nothing then.
        A catalogue without codes takes ``vectors = None``. ``table``: a row per new item with the columns that
        features are read from; None: they are unknown. The time does not grow with N, but for the first call on a
        catalogue that was just built or loaded, which looks at the codes that are taken.
        """
        count = len(keys)
        if table is not None and table.num_rows != count:
            raise InputError(f"the table has {table.num_rows} rows for {count} items", allowed="one each")
        known_mask = self.find_ids(keys) >= 0
        if known_mask.any():
            key = keys[int(known_mask.argmax())]
            raise InputError(f"item {key!r} is in the catalogue already", fix="leave it out of the new items")
        if titles is not None and len(titles) != count:
            raise InputError(f"{len(titles)} titles for {count} items", allowed="one each, None where unknown")
        if codes is None:
            self._check_vectors(keys, vectors)
            codes = self._codes_of(vectors, count)
        all_keys = self.item_keys.extended(keys)
        ids_by_key = self.ids_by_key.extended(keys, all_keys)
        owned = self.schema.owned("item")
        new = {each.name: each.unknown(count) for each in owned} if table is None else self.schema.of_items(table)
        new |= of_late(self.features, vectors, codes, self.quantizer)
        after = replace(
            self,
            item_keys=all_keys,
            codes=self.codes.extended(codes),
            removed=self.removed.extended(count),
            popularity=self.popularity.extended(np.zeros(count, np.int64)),
            titles=self.titles.extended(titles if titles is not None else [None] * count),
            items_version=self.items_version + 1,
            features={name: values.extended(new[name]) for name, values in self.features.items()},
            ids_by_key=ids_by_key,
        )
        return self._followed_by(after, range(self.num_items, after.num_items), [])

    def _followed_by(self, after: Catalog, added: Sequence[int], gone: Sequence[int]) -> Catalog:
        object.__setattr__(after, "_behind", self._behind.after(self.__dict__.get("trie"), added, gone))
        return after

    def _check_vectors(self, keys: Sequence[str], vectors: Tensor | np.ndarray | None) -> None:
        if self.quantizer is None:
            return
        allowed = f"({len(keys)}, {self.quantizer.dim})"
        if vectors is None:
            raise InputError(f"no vectors for {len(keys)} new items", allowed=allowed)
        vectors = torch.as_tensor(vectors)
        if tuple(vectors.shape) != (len(keys), self.quantizer.dim):
            raise InputError(f"vectors have shape {tuple(vectors.shape)}", allowed=allowed)
        for key, finite in zip(keys, vectors.isfinite().all(dim=1).tolist(), strict=True):
            if not finite:
                raise InputError(f"the vector of item {key!r} holds NaN or inf")

    def _codes_of(self, vectors: Tensor | np.ndarray | None, count: int) -> np.ndarray:
        """(n, L) int32 free codes for new items."""
        if self.quantizer is None:
            return np.zeros((count, 0), dtype=np.int32)
        vectors = torch.as_tensor(vectors, dtype=torch.float32)
        if self.collision == "share":
            return self.quantizer.encode(vectors).numpy().astype(np.int32)
        space = self._behind.space
        if space is None or space.num_items != self.num_items:  # or another version grew from this one
            whole = self.trie if not self.removed.any() else None
            space = CodeSpace(whole or CodeTrie.build(np.asarray(self.codes), self.level_sizes))
            self._behind.space = space
        placed = [space.place(vector, self.quantizer) for vector in vectors]
        return np.array(placed, np.int32).reshape(count, self.num_levels)

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


class ItemVectors(Rows):
    """(N, D) float32, decoded from the codes of the items that are asked for. Nothing is kept."""

    def __init__(self, codes: Column, quantizer: Quantizer | None) -> None:
        self.codes, self.quantizer = codes, quantizer

    def take(self, ids: np.ndarray) -> np.ndarray:
        if self.quantizer is None:
            return np.zeros((len(ids), 1), dtype=np.float32)
        codes = torch.from_numpy(self.codes[ids].astype(np.int64))
        return self.quantizer.decode(codes[:, : len(self.quantizer.level_sizes)]).numpy()

    def __len__(self) -> int:
        return len(self.codes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self.take(np.arange(len(self)))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), 1 if self.quantizer is None else self.quantizer.dim)


def codebook_identity(encoder: Any, quantizer: Quantizer | None, collision: str, codes: np.ndarray) -> str:
    """16 hex digits over what a model's codes mean."""
    content = hashlib.sha256(digest([encoder, collision, None if quantizer is None else identity(quantizer)]).encode())
    content.update(np.ascontiguousarray(codes, dtype="<i4").tobytes())
    return content.hexdigest()[:16]
