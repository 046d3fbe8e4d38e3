"""How item vectors become codes. A new quantizer = one file with one class, a line here, and a row in
docs/use/catalog.md.

A recipe names it and its keys, the fields of its ``Config``:

    [catalog.quantizer]
    name = "rq_kmeans"
    num_levels = 3

A class from elsewhere takes part once it is entered: ``QUANTIZERS["mine"] = Mine``. The contract test
(tests/contracts/test_every_quantizer.py) runs on all that are entered.

Shape legend: N items · D numbers of a vector · L levels · K codes of a level · l codes of a prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from sidera.bounds import shown
from sidera.catalog.fsq import FSQ, RQFSQ
from sidera.catalog.lfq import LFQ
from sidera.catalog.product import OPQ, PQ
from sidera.catalog.rq_kmeans import RQKMeans
from sidera.catalog.rq_vae import RQVAE
from sidera.config import closest, parse_section
from sidera.core import InputError


class Quantizer(Protocol):
    """A frozen code: what was fitted, and how to read and write with it.

    It need not be residual. All that is asked of its levels is that a prefix of codes has a vector, and that the codes
    that may follow a prefix can be ranked for a vector.
    """

    @property
    def Config(self) -> type:
        """Frozen dataclass of its keys, with defaults for all."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """K of each of the L levels."""

    @property
    def dim(self) -> int:
        """D."""

    @classmethod
    def fit(cls, vectors: Tensor, config: Any, seed: int) -> tuple[Quantizer, Tensor]:
        """(N, D) vectors, none of them zero -> the quantizer, and their codes (N, L) int64.

        The codes need not be those of ``encode``: a balanced quantizer gives some items another one. InputError when
        the vectors are too few for the config.
        """

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> (n, L) int64, the best code of each."""

    def decode(self, codes: Tensor) -> Tensor:
        """(n, l) int64, l from 0 to L -> (n, D): what the codes, or the first of them, say of a vector."""

    def next_costs(self, prefix: Tensor, vectors: Tensor) -> Tensor:
        """(n, D) vectors that share a prefix (l,), l < L -> (n, K): how badly each next code fits, less a constant a
        row."""

    def state(self) -> Mapping[str, Tensor]:
        """Contiguous tensors that :meth:`from_state` makes it from again."""

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Quantizer:
        """InputError when the tensors do not fit one another."""


QUANTIZERS: dict[str, Any] = {
    "rq_kmeans": RQKMeans,
    "rq_vae": RQVAE,
    "pq": PQ,
    "opq": OPQ,
    "fsq": FSQ,
    "rq_fsq": RQFSQ,
    "lfq": LFQ,
}
DEFAULT = "rq_kmeans"
AUTO, NO_CODES = "auto", "none"


def name_of(quantizer: Quantizer | None) -> str:
    """The name that a recipe gives it; "none" for none."""
    if quantizer is None:
        return NO_CODES
    return next(name for name, kind in QUANTIZERS.items() if type(quantizer) is kind)


def quantizer_class(name: str) -> Any:
    """InputError when there is no quantizer of this name. "auto" means the usual one."""
    if name == AUTO:
        return QUANTIZERS[DEFAULT]
    if name not in QUANTIZERS:
        problem = f"[catalog.quantizer] name = {shown(name)} is not known{closest(name, [AUTO, NO_CODES, *QUANTIZERS])}"
        raise InputError(problem, allowed=", ".join([AUTO, NO_CODES, *QUANTIZERS]))
    return QUANTIZERS[name]


def parse_quantizer(section: Mapping[str, Any]) -> tuple[str, Any]:
    """``[catalog.quantizer]`` -> its name and the quantizer's Config, None where no codes are made."""
    values = dict(section)
    name = values.pop("name", AUTO)
    if name == NO_CODES:  # no key is read
        return name, None
    if not isinstance(name, str):
        raise InputError(f"[catalog.quantizer] name = {shown(name)} is no text", allowed=", ".join(QUANTIZERS))
    return name, parse_section(quantizer_class(name).Config, values, "[catalog.quantizer]")


def identity(quantizer: Quantizer) -> str:
    """64 hex digits over its name and all that it was fitted to: equal only where every code means the same."""
    content = hashlib.sha256(name_of(quantizer).encode())
    for name, tensor in sorted(quantizer.state().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
