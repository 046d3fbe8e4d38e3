"""A snapshot over another catalogue is grown again where a row of its model changes, and only there."""

from __future__ import annotations

import pyarrow as pa
import torch
from checkerboard_world import full_section, world

from sidera.engine.recommender import Recommender
from sidera.engine.snapshot import Snapshot
from sidera.models import build_model, parse_model


def snapshot_with_a_late_item() -> Snapshot:
    """sidera's generator that reads titles, over one item more than it was trained on."""
    given = {**full_section("sidera"), "content": "titles"}
    model = build_model(*parse_model(given), world().catalog, 0)
    one = Recommender(model, world().catalog, model_section=given, beam=10)
    catalog = one.catalog
    late = catalog.with_items(["late"], torch.zeros(1, catalog.quantizer.dim), ["green cup"])  # type: ignore[union-attr]
    return one.snapshot.with_catalog(late)


def test_a_model_is_kept_where_no_row_of_it_changes_and_grown_where_one_does() -> None:
    before = snapshot_with_a_late_item()
    counted = before.with_catalog(before.catalog.at_version(before.catalog.items_version + 3))
    fewer = before.with_catalog(before.catalog.without([str(before.catalog.item_keys[0])]))
    assert counted.model is before.model
    assert fewer.model is before.model
    assert fewer.catalog.removed[0], "the search is over what is left"
    nothing = pa.table({"": pa.nulls(1)})
    renamed = before.with_catalog(before.catalog.described(["late"], {"late": "old blue teapot"}, nothing))
    dim = before.catalog.quantizer.dim  # type: ignore[union-attr]
    longer = before.with_catalog(before.catalog.with_items(["later"], torch.zeros(1, dim)))
    assert renamed.model is not before.model
    assert longer.model is not before.model
