"""The tensors of a saved quantizer, taken out by name and checked: a damaged file is one line, not a wrong code."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sidera.core import InputError


class StateReader:
    """Gives every tensor of a state once.

    ``reader.take("mean", 64)``; ``None`` in a shape stands for any size. At the end :meth:`done` refuses what is left.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._left = dict(state)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A finite float32 tensor of this shape; InputError where it is missing or another one."""
        if name not in self._left:
            raise InputError(f"the quantizer has no tensor {name!r}", allowed="all that it was saved with")
        tensor = self._left.pop(name)
        fits = tensor.ndim == len(shape) and all(
            wanted is None or wanted == size for wanted, size in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype != torch.float32 or not fits:
            wanted_text = " x ".join("any" if size is None else str(size) for size in shape) or "one number"
            raise InputError(
                f"tensor {name!r} of the quantizer is {tensor.dtype} of shape {tuple(tensor.shape)}",
                allowed=f"torch.float32 of shape {wanted_text}",
            )
        if not bool(tensor.isfinite().all()):
            raise InputError(f"tensor {name!r} of the quantizer holds NaN or inf")
        return tensor

    def take_list(self, name: str, *shape: int | None) -> tuple[Tensor, ...]:
        """``name.0``, ``name.1``, ...: at least one, of this shape, and as wide as the first."""
        parts = [self.take(f"{name}.0", *shape)]
        while self.has(f"{name}.{len(parts)}"):
            parts.append(self.take(f"{name}.{len(parts)}", shape[0], *parts[0].shape[1:]))
        return tuple(parts)

    def has(self, name: str) -> bool:
        return name in self._left

    def below(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names begin so, under the rest of their names: the state of an inner part."""
        names = [name for name in self._left if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._left.pop(name) for name in names}

    def done(self) -> None:
        """InputError when a tensor was not taken."""
        if self._left:
            raise InputError(f"the quantizer has a tensor {sorted(self._left)[0]!r} that its kind does not know")
