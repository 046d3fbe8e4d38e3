"""The vectors that codes were made of, kept beside the codes: what an item is before it is rounded to a semantic ID.

    [catalog]
    keep_vectors = true

They stand among the features of the items under a name that no recipe can declare, so they are saved, mapped, grown and
given to models as features are, and no batch carries them. An item that comes later has the vector that it was given,
and one that comes back under its old codes has what these say.

Shape legend: N items · D width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sidera.core import InputError
from sidera.data.feature import Feature

KEPT = "[catalog] vectors"  # a feature's name is a key of TOML or of JSON, and nobody writes this one


def content_features(catalog: Any, vectors_alone: bool = False) -> tuple[Feature, ...]:
    """What can be read of every item: its declared features, and its kept vector; with ``vectors_alone`` this alone.

    InputError where only vectors are to be read and ``catalog`` (a Catalog) keeps none.
    """
    declared: tuple[Feature, ...] = () if vectors_alone else tuple(catalog.schema.owned("item"))
    if KEPT in catalog.features:
        return (*declared, _feature(catalog.features[KEPT].shape[1]))
    if vectors_alone:
        raise InputError(
            'content = "vectors" and the catalogue keeps no vectors',
            fix='set [catalog] keep_vectors = true, with [catalog] vectors = ["text"] for sentences',
        )
    return declared


def check_kept(values: Any, number: int) -> None:
    """InputError unless these are finite vectors of so many items."""
    if values.dtype != np.float32 or values.ndim != 2 or len(values) != number or not np.isfinite(values).all():
        problem = f"the kept vectors are {values.dtype} of shape {values.shape}"
        raise InputError(problem, allowed=f"finite float32 vectors of {number} items")


def of_late(features: Mapping[str, Any], vectors: Any, codes: np.ndarray, quantizer: Any) -> dict[str, np.ndarray]:
    """The kept vectors of late items: those given (n, D), else what their codes (n, L) say; {} where none are kept."""
    if KEPT not in features:
        return {}
    if vectors is None:
        levels = len(quantizer.level_sizes)
        vectors = quantizer.decode(torch.from_numpy(np.asarray(codes, dtype=np.int64))[:, :levels])
    return {KEPT: np.asarray(vectors, dtype=np.float32)}


def _feature(width: int) -> Feature:
    return Feature(KEPT, "vector", "item", "", log=(False,) * width, mean=(0.0,) * width, spread=(1.0,) * width)
