"""The Catalog: two identities, codes that are never reused, an artifact that notices damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidera.catalog.catalog import Catalog, codebook_identity
from sidera.catalog.collisions import resolve
from sidera.catalog.rq_kmeans import fit_rq_kmeans
from sidera.core import ArtifactError, CatalogMismatch, InputError


def make_catalog(num_items: int = 30, collision: str = "greedy", seed: int = 0, size: int = 4) -> Catalog:
    vectors = torch.randn(num_items, 5, generator=torch.Generator().manual_seed(seed))
    codebooks, codes = fit_rq_kmeans(vectors, 3, size, seed=seed)
    popularity = np.arange(num_items)[::-1].copy()
    resolved = resolve(collision, codes.numpy(), vectors, codebooks, popularity)
    return Catalog(
        item_keys=np.array([f"i{item}" for item in range(num_items)]),
        codes=resolved.codes,
        level_sizes=resolved.level_sizes,
        quantizer=codebooks,
        collision=collision,
        codebook_id=codebook_identity("test", codebooks, collision, resolved.codes),
        items_version=1,
        removed=np.zeros(num_items, bool),
        popularity=popularity,
        titles=[f"title {item}" if item % 2 else None for item in range(num_items)],
        report={"relative_error": 0.5},
    )


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    catalog = make_catalog().without(["i3"])
    catalog.save(tmp_path / "catalog", parents={"dataset": "abc"}, recipe={"seed": 0})
    loaded = Catalog.load(tmp_path / "catalog")
    for name in ("item_keys", "codes", "removed", "popularity", "titles"):
        assert np.array_equal(getattr(loaded, name), getattr(catalog, name)), name
    for name in ("level_sizes", "collision", "codebook_id", "items_version", "report"):
        assert getattr(loaded, name) == getattr(catalog, name), name
    assert loaded.content_digest() == catalog.content_digest()
    assert torch.equal(loaded.quantizer.levels[2], catalog.quantizer.levels[2])
    assert loaded.trie.num_leaves == 29


@pytest.mark.parametrize(
    "name", ["codes.safetensors", "items.arrow", "index.safetensors", "report.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncate", "edit", "delete"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    make_catalog().save(tmp_path / "catalog")
    file = tmp_path / "catalog" / name
    content = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"?" + content[1:])
    with pytest.raises(ArtifactError):
        Catalog.load(tmp_path / "catalog")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    catalog = make_catalog()
    catalog.save(tmp_path / "catalog")
    manifest = tmp_path / "catalog" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind": "catalog"', '"kind": "dataset"'))
    with pytest.raises(ArtifactError, match="holds a dataset, not a catalog"):
        Catalog.load(tmp_path / "catalog")


def test_codebook_is_checked_by_name() -> None:
    catalog = make_catalog()
    catalog.check_codebook(catalog.codebook_id)
    with pytest.raises(CatalogMismatch, match=f"trained on codebook 0123.* has codebook {catalog.codebook_id}"):
        catalog.check_codebook("0123")


def test_codebook_id_depends_on_what_codes_mean() -> None:
    assert make_catalog().codebook_id == make_catalog().codebook_id
    assert len({make_catalog(seed=seed, collision=c).codebook_id for seed in (0, 1) for c in ("greedy", "share")}) == 4


def test_versions_move_and_the_codebook_stays() -> None:
    first = make_catalog()
    fewer = first.without(["i0", "i7"])
    more = fewer.with_items(["new"], torch.zeros(1, 5), ["a new one"])
    assert [first.items_version, fewer.items_version, more.items_version] == [1, 2, 3]
    assert {first.codebook_id, fewer.codebook_id, more.codebook_id} == {first.codebook_id}
    assert not first.removed.any()  # the old one is as it was
    assert fewer.trie.num_leaves == 28
    assert more.trie.num_leaves == 29
    assert more.titles[-1] == "a new one"
    assert more.ids_of(["new", "i2"]).tolist() == [30, 2]


def test_it_cannot_be_written_to() -> None:
    catalog = make_catalog()
    for name in ("codes", "removed", "popularity"):
        with pytest.raises(TypeError, match="does not support item assignment"):
            getattr(catalog, name)[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(catalog.codes)[0] = 1


@settings(max_examples=25, deadline=None)
@given(
    collision=st.sampled_from(["greedy", "extra_digit"]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), min_size=1, max_size=12),
    duplicate=st.booleans(),
)
def test_no_code_is_ever_reused(collision: str, steps: list[tuple[bool, int]], duplicate: bool) -> None:
    catalog = make_catalog(20, collision)
    for number, (add, choice) in enumerate(steps):
        alive = [str(key) for key in catalog.item_keys[~catalog.removed]]
        if add:
            vectors = torch.randn(2, 5, generator=torch.Generator().manual_seed(0 if duplicate else choice))
            catalog = catalog.with_items([f"n{number}a", f"n{number}b"], vectors)
        elif len(alive) > 1:
            catalog = catalog.without([alive[choice % len(alive)]])
        assert len(np.unique(catalog.codes, axis=0)) == catalog.num_items
        assert (catalog.codes < np.array(catalog.level_sizes)).all()
        assert catalog.trie.num_leaves == (~catalog.removed).sum()


def test_shared_codes_are_served_by_popularity() -> None:
    catalog = make_catalog(40, "share", size=2)
    more = catalog.with_items(["twin"], catalog.quantizer.decode(torch.tensor(catalog.codes[:1]).long()))
    assert more.codes[-1].tolist() == catalog.codes[0].tolist()
    order = np.asarray(more.trie.leaf_items)
    twins = [int(item) for item in order if more.codes[item].tolist() == catalog.codes[0].tolist()]
    assert twins == sorted(twins, key=lambda item: (-more.popularity[item], item))
    assert twins[-1] == 40  # never seen


def test_full_code_space_is_said() -> None:
    catalog = make_catalog(8, "greedy", size=2)
    with pytest.raises(InputError, match="all 8 codes are taken"):
        catalog.without(["i0"]).with_items(["new"], torch.zeros(1, 5))


def test_bad_additions_and_removals() -> None:
    catalog = make_catalog()
    with pytest.raises(InputError, match="no item 'nobody'"):
        catalog.without(["nobody"])
    with pytest.raises(InputError, match="'i1' is removed already"):
        catalog.without(["i1"]).without(["i0", "i1"])
    with pytest.raises(InputError, match="'i1' is named twice"):
        catalog.without(["i1", "i1"])
    with pytest.raises(InputError, match="'i1' is in the catalogue already"):
        catalog.with_items(["i1"], torch.zeros(1, 5))
    with pytest.raises(InputError, match="'new' occurs 2 times"):
        catalog.with_items(["new", "new"], torch.zeros(2, 5))
    with pytest.raises(InputError, match="'new' holds NaN"):
        catalog.with_items(["new"], torch.full((1, 5), torch.nan))
    with pytest.raises(InputError, match=r"shape \(1, 4\)"):
        catalog.with_items(["new"], torch.zeros(1, 4))
    with pytest.raises(InputError, match="2 titles for 1"):
        catalog.with_items(["new"], torch.zeros(1, 5), ["one", "two"])


def test_duplicate_items_are_refused() -> None:
    catalog = make_catalog(3, "share", size=2)
    fields = {one.name: getattr(catalog, one.name) for one in dataclasses.fields(catalog) if one.init}
    with pytest.raises(InputError, match="item id 'a' occurs 2 times"):
        Catalog(**{**fields, "item_keys": np.array(["a", "b", "a"])})


def test_the_serving_order_is_by_popularity(tmp_path: Path) -> None:
    catalog = make_catalog()
    catalog.take_order(np.arange(30)[::-1].copy())  # the first is the most popular
    catalog.save(tmp_path / "catalog")
    with pytest.raises(ArtifactError, match="the serving order is not by popularity"):
        Catalog.load(tmp_path / "catalog")


def test_items_table_is_plain(tmp_path: Path) -> None:
    make_catalog(3, "share", size=2).save(tmp_path / "catalog")
    table = pa.ipc.open_file(tmp_path / "catalog" / "items.arrow").read_all()
    assert table.schema.names == ["key", "title", "popularity", "removed"]
    assert table["popularity"].type == pa.int64()
