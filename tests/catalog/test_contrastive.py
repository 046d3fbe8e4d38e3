"""Alignment: pairs from training events, negatives without false ones, and pictures that decide when only they can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from picture_folder import colour_log, colour_of, write_pictures

from sidera.artifacts import read_manifest
from sidera.catalog.build import build_catalog, catalog_digest
from sidera.catalog.config import CatalogConfig, ContrastiveConfig
from sidera.catalog.contrastive import (
    aligned_vectors,
    contrastive_digest,
    contrastive_encoder,
    contrastive_loss,
    negative_mask,
)
from sidera.catalog.item_content import ContentReader
from sidera.catalog.item_encoder import CaptionDecoder, ItemEncoder, load_item_encoder
from sidera.catalog.pairs import PairBatches, mine_pairs, user_to_item_pairs
from sidera.catalog.swing import swing
from sidera.config import parse_section
from sidera.core import ArtifactError, InputError
from sidera.data.split import leave_one_out

DATASET = colour_log()
SPLIT = leave_one_out(DATASET)
SMALL: dict[str, Any] = {
    "width": 16, "num_heads": 2, "num_layers": 1, "steps": 60, "batch_size": 32, "caption_items": 8, "lr": 5e-3,
    "image_size": 16, "neighbours": 5,
}  # fmt: skip


def config(**align: Any) -> CatalogConfig:
    return CatalogConfig(
        vectors=("aligned",),
        quantizer={"codebook_size": 8, "num_levels": 2},
        contrastive=ContrastiveConfig(**{**SMALL, **align}),
    )


def colour_share(vectors: torch.Tensor, rows: np.ndarray) -> float:
    """Of the 5 nearest of each row, how many have its colour."""
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-2)
    colours = torch.from_numpy(colour_of(len(vectors)))
    return float((colours[similarity[rows].topk(5).indices] == colours[rows][:, None]).float().mean())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def with_cover(pictures: Path) -> CatalogConfig:
    return config(inputs=("words", "cover"), image_folder=str(pictures))


def test_pictures_align_items_that_no_text_tells_apart(
    tmp_path: Path, with_cover: CatalogConfig, pictures: Path
) -> None:
    vectors, report = aligned_vectors(DATASET, SPLIT, with_cover, tmp_path / "encoder")
    assert vectors.shape == (48, 64)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(48))
    cold = np.flatnonzero(np.bincount(DATASET.item_ids, minlength=48) == 0)
    assert len(cold) == 12
    assert [file.name for file in tmp_path.iterdir()] == ["encoder"]  # no unfinished training is left
    assert colour_share(vectors, np.arange(48)) > 0.8  # by chance 0.23
    assert colour_share(vectors, cold) > 0.8  # they were in no pair: content alone places them
    assert report["cover"]["items_with"] == 48
    texts_only, _ = aligned_vectors(DATASET, SPLIT, config(steps=20), tmp_path / "texts")
    assert colour_share(texts_only, np.arange(48)) < 0.4

    again = load_item_encoder(tmp_path / "encoder")
    later = pa.table({"key": ["i5"], "title": ["stuff"]})
    torch.testing.assert_close(again.encode_items(later, ["i5"], pictures)[0], vectors[5], rtol=1e-4, atol=1e-5)
    saved = read_manifest(tmp_path / "encoder", "item_encoder")
    assert saved.info["report"]["steps"] == 60
    contrastive_encoder(DATASET, SPLIT, with_cover, tmp_path / "encoder")
    assert read_manifest(tmp_path / "encoder", "item_encoder").files == saved.files  # reused
    (tmp_path / "encoder" / "reader.json").write_text("{}")
    with pytest.raises(ArtifactError):
        load_item_encoder(tmp_path / "encoder")


def test_a_catalogue_is_built_from_aligned_vectors(tmp_path: Path) -> None:
    recipe = config(inputs=("words", "numbers", "categories"), number_fields=("size",), category_fields=("maker",))
    recipe = replace(recipe, contrastive=replace(recipe.contrastive, steps=5))
    catalog, report = build_catalog(DATASET, SPLIT, recipe, encoder_path=tmp_path / "encoder")
    assert catalog.quantizer.dim == 64
    assert report["vector_blocks"] == ["aligned"]
    assert report["aligned_content"] == {"items_without_content": 0}
    twin = build_catalog(DATASET, SPLIT, recipe, encoder_path=tmp_path / "twin")[0]
    assert twin.content_digest() == catalog.content_digest()


def test_digest_moves_with_section_split_and_pictures(
    tmp_path: Path, with_cover: CatalogConfig, pictures: Path
) -> None:
    write_pictures(tmp_path)
    moved = replace(with_cover, contrastive=replace(with_cover.contrastive, image_folder=str(tmp_path)))
    known = contrastive_digest(DATASET, SPLIT, with_cover)
    assert contrastive_digest(DATASET, SPLIT, moved) == known  # where the files lie does not count
    assert catalog_digest(DATASET, SPLIT, moved) == catalog_digest(DATASET, SPLIT, with_cover)
    (tmp_path / "cover" / "i3.png").unlink()
    assert contrastive_digest(DATASET, SPLIT, moved) != known
    longer = replace(with_cover, contrastive=replace(with_cover.contrastive, steps=61))
    assert contrastive_digest(DATASET, SPLIT, longer) != known
    assert contrastive_digest(DATASET, replace(SPLIT, train_ends=SPLIT.train_ends - 1), with_cover) != known
    plain = CatalogConfig(vectors=("tfidf",))
    assert catalog_digest(DATASET, SPLIT, plain) == catalog_digest(
        DATASET, SPLIT, replace(plain, contrastive=ContrastiveConfig(steps=3))
    )


def test_pairs_stay_inside_a_colour_and_the_training_part() -> None:
    pairs = mine_pairs(DATASET, SPLIT, ContrastiveConfig(**SMALL))
    colours = colour_of(48)
    for left, right in (pairs.user_to_item, pairs.item_to_item):
        assert len(left) > 100
        assert (colours[left] == colours[right]).all()
        assert (left != right).all()
    # what comes after train_ends changes nothing
    changed = DATASET.item_ids.copy()
    changed[DATASET.offsets[1:] - 1] = 0
    twin = mine_pairs(replace(DATASET, item_ids=changed), leave_one_out(replace(DATASET, item_ids=changed)),
                      ContrastiveConfig(**SMALL))  # fmt: skip
    assert np.array_equal(twin.user_to_item[0], pairs.user_to_item[0])
    assert np.array_equal(twin.item_to_item[1], pairs.item_to_item[1])


def test_user_to_item_pairs_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    users, items = np.sort(rng.integers(0, 20, 200)), rng.integers(0, 15, 200)
    found = swing(users, items, 15)
    expected = []
    for event in range(200):
        best, partner = 0.0, -1
        for earlier in range(event - 1, max(event - 6, -1), -1):
            if users[earlier] != users[event]:
                break
            if items[earlier] == items[event]:
                continue
            score = float(found.similarity(items[[event]], items[[earlier]])[0])
            if score > best:
                best, partner = score, items[earlier]
        if partner >= 0:
            expected.append((items[event], partner))
    left, right = user_to_item_pairs(users, items, found, recent=5)
    assert list(zip(left, right, strict=True)) == expected


def test_batches_are_a_function_of_their_number() -> None:
    align = ContrastiveConfig(**SMALL)
    source = PairBatches(mine_pairs(DATASET, SPLIT, align), align, "x")
    whole = list(source.batches(0))
    resumed = next(source.batches(0, start=7))
    assert len(whole) == source.num_batches(0) == 60
    assert torch.equal(whole[7].item_ids, resumed.item_ids)
    assert not torch.equal(whole[6].item_ids, resumed.item_ids)


def test_false_negatives_are_masked_and_the_loss_is_the_formula() -> None:
    left, right = torch.tensor([0, 1, 2, 3]), torch.tensor([5, 5, 0, 7])
    partners = torch.full((9, 2), -1)
    partners[1, 0] = 7
    negatives = negative_mask(left, right, partners)
    assert negatives.tolist() == [
        [False, False, False, True],  # 5 is its partner, again; 0 is itself
        [False, False, True, False],  # 7 is a known partner of 1
        [True, True, False, True],
        [True, True, True, False],
    ]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=1) for _ in range(2))
    shift = torch.randn(4, generator=generator)
    total = 0.0
    for p in range(4):
        scores = [float(a[p] @ b[q]) / 0.2 - float(shift[q]) for q in range(4)]
        below = sum(np.exp(scores[q]) for q in range(4) if q == p or negatives[p, q])
        total -= scores[p] - np.log(below)
    assert float(contrastive_loss(a, b, negatives, 0.2, shift)) == pytest.approx(total / 4, rel=1e-4)


def test_a_caption_is_learned_from_the_vector_alone() -> None:
    align = ContrastiveConfig(**{**SMALL, "dropout": 0.0, "token_dropout": 0.0})
    reader = ContentReader.fit(DATASET.items, align, ("title",))
    content = reader.read(DATASET.items, DATASET.item_keys)
    torch.manual_seed(0)
    encoder = ItemEncoder(reader, content)
    decoder = CaptionDecoder(encoder)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(40):
        loss = decoder(encoder.queries(content), content.words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1  # one word of three and the end: log(3) / 2 = 0.55 without reading the vector
    other = content.words.roll(1, 0)  # captions of other items
    assert float(decoder(encoder.queries(content), other).detach()) > 1.0
    silent = torch.zeros_like(content.words)
    assert float(decoder(encoder.queries(content), silent).detach()) == 0.0


def test_words_that_were_never_seen_and_missing_numbers_make_no_token() -> None:
    align = ContrastiveConfig(**SMALL, inputs=("words", "numbers"), number_fields=("size",))
    reader = ContentReader.fit(DATASET.items, align, ("title",))
    later = pa.table(
        {"key": ["a", "b", "c"], "title": ["unheard of", "stuff", None], "size": [None, 1.0, float("nan")]}
    )
    content = reader.read(later, ["a", "b", "c"])
    assert content.known_mask().tolist() == [False, True, False]
    assert content.report["items_without_content"] == 2
    vectors = ItemEncoder(reader, content).encode(content)
    assert (vectors[[0, 2]] == 0).all()
    assert vectors[1].norm() == pytest.approx(1.0, rel=1e-4)
    with pytest.raises(InputError, match="no item has any content"):
        reader.read(later.slice(0, 1), ["a"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"inputs": ["smell"]}, "inputs"),
        ({"inputs": ["cover"]}, "image_folder"),
        ({"inputs": ["numbers"]}, "number_fields"),
        ({"category_fields": ["maker"]}, "category_fields"),
        ({"batch_size": 1}, "batch_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"width": 10, "num_heads": 4}, "num_heads"),
        ({"color": 1}, "no key 'color'"),
    ],
)
def test_impossible_sections_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_section(CatalogConfig, {"vectors": ["aligned"], "contrastive": section}, "[catalog]")


@pytest.mark.parametrize(
    ("align", "message"),
    [
        ({"inputs": ("numbers",), "number_fields": ("title",)}, "holds string"),
        ({"inputs": ("numbers",), "number_fields": ("weight",)}, "names 'weight'"),
        ({"inputs": ("categories",), "category_fields": ("colour",)}, "names 'colour'"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, align: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        contrastive_encoder(DATASET, SPLIT, config(**align), tmp_path / "encoder")


def test_a_log_without_pairs_is_refused(tmp_path: Path) -> None:
    lonely = replace(SPLIT, train_ends=DATASET.offsets[:-1] + 1)
    with pytest.raises(InputError, match="two users who share"):
        contrastive_encoder(DATASET, lonely, config(), tmp_path / "encoder")
