"""Vectors that stay beside the codes: those that the quantizer was fitted to, and those of items that came later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sidera.catalog.build import build_catalog, item_vectors
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.catalog.kept_vectors import KEPT
from sidera.core import ArtifactError
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log
from sidera.ops.columns import Column

SETTINGS = CatalogConfig(
    vectors=("tfidf",), vector_dim=6, quantizer={"num_levels": 2, "codebook_size": 8}, keep_vectors=True
)


def test_kept_saved_grown_and_never_in_a_batch(tmp_path: Path) -> None:
    dataset = tiny_log(30, 40)
    split = leave_one_out(dataset)
    catalog, _ = build_catalog(dataset, split, SETTINGS)
    made, _ = item_vectors(dataset, split, SETTINGS)
    np.testing.assert_array_equal(catalog.features[KEPT], made.numpy())
    assert KEPT not in build_catalog(dataset, split, replace(SETTINGS, keep_vectors=False))[0].features
    assert KEPT not in catalog.items.items(np.arange(3)).features

    new = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    later = catalog.with_items(["a", "b"], new)
    again = catalog.with_items(
        ["c"], None, codes=later.codes[[len(made)]]
    )  # comes back: its codes are all that is known
    np.testing.assert_array_equal(later.features[KEPT][len(made) :], new.numpy())
    np.testing.assert_array_equal(again.features[KEPT][len(made) :], later.item_vectors[[len(made)]])
    assert again.at_training(len(made)).features[KEPT].shape == (len(made), 6)

    later.save(tmp_path / "catalog")
    loaded = Catalog.load(tmp_path / "catalog")
    np.testing.assert_array_equal(loaded.features[KEPT], later.features[KEPT])


def test_a_file_with_other_vectors_is_refused(tmp_path: Path) -> None:
    dataset = tiny_log(30, 40)
    catalog, _ = build_catalog(dataset, leave_one_out(dataset), SETTINGS)
    broken = np.full((catalog.num_items, 6), np.nan, dtype=np.float32)
    replace(catalog, features={KEPT: Column.of(broken)}).save(tmp_path / "catalog")
    with pytest.raises(ArtifactError, match="kept vectors"):
        Catalog.load(tmp_path / "catalog")
