"""What a model makes of its weights for answering: laid out, folded or gathered once, and again when they changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class MadeOfWeights(Generic[Made]):
    """Kept until a weight is replaced, moved to a device or written to. Copies of a model start without it.

    Trap: the fused AdamW writes weights without counting their version up. What was made at one validation would be
    taken for current at the next, so the model's ``train`` calls :meth:`drop`.
    """

    def __init__(self) -> None:
        self._made: Made | None = None
        self._made_of: tuple[tuple[int, int], ...] = ()

    def get(self, weights: Iterable[Tensor], make: Callable[[], Made]) -> Made:
        if torch.compiler.is_exporting() and self._made is not None:
            return self._made  # an exporter's tensors have no address
        made_of = tuple((weight.data_ptr(), weight._version) for weight in weights)
        if self._made is None or made_of != self._made_of:
            self._made, self._made_of = make(), made_of
        return self._made

    def drop(self) -> None:
        self._made = None

    def __reduce__(self) -> tuple[type[MadeOfWeights[Made]], tuple[()]]:
        return type(self), ()
