"""The [catalog] section refuses what it cannot do, by name."""

from __future__ import annotations

from typing import Any

import pytest

from sidera.catalog.config import CatalogConfig
from sidera.config import parse_section
from sidera.core import InputError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vectors": []}, "at least one block"),
        ({"vectors": ["text", "text"]}, "each once"),
        ({"vectors": ["image"]}, "names 'image'.*text, tfidf, behaviour, file"),
        ({"vector_weights": [1.0, 2.0]}, "2 numbers for 1 vectors"),
        ({"vector_weights": [-1.0]}, "numbers > 0"),
        ({"vectors": ["file"]}, "do not fit"),
        ({"vectors_file": "a.parquet"}, "do not fit"),
        ({"quantizer": {"name": "rq_tree"}}, "'rq_tree' is not known.*rq_kmeans"),
        ({"collision": "gredy"}, "did you mean 'greedy'"),
        ({"quantizer": {"num_levels": 0}}, r"num_levels = 0 is out of range; allowed: 1\.\.16"),
        ({"quantizer": {"codebook_size": -1}}, "codebook_size = -1"),
        ({"quantizer": {"codebook_size": 40_000}}, "codebook_size = 40000"),
        ({"quantizer": {"codebook_size": "256"}}, "codebook_size = '256' is a str"),
        ({"vector_dim": 0}, "vector_dim = 0"),
        ({"quantizer": {"iterations": 0}}, "iterations = 0"),
        ({"window": 0}, "window = 0"),
        ({"singular_power": float("nan")}, "singular_power = nan"),
        ({"quantizer": {"codebok_size": 256}}, "did you mean 'codebook_size'"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_section(CatalogConfig, values, "[catalog]")


def test_weights_default_to_one() -> None:
    assert CatalogConfig(vectors=("tfidf", "behaviour")).weights == (1.0, 1.0)
    assert CatalogConfig(vectors=("tfidf", "behaviour"), vector_weights=(1.0, 0.5)).weights == (1.0, 0.5)


def test_unknown_policies_are_refused_in_code_too() -> None:
    with pytest.raises(InputError, match="collision = 'none'"):
        CatalogConfig(collision="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[catalog.quantizer\] name = 'mine' is not known; allowed: auto, none"):
        CatalogConfig(quantizer={"name": "mine"})
