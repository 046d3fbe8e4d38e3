"""Dataset in, Catalog out: item vectors → RQ-KMeans → collision policy → Catalog and its report.

Exercise it with ``sidera catalog RECIPE --data DIR --out DIR``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sidera.catalog.behaviour import behaviour_vectors, train_popularity
from sidera.catalog.catalog import Catalog, codebook_identity
from sidera.catalog.collisions import resolve
from sidera.catalog.config import CatalogConfig
from sidera.catalog.rq_kmeans import fit_rq_kmeans
from sidera.data.dataset import Dataset
from sidera.data.split import Split


def build_catalog(dataset: Dataset, split: Split, config: CatalogConfig) -> tuple[Catalog, dict[str, Any]]:
    """Give every item of the dataset its semantic ID, from content and from the split's training part only."""
    vectors = behaviour_vectors(
        dataset, split, dim=config.vector_dim, window=config.window, power=config.singular_power, seed=config.seed
    )
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    popularity = train_popularity(dataset, split)
    codebooks, codes = fit_rq_kmeans(
        vectors,
        config.num_levels,
        config.codebook_size,
        balanced=config.balanced,
        iterations=config.iterations,
        seed=config.seed,
    )
    resolved = resolve(config.collision, codes.numpy(), vectors, codebooks, popularity)
    report: dict[str, Any] = {"num_items": dataset.num_items, "num_moved": resolved.num_moved}
    titles = dataset.items["title"].to_pylist() if "title" in dataset.items.column_names else None
    encoder = {"config": dataclasses.asdict(config), "dataset": dataset.digest, "split": split.name}
    catalog = Catalog(
        item_keys=dataset.item_keys.astype(str),
        codes=resolved.codes,
        level_sizes=resolved.level_sizes,
        codebooks=codebooks,
        collision=config.collision,
        codebook_id=codebook_identity(encoder, codebooks, config.collision, resolved.codes),
        items_version=1,
        removed=popularity < 0,
        popularity=popularity,
        titles=titles or [None] * dataset.num_items,
        report=report,
    )
    return catalog, report
