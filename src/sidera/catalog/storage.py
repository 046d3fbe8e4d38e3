"""A Catalog as an artifact folder, in files that are mapped and not read: processes of one machine share them.

| file | what |
|---|---|
| ``items.arrow`` | a row an item: key, title, popularity, removed; uncompressed, one batch |
| ``codes.safetensors`` | codes, and what the quantizer was fitted to |
| ``index.safetensors`` | hashes of the keys in order and whose they are, the serving order |
| ``features.safetensors`` | features of the items, where there are any |
| ``schema.json``, ``report.json`` | how events, items and users are read; how it was built |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sidera.artifacts import Manifest, write_tensors, write_text, writing
from sidera.bounds import shown
from sidera.catalog.collisions import POLICIES
from sidera.catalog.kept_vectors import KEPT, check_kept
from sidera.catalog.key_index import KeyIndex
from sidera.catalog.quantizers import NO_CODES, Quantizer, name_of, quantizer_class
from sidera.data.feature import COUNTED
from sidera.data.features import FeatureSchema
from sidera.loading import Opened, open_artifact
from sidera.ops.allocator import release_memory
from sidera.ops.columns import Column, Marks, Texts

KIND = "catalog"
PREFIX = "quantizer."  # tensors of codes.safetensors
ITEMS, CODES, INDEX, FEATURES = "items.arrow", "codes.safetensors", "index.safetensors", "features.safetensors"
COLUMNS = {"key": pa.large_string(), "title": pa.large_string(), "popularity": pa.int64(), "removed": pa.bool_()}
COLLISIONS = (*POLICIES, NO_CODES)
MAX_LEVELS = 64
MAX_CODES = 2**24  # of a level


def save(catalog: Any, path: str | Path, artifact_digest: str, parents: dict[str, str], recipe: dict[str, Any]) -> None:
    info = {
        "codebook_id": catalog.codebook_id,
        "items_version": catalog.items_version,
        "level_sizes": list(catalog.level_sizes),
        "collision": catalog.collision,
        "quantizer": name_of(catalog.quantizer),
        "num_items": catalog.num_items,
    }
    items = pa.table(
        {
            "key": catalog.item_keys.arrow(),
            "title": catalog.titles.arrow(),
            "popularity": pa.array(np.asarray(catalog.popularity), pa.int64()),
            "removed": pa.array(np.asarray(catalog.removed), pa.bool_()),
        }
    )
    with writing(path, Manifest(KIND, artifact_digest, parents, recipe, info)) as folder:
        codes = torch.from_numpy(np.array(catalog.codes))
        state = {} if catalog.quantizer is None else catalog.quantizer.state()
        write_tensors({"codes": codes, **{PREFIX + name: part for name, part in state.items()}}, folder / CODES)
        index = catalog.ids_by_key
        if len(index.hashes) < catalog.num_items:  # some came later
            index = KeyIndex.build(catalog.item_keys)
        write_tensors(
            {
                "hashes": torch.from_numpy(index.hashes.view(np.int64)),
                "numbers": torch.from_numpy(index.numbers),
                "order": torch.from_numpy(catalog.serving_order),
            },
            folder / INDEX,
        )
        if catalog.features:
            columns = {name: torch.from_numpy(np.array(rows)) for name, rows in catalog.features.items()}
            write_tensors(columns, folder / FEATURES)
        with pa.ipc.new_file(folder / ITEMS, items.schema) as file:
            file.write_table(items.combine_chunks())
        write_text(folder / "schema.json", json.dumps(catalog.schema.to_json()) + "\n")
        write_text(folder / "report.json", json.dumps(dict(catalog.report), indent=2) + "\n")


def load(path: str | Path, kind: Any) -> Any:  # a Catalog, whose file imports this one
    """What :func:`save` wrote; ArtifactError unless codes, quantizer, items and manifest fit one another."""
    opened = open_artifact(path, KIND)
    number = opened.info("num_items", int)
    level_sizes = tuple(opened.info("level_sizes", list))
    collision = opened.info("collision", str)
    if collision not in COLLISIONS:
        raise opened.damaged(f"collision = {collision!r}, allowed: {', '.join(COLLISIONS)}")
    if (collision == NO_CODES) != (not level_sizes):
        raise opened.damaged(f"collision = {collision!r} on {len(level_sizes)} levels")
    if len(level_sizes) > MAX_LEVELS or not all(
        isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= MAX_CODES for size in level_sizes
    ):
        raise opened.damaged(f"level_sizes are not at most {MAX_LEVELS} numbers from 1 to {MAX_CODES:,}")
    items = opened.arrow(ITEMS, number, COLUMNS)
    tensors = opened.tensor_file(CODES)
    with opened.believed():
        keys, popularity = _keys(opened, items["key"]), Column.of(_whole(opened, items, "popularity"))
        ids_by_key, order = _index(opened, keys, popularity.base)
        codes = _codes(opened, tensors.pop("codes"), number, level_sizes)
        schema = FeatureSchema.from_json(opened.json("schema.json", dict))
        catalog = kind(
            item_keys=keys,
            codes=Column.of(codes),
            level_sizes=level_sizes,
            quantizer=_quantizer(opened, tensors, level_sizes),
            collision=collision,
            codebook_id=opened.info("codebook_id", str),
            items_version=opened.info("items_version", int),
            removed=Marks.of(_whole(opened, items, "removed")),
            popularity=popularity,
            titles=Texts.of(items["title"]),
            report=opened.json("report.json", dict),
            schema=schema,
            features=_features(opened, schema, number),
            ids_by_key=ids_by_key,
        )
        catalog.take_order(order)
        release_memory()  # what the checks took
        return catalog


def _codes(opened: Opened, codes: torch.Tensor, number: int, level_sizes: tuple[int, ...]) -> np.ndarray:
    """(N, L) int32, each of its level."""
    if codes.dtype != torch.int32 or tuple(codes.shape) != (number, len(level_sizes)):
        raise opened.damaged(
            f"codes are {codes.dtype} of shape {tuple(codes.shape)}, the manifest says {(number, len(level_sizes))}"
        )
    if number and not bool(((codes >= 0) & (codes < torch.tensor(level_sizes))).all()):
        raise opened.damaged(f"a code is not one of its level's {level_sizes}")
    return codes.numpy()


def _quantizer(opened: Opened, tensors: dict[str, torch.Tensor], level_sizes: tuple[int, ...]) -> Quantizer | None:
    """What wrote the first levels: a last digit that only tells items apart is no code of it."""
    name = opened.info("quantizer", str)
    strange = [key for key in tensors if not key.startswith(PREFIX)]
    if strange or (name == NO_CODES) != (not level_sizes) or (name == NO_CODES and tensors):
        raise opened.damaged(f"quantizer = {name!r} on {len(level_sizes)} levels, with the tensors {sorted(tensors)}")
    if name == NO_CODES:
        return None
    state = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    quantizer: Quantizer = quantizer_class(name).from_state(state)
    sizes = quantizer.level_sizes
    if level_sizes[: len(sizes)] != sizes or len(level_sizes) - len(sizes) not in (0, 1):
        raise opened.damaged(f"the quantizer has levels of {sizes} codes, the items of {level_sizes}")
    return quantizer


def _whole(opened: Opened, items: pa.Table, name: str) -> np.ndarray:
    if items[name].null_count:
        raise opened.damaged(f"an item of items.arrow has no {name}")
    return items[name].to_numpy()


def _keys(opened: Opened, column: pa.ChunkedArray) -> Texts:
    if column.null_count:
        raise opened.damaged("an item has no id")
    return Texts.of(column)


def _index(opened: Opened, keys: Texts, popularity: np.ndarray) -> tuple[KeyIndex, np.ndarray]:
    """Of the keys, and the serving order (N,)."""
    tensors = opened.tensor_file(INDEX)
    index = KeyIndex.of(keys, tensors["hashes"].numpy().view(np.uint64), tensors["numbers"].numpy())
    order = tensors["order"].numpy()
    if order.dtype != np.int64 or not np.array_equal(np.bincount(order, minlength=len(keys)), np.ones(len(keys))):
        raise opened.damaged("the serving order does not list every item once")
    if (np.diff(popularity[order]) > 0).any():
        raise opened.damaged("the serving order is not by popularity")
    return index, order


def _features(opened: Opened, schema: FeatureSchema, number: int) -> dict[str, Column]:
    """Every feature of items that the schema has, each value one that the schema can give."""
    owned = schema.owned("item")
    there = opened.tensor_file(FEATURES) if FEATURES in opened.manifest.files else {}
    kept = there.pop(KEPT, None)
    if set(there) != {feature.name for feature in owned}:
        raise opened.damaged(f"{FEATURES} holds {shown(sorted(there))}, the schema has other features of items")
    found = {}
    for feature in owned:
        values = there[feature.name]
        counted = feature.kind in COUNTED
        if values.dtype != (torch.int64 if counted else torch.float32) or values.shape != (number, *feature.row_shape):
            raise opened.damaged(f"feature {feature.name!r} is {values.dtype} of shape {tuple(values.shape)}")
        if counted and values.numel() and not 0 <= int(values.min()) <= int(values.max()) < feature.num_values:
            raise opened.damaged(f"feature {feature.name!r} holds a value that is none of {feature.num_values:,}")
        if not counted and bool(values.isinf().any()):
            raise opened.damaged(f"feature {feature.name!r} holds an endless number")
        found[feature.name] = Column.of(values.numpy())
    if kept is not None:
        check_kept(kept.numpy(), number)
        found[KEPT] = Column.of(kept.numpy())
    return found
