"""A saved model: the weights of an artifact in the network that its recipe describes, over a Catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sidera import artifacts
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
    catalog.check_features(opened.info("features", str))
    if num_known > catalog.num_items:
        raise opened.damaged(f"it knows {num_known:,} items, the catalogue holds {catalog.num_items:,}")
    section = opened.recipe("model", dict)
    with opened.believed():
        name, config = parse_model(section)
        known = catalog.at_training(num_known)
    return opened.network(lambda tensors: build_model(name, config, known)), section, num_known


def save_model(
    model: torch.nn.Module,
    path: str | Path,
    catalog: Catalog,
    section: dict[str, Any],
    *,
    digest: str,
    parents: dict[str, str],
    num_known: int | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write the model artifact: the weights, and what :func:`saved_model` needs. ``training``: what it cost and
    reached; ``num_known``: items that the model has rows for, by default all of the catalogue."""
    known = catalog.num_items if num_known is None else num_known
    info = {
        "codebook_id": catalog.codebook_id, "num_items": known, "features": catalog.schema.digest,
        "training": training or {},
    }  # fmt: skip
    manifest = artifacts.Manifest("model", digest, parents=parents, recipe={"model": section}, info=info)
    with artifacts.writing(path, manifest) as folder:
        artifacts.save_tensors(folder, model.state_dict())
