"""The ``[catalog]`` section of a recipe: which item vectors, which quantizer, what to do with collisions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sidera.catalog.collisions import POLICIES
from sidera.catalog.quantizers import AUTO, DEFAULT, NO_CODES, parse_quantizer, quantizer_class
from sidera.config import check_counts, check_value, later
from sidera.core import InputError

VECTOR_KINDS = ("text", "tfidf", "behaviour", "file", "aligned")
INPUT_KINDS = ("words", "text", "categories", "numbers", "cover", "frames")
OPTIONAL_KINDS = ("text?", "tfidf?")


@dataclass(frozen=True)
class ContrastiveConfig:
    """``[catalog.contrastive]``: how the block "aligned" is learned from content and training events.

    The training is in ``catalog/contrastive.py``.
    """

    inputs: tuple[str, ...] = (
        "words",
    )  # what becomes tokens: words | text (MiniLM) | categories | numbers | cover | frames
    category_fields: tuple[str, ...] = ()  # item columns of text, lists of text, whole numbers or true/false
    number_fields: tuple[str, ...] = ()  # item columns of numbers, or of lists of numbers of one length
    image_folder: str | None = None  # cover/KEY.png (.jpg .jpeg .webp), frames/KEY.png: square frames side by side
    image_encoder: str = "small"  # "small": trained here; else the folder of a local checkpoint, kept frozen
    image_size: int = 32  # pixels a side that pictures are scaled to, for "small"
    max_words: int = 32  # of an item's text
    max_categories: int = 8  # of an item
    vocabulary: int = 8192  # most frequent words, and categories, that get a vector
    width: int = 64  # dims of a token and of a query; the vector has num_queries x width
    num_queries: int = 4  # learned queries that an item's tokens are read with
    num_layers: int = 2  # blocks of the encoder
    num_heads: int = 4  # heads of attention; they divide width
    dropout: float = 0.1  # share of units dropped
    token_dropout: float = 0.1  # share of tokens hidden while training
    temperature: float = 0.05  # of the contrastive loss
    log_q: bool = True  # take the popularity of in-batch negatives out of their scores
    caption_weight: float = 0.1  # of the caption loss beside the contrastive one; 0: none
    caption_items: int = 64  # of a batch, that are captioned
    user_share: float = 0.5  # of the pairs are user-to-item, the rest item-to-item
    recent: int = 20  # user-to-item: earlier positives of the user among which the nearest is looked for
    neighbours: int = 10  # item-to-item: nearest by Swing that count as pairs
    swing_alpha: float = 1.0  # Swing: weakens pairs whose users share much else
    max_user_items: int = 100  # Swing: newest items of a user that count
    max_item_users: int = 200  # Swing: users of an item that count, drawn by the seed
    steps: int = 1200  # optimizer steps; 300 of 256 pairs are too few to keep what a user wants (docs/evidence/log.md)
    batch_size: int = 1024  # pairs a step
    lr: float = 2e-3  # learning rate of AdamW
    seed: int = 0  # of weights, pairs and dropout

    def __post_init__(self) -> None:
        def check(name: str, good: bool, allowed: str) -> None:
            check_value("[catalog.contrastive]", name, getattr(self, name), good, allowed)

        unknown = [kind for kind in self.inputs if kind not in INPUT_KINDS]
        check("inputs", bool(self.inputs) and not unknown, f"one or more of {', '.join(INPUT_KINDS)}")
        check("inputs", len(set(self.inputs)) == len(self.inputs), "each once")
        wants_pictures = bool({"cover", "frames"} & set(self.inputs))
        check(
            "image_folder", wants_pictures == (self.image_folder is not None), "a folder with the inputs cover, frames"
        )
        check(
            "category_fields", ("categories" in self.inputs) == bool(self.category_fields), "with the input categories"
        )
        check("number_fields", ("numbers" in self.inputs) == bool(self.number_fields), "with the input numbers")
        check_counts(
            "[catalog.contrastive]", self, "max_words", "max_categories", "vocabulary", "width", "num_queries",
            "num_layers", "num_heads", "recent", "neighbours", "max_user_items", "max_item_users", "steps",
            "image_size",
        )  # fmt: skip
        check_counts("[catalog.contrastive]", self, "batch_size", low=2)  # the others of a batch are the negatives
        check_counts("[catalog.contrastive]", self, "caption_items", "seed", low=0)
        check("num_heads", self.width % self.num_heads == 0, f"a divisor of width ({self.width})")
        for name in ("dropout", "token_dropout"):
            check(name, 0 <= getattr(self, name) < 1, "0 <= x < 1")
        check("user_share", 0 <= self.user_share <= 1, "a share from 0 to 1")
        for name in ("temperature", "swing_alpha", "lr"):
            check(name, 0 < getattr(self, name) < math.inf, "a number above 0")
        check("caption_weight", 0 <= self.caption_weight < math.inf, "0 or more")


def quantizer_section(written: Mapping[str, Any]) -> type:
    """The Config of the quantizer that ``[catalog.quantizer]`` names."""
    name = str(written.get("name", AUTO))
    return quantizer_class(AUTO if name == NO_CODES else name).Config


@dataclass(frozen=True)
class CatalogConfig:
    """How items get their semantic IDs. Sizes count codes, dims and iterations; nothing here has a unit."""

    vectors: tuple[str, ...] = ("text",)  # blocks that are fused: text | tfidf | behaviour | file | aligned;
    # "text?" and "tfidf?" are left out, and that is reported, when no item has a text; "text?" becomes "tfidf" where
    # the sentence encoder is not installed or would take longer than text_minutes
    vector_weights: tuple[float, ...] = ()  # one per block; empty: all 1
    vectors_file: str | None = None  # for the block "file": .parquet (key + list column) or .safetensors (+ keys .json)
    text_fields: tuple[str, ...] = ()  # item columns to read; empty: those of title, brand, categories, text present
    vector_dim: int = 128  # dims of the SVD blocks (tfidf, behaviour)
    quantizer: dict[str, Any] = field(default_factory=dict, metadata={"section": quantizer_section})
    # how vectors become codes: its name ("auto": rq_kmeans where the model reads codes; "none": the catalogue holds
    # items alone, and no code is made) and its own keys
    collision: Literal["extra_digit", "greedy", "sinkhorn", "share"] = "extra_digit"
    # items of one tuple of codes: a further digit, the nearest free tuple, transport on the last level, or shared
    seed: int = 0  # of the clustering and the SVD
    window: int = 5  # behaviour: pairs at most so many events apart count
    singular_power: float = 1.0  # behaviour: vectors = singular vectors x singular values ** power
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)  # aligned
    keep_vectors: bool = later(False)  # keep the vectors beside the codes, for models that read them (LIGER, COBRA)
    text_minutes: float = later(5.0)  # that MiniLM may take over "text?", by the first texts; "text" takes its time

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
        name, settings = parse_quantizer(self.quantizer)
        object.__setattr__(self, "quantizer", {"name": name, **({} if settings is None else asdict(settings))})
        if self.collision not in POLICIES:
            raise InputError(f"[catalog] collision = {self.collision!r} is not known", allowed=", ".join(POLICIES))
        _check_range("vector_dim", self.vector_dim, 1, 4096)
        check_counts("[catalog]", self, "seed", low=0)
        _check_range("window", self.window, 1, 1000)
        _check_range("text_minutes", self.text_minutes, 0.0, 1e6)
        _check_range("singular_power", self.singular_power, 0.0, 2.0)

    @property
    def quantizer_name(self) -> str:
        return str(self.quantizer.get("name", AUTO))

    @property
    def makes_codes(self) -> bool:
        """False: the catalogue holds items and no codes. "auto" makes them; a model that reads none turns it off."""
        return self.quantizer_name != NO_CODES

    def for_model(self, reads_codes: bool) -> CatalogConfig:
        """This section with "auto" decided: no quantizer for a model that reads no codes."""
        if self.quantizer_name != AUTO:
            return self
        return replace(self, quantizer={**self.quantizer, "name": DEFAULT if reads_codes else NO_CODES})

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per block."""
        return self.vector_weights or (1.0,) * len(self.vectors)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also False for NaN
        raise InputError(f"[catalog] {name} = {value!r} is out of range", allowed=f"{low}..{high}")
