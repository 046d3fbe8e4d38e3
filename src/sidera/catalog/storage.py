"""A Catalog as an artifact folder: codes.safetensors (codes, codebooks), items.parquet, report.json, schema.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from sidera.artifacts import Manifest, verify, write_text, writing
from sidera.catalog.rq_kmeans import RQCodebooks
from sidera.data.features import FeatureSchema

if TYPE_CHECKING:
    from sidera.catalog.catalog import Catalog

KIND = "catalog"
CATEGORY = "category:"  # columns of items.parquet


def save(
    catalog: Catalog, path: str | Path, artifact_digest: str, parents: dict[str, str], recipe: dict[str, Any]
) -> None:
    info = {
        "codebook_id": catalog.codebook_id,
        "items_version": catalog.items_version,
        "level_sizes": list(catalog.level_sizes),
        "collision": catalog.collision,
        "num_items": catalog.num_items,
    }
    items = pa.table(
        {
            "key": pa.array([str(key) for key in catalog.item_keys], pa.string()),
            "title": pa.array(catalog.titles, pa.string()),
            "popularity": pa.array(catalog.popularity, pa.int64()),
            "removed": pa.array(catalog.removed, pa.bool_()),
            **{CATEGORY + name: pa.array(values, pa.int64()) for name, values in catalog.categories.items()},
        }
    )
    with writing(path, Manifest(KIND, artifact_digest, parents, recipe, info)) as folder:
        codes = torch.from_numpy(catalog.codes.copy())
        save_file({"codes": codes, **catalog.codebooks.state()}, folder / "codes.safetensors")
        pq.write_table(items, folder / "items.parquet", compression="zstd")
        write_text(folder / "schema.json", json.dumps(catalog.schema.to_json()) + "\n")
        write_text(folder / "report.json", json.dumps(dict(catalog.report), indent=2) + "\n")


def load(path: str | Path) -> dict[str, Any]:
    """The Catalog's fields by name; every file is checked against the manifest first."""
    path = Path(path)
    manifest = verify(path, KIND)
    tensors = load_file(path / "codes.safetensors")
    items = pq.read_table(path / "items.parquet")
    return {
        "item_keys": np.array(items["key"].to_pylist(), dtype=object),
        "codes": tensors.pop("codes").numpy(),
        "level_sizes": tuple(manifest.info["level_sizes"]),
        "codebooks": RQCodebooks.from_state(tensors),
        "collision": manifest.info["collision"],
        "codebook_id": manifest.info["codebook_id"],
        "items_version": manifest.info["items_version"],
        "removed": np.array(items["removed"].to_pylist(), dtype=bool),
        "popularity": np.array(items["popularity"].to_pylist(), dtype=np.int64),
        "titles": items["title"].to_pylist(),
        "report": json.loads((path / "report.json").read_text()),
        "schema": FeatureSchema.from_json(json.loads((path / "schema.json").read_text())),
        "categories": {
            name.removeprefix(CATEGORY): items[name].to_numpy().astype(np.int64)
            for name in items.column_names
            if name.startswith(CATEGORY)
        },
    }
