"""A saved model: the weights of an artifact in the network that its recipe describes, over a Catalog."""

from __future__ import annotations

from typing import Any

import torch

from sidera.catalog.catalog import Catalog
from sidera.loading import Opened
from sidera.models import build_model, parse_model


def saved_model(opened: Opened, catalog: Catalog) -> tuple[torch.nn.Module, dict[str, Any], int]:
    """-> (network, its [model] section, items that it has rows for); the catalogue may have grown since it was trained.

    CatalogMismatch when the catalogue is of another codebook, ArtifactError when the weights, the recipe and the
    catalogue do not fit one another.
    """
    num_known = opened.info("num_items", int)
    catalog.check_codebook(opened.info("codebook_id", str))
    if num_known > catalog.num_items:
        raise opened.damaged(f"it knows {num_known:,} items, the catalogue holds {catalog.num_items:,}")
    section = opened.recipe("model", dict)
    with opened.believed():
        name, config = parse_model(section)
        known = catalog.at_training(num_known)
    return opened.network(lambda tensors: build_model(name, config, known)), section, num_known
