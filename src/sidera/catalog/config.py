"""The ``[catalog]`` section of a recipe: which item vectors, which quantizer, what to do with collisions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sidera.core import InputError

VECTOR_KINDS = ("text", "tfidf", "behaviour", "file")
OPTIONAL_KINDS = ("text?", "tfidf?")
MAX_CODES = 32_767  # codes of a level are stored as int16 in the trie


@dataclass(frozen=True)
class CatalogConfig:
    """How items get their semantic IDs. Sizes count codes, dims and iterations; nothing here has a unit."""

    vectors: tuple[str, ...] = ("text",)  # blocks that are fused: text | tfidf | behaviour | file
    # "text?" and "tfidf?" are left out, and that is reported, when no item has a text
    vector_weights: tuple[float, ...] = ()  # one per block; empty: all 1
    vectors_file: str | None = None  # for the block "file": .parquet (key + list column) or .safetensors (+ keys .json)
    text_fields: tuple[str, ...] = ()  # item columns to read; empty: those of title, brand, categories, text present
    vector_dim: int = 128  # dims of the SVD blocks (tfidf, behaviour)
    quantizer: Literal["rq_kmeans"] = "rq_kmeans"
    num_levels: int = 3  # of the quantizer; extra_digit adds one
    codebook_size: int = 256  # codes a level; 0: chosen from the number of items
    balanced: bool = False  # every code of a level names at most ceil(N / codebook_size) items
    collision: Literal["extra_digit", "greedy", "share"] = "extra_digit"
    iterations: int = 25  # of Lloyd's algorithm
    seed: int = 0
    window: int = 5  # behaviour: pairs at most so many events apart count
    singular_power: float = 1.0  # behaviour: vectors = singular vectors x singular values ** power

    def __post_init__(self) -> None:
        if not self.vectors or len(set(self.vectors)) != len(self.vectors):
            raise InputError(f"[catalog] vectors = {list(self.vectors)!r}", allowed="at least one block, each once")
        for kind in self.vectors:
            if kind not in (*VECTOR_KINDS, *OPTIONAL_KINDS):
                raise InputError(f"[catalog] vectors names {kind!r}", allowed=", ".join(VECTOR_KINDS + OPTIONAL_KINDS))
        if self.vector_weights and len(self.vector_weights) != len(self.vectors):
            raise InputError(
                f"[catalog] vector_weights has {len(self.vector_weights)} numbers for {len(self.vectors)} vectors",
                fix="give one weight per block, or none",
            )
        if any(not math.isfinite(weight) or weight <= 0 for weight in self.vector_weights):
            raise InputError(f"[catalog] vector_weights = {list(self.vector_weights)!r}", allowed="numbers > 0")
        if ("file" in self.vectors) != (self.vectors_file is not None):
            raise InputError(
                f"[catalog] vectors = {list(self.vectors)!r} and vectors_file = {self.vectors_file!r} do not fit",
                fix='name the file in vectors_file and "file" in vectors, or neither',
            )
        if self.quantizer != "rq_kmeans":
            raise InputError(f"[catalog] quantizer = {self.quantizer!r} is not known", allowed="rq_kmeans")
        if self.collision not in ("extra_digit", "greedy", "share"):
            raise InputError(
                f"[catalog] collision = {self.collision!r} is not known", allowed="extra_digit, greedy, share"
            )
        _check_range("num_levels", self.num_levels, 1, 16)
        _check_range("codebook_size", self.codebook_size, 0, MAX_CODES)
        _check_range("vector_dim", self.vector_dim, 1, 4096)
        _check_range("iterations", self.iterations, 1, 1000)
        _check_range("window", self.window, 1, 1000)
        _check_range("singular_power", self.singular_power, 0.0, 2.0)

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per block."""
        return self.vector_weights or (1.0,) * len(self.vectors)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also False for NaN
        raise InputError(f"[catalog] {name} = {value!r} is out of range", allowed=f"{low}..{high}")
