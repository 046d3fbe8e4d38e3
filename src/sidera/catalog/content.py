"""Item vectors from content: a local sentence encoder, TF-IDF, or a file; and how blocks of vectors are fused.

An item without any text gets the zero row, and a zero row means "nothing is known" from here on.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from sidera.catalog.text_encoder import encode_texts
from sidera.catalog.tfidf import reduced_tfidf
from sidera.core import InputError
from sidera.data.schema import with_text


def item_texts(items: pa.Table, fields: Sequence[str] = ()) -> list[str]:
    """(N,) the sentence that describes each item, empty where nothing is known."""
    return [text or "" for text in with_text(items, fields)["text"].to_pylist()]


def text_vectors(texts: Sequence[str], minutes: float | None = None) -> Tensor:
    """(N,) -> (N, 384) unit rows by MiniLM, distinct texts only, from the cache those that were encoded before.

    With ``minutes`` InputError (text_encoder.TooSlow) when the encoding would take longer.
    """
    unique = sorted(set(_require_texts(texts, "text")))
    return _rows_of(texts, unique, encode_texts(unique, minutes))


def tfidf_vectors(texts: Sequence[str], dim: int, seed: int = 0) -> Tensor:
    """(N,) -> (N, dim) unit rows: TF-IDF over words, then truncated SVD (latent semantic analysis).

    Of scripts without spaces between words, letters and pairs of letters are words too.
    """
    known = _require_texts(texts, "tfidf")
    unique = sorted(set(known))
    reduced = reduced_tfidf(unique, dim, seed)
    if reduced is None:
        raise InputError("the item texts hold no word that TF-IDF could use", fix="check [catalog] text_fields")
    return _rows_of(texts, unique, _unit_rows(reduced))


def fuse(blocks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Blocks (N, D_i) with unit rows, weighted, side by side: (N, sum of D_i). Zero rows stay zero."""
    if len(blocks) == 1:
        return blocks[0] * weights[0]
    return torch.cat([_unit_rows(block) * weight for block, weight in zip(blocks, weights, strict=True)], dim=1)


def _unit_rows(vectors: Tensor) -> Tensor:
    norms = vectors.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, vectors / norms.clamp(min=1e-30), 0.0)


def _require_texts(texts: Sequence[str], kind: str) -> list[str]:
    known = [text for text in texts if text]
    if not known:
        raise InputError(
            f'vectors = ["{kind}"] but no item has any text',
            fix='import items with a title or text column, or use vectors = ["behaviour"]',
        )
    return known


def _rows_of(texts: Sequence[str], unique: Sequence[str], vectors: Tensor) -> Tensor:
    """Vectors of the distinct texts -> one row per item, zero for the empty text."""
    row_of = {text: row for row, text in enumerate(unique)}
    padded = torch.cat([vectors, torch.zeros(1, vectors.shape[1])])
    return padded[[row_of.get(text, len(unique)) for text in texts]]
