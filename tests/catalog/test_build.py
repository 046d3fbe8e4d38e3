"""From a data set to a catalogue, and what the report says about it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sidera.catalog.build import build_catalog, catalog_digest
from sidera.catalog.catalog import Catalog
from sidera.catalog.config import CatalogConfig
from sidera.catalog.kmeans import default_codebook_size
from sidera.catalog.report import level_use, neighbour_overlap
from sidera.catalog.vectors_file import save_vectors
from sidera.core import InputError
from sidera.data.config import load_dataset, make_split
from sidera.data.schema import build_dataset
from sidera.data.split import item_popularity, leave_one_out
from sidera.data.tiny import tiny_log

BEAUTY = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "amazon2014_beauty"
DATASET = tiny_log(num_users=200, num_items=120)
SPLIT = leave_one_out(DATASET)


@pytest.mark.parametrize("collision", ["extra_digit", "greedy", "share"])
@pytest.mark.parametrize("vectors", [("behaviour",), ("tfidf",), ("tfidf", "behaviour")])
def test_every_combination_builds_and_travels(tmp_path: Path, vectors: tuple[str, ...], collision: str) -> None:
    config = CatalogConfig(
        vectors=vectors, collision=collision, quantizer={"num_levels": 2, "codebook_size": 16, "balanced": True}
    )
    catalog, report = build_catalog(DATASET, SPLIT, config)
    assert catalog.item_keys.tolist() == DATASET.item_keys.tolist()
    assert catalog.popularity.tolist() == item_popularity(DATASET, SPLIT).tolist()
    assert catalog.num_levels == (3 if collision == "extra_digit" else 2)
    if collision != "share":
        assert catalog.trie.num_leaves == DATASET.num_items
    assert 0 < report["relative_error"] < 1
    assert catalog.report == report
    catalog.save(tmp_path / "catalog")
    assert Catalog.load(tmp_path / "catalog").report == report
    assert build_catalog(DATASET, SPLIT, config)[0].content_digest() == catalog.content_digest()


def test_vectors_from_a_file(tmp_path: Path) -> None:
    vectors = torch.randn(DATASET.num_items, 8, generator=torch.Generator().manual_seed(0))
    digests = []
    for name, scale in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_vectors(tmp_path / f"{name}.safetensors", DATASET.item_keys, scale * vectors)
        config = CatalogConfig(
            vectors=("file",), vectors_file=str(tmp_path / f"{name}.safetensors"), quantizer={"codebook_size": 8}
        )
        digests.append((catalog_digest(DATASET, SPLIT, config), build_catalog(DATASET, SPLIT, config)[0].codebook_id))
    assert digests[0] == digests[1]  # what is in the file counts, not its name
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] != digests[2][1]


def test_digest_moves_with_recipe_and_split() -> None:
    config = CatalogConfig(vectors=("behaviour",))
    other_split = type(SPLIT)(SPLIT.name, SPLIT.train_ends - (np.diff(DATASET.offsets) > 4), SPLIT.valid, SPLIT.test)
    digests = {
        catalog_digest(DATASET, SPLIT, config),
        catalog_digest(DATASET, SPLIT, CatalogConfig(vectors=("behaviour",), seed=1)),
        catalog_digest(DATASET, other_split, config),
        catalog_digest(tiny_log(num_users=20), SPLIT, config),
    }
    assert len(digests) == 4


def test_one_item_and_one_code() -> None:
    dataset = build_dataset(
        "one", pa.table({"user": ["u"], "item": ["a"], "time": [0]}), pa.table({"key": ["a"], "title": ["tea"]})
    )
    config = CatalogConfig(vectors=("tfidf",), quantizer={"num_levels": 1})
    with pytest.raises(InputError, match=r"codebook_size = 256 but there are only 1 items.* 0 "):
        build_catalog(dataset, leave_one_out(dataset), config)
    for collision in ("extra_digit", "greedy", "share"):
        config = CatalogConfig(vectors=("tfidf",), quantizer={"num_levels": 1, "codebook_size": 0}, collision=collision)
        catalog, report = build_catalog(dataset, leave_one_out(dataset), config)
        assert catalog.trie.num_leaves == 1
        assert report["relative_error"] == 0


def test_more_items_than_codes_can_name() -> None:
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 2, "codebook_size": 4}, collision="greedy")
    with pytest.raises(InputError, match=r"120 items but 4 x 4 codes name only 16; fix: give .*codebook_size"):
        build_catalog(DATASET, SPLIT, config)


def test_items_known_only_to_the_test_are_spread_and_counted() -> None:
    rows = [(f"u{u}", f"i{(u * 3 + t) % 40}" if t < 6 else f"cold{u}", t) for u in range(40) for t in range(7)]
    users, items, times = zip(*rows, strict=True)
    dataset = build_dataset("cold", pa.table({"user": users, "item": items, "time": times}))
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 1, "codebook_size": 8, "balanced": True})
    catalog, report = build_catalog(dataset, leave_one_out(dataset), config)
    assert report["num_cold_items"] == report["num_unknown_items"] == 40  # no text to go by
    assert np.bincount(catalog.codes[:, 0]).tolist() == [10] * 8
    titled = dataset.items.append_column("title", pa.array([f"sort {str(key)[-1]}" for key in dataset.item_keys]))
    events = pa.table({"user": users, "item": items, "time": times})
    dataset = build_dataset("cold", events, titled.select(["key", "title"]))
    _, report = build_catalog(dataset, leave_one_out(dataset), config)
    assert (report["num_borrowed_items"], report["num_unknown_items"]) == (40, 0)


def test_report_numbers_by_hand() -> None:
    use = level_use(np.array([0, 0, 1, 1]), 4)
    assert (use["used"], use["entropy_bits"], use["perplexity"], use["largest"]) == (2, 1.0, 2.0, 2)
    vectors, others = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    assert neighbour_overlap(vectors, vectors) == 1.0
    assert neighbour_overlap(vectors, others) < 0.5


def test_default_codebook_size() -> None:
    assert [default_codebook_size(n) for n in (1, 2, 300, 12_101, 1_000_000)] == [1, 2, 32, 256, 2048]


def test_imports_with_the_bare_four_only() -> None:
    blocked = "sklearn scipy matplotlib fastapi tqdm tensorboard sentence_transformers transformers"
    code = f"import sys\nfor name in {blocked.split()!r}: sys.modules[name] = None\nimport sidera.catalog.build\n"
    code += "from sidera.catalog.config import CatalogConfig\nfrom sidera.data.tiny import tiny_log\n"
    code += "from sidera.data.split import leave_one_out\nd = tiny_log(50, 40)\n"
    code += "q = {'codebook_size': 8, 'balanced': True}\n"
    code += "c = CatalogConfig(vectors=('behaviour',), quantizer=q, collision='greedy')\n"
    code += "sidera.catalog.build.build_catalog(d, leave_one_out(d), c)\n"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow  # 20 s: a public data set whole
@pytest.mark.skipif(not BEAUTY.is_dir(), reason="shared/data/amazon2014_beauty is absent")
def test_beauty_collaborative_tree() -> None:
    """The tree of sidera's generator: 256 clusters of at most 48 items that follow each other."""
    dataset = load_dataset(BEAUTY)
    config = CatalogConfig(vectors=("behaviour",), quantizer={"num_levels": 1, "codebook_size": 256, "balanced": True})
    catalog, report = build_catalog(dataset, make_split(dataset), config)
    assert catalog.level_sizes == (256, 48)
    assert catalog.trie.num_leaves == dataset.num_items == 12_101
    assert report["levels"][0]["perplexity"] > 250
    assert report["transition_share"]["valid"] > 0.135  # a first plain tree had .11
    assert report["transition_share"]["chance"] < 0.01
    assert report["num_unknown_items"] == 0


def test_an_optional_text_block_is_left_out_and_reported_when_there_is_no_text() -> None:
    config = CatalogConfig(
        vectors=("tfidf?", "behaviour"), vector_weights=(2.0, 1.0), quantizer={"codebook_size": 4, "num_levels": 1}
    )
    with_text = tiny_log(num_users=60, num_items=24)
    without = replace(with_text, items=with_text.items.select(["key"]))
    for dataset, expected in ((with_text, ["tfidf", "behaviour"]), (without, ["behaviour"])):
        _, report = build_catalog(dataset, leave_one_out(dataset), config)
        assert report["vector_blocks"] == expected
    only = CatalogConfig(vectors=("tfidf?",), quantizer={"codebook_size": 4})
    with pytest.raises(InputError, match="no item has a text"):
        build_catalog(without, leave_one_out(without), only)
    with pytest.raises(InputError, match="behaviour\\?"):
        CatalogConfig(vectors=("behaviour?",))
