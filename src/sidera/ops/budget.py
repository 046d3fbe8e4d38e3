"""A limit on what may be allocated while a model is built, held before the memory is touched.

    with Budget(2**30) as budget:
        model = SomeModel(config)          # TooLarge at the first table that goes beyond a gibibyte in all

A configuration is a few numbers and can ask for any amount: ``width = 10_000_000`` asks for terabytes. Every factory of
torch (``torch.empty``, ``torch.zeros``, ...) is asked on the meta device first, which knows the size and takes no
memory, so a constructor is stopped at the tensor that is too much, whichever class it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sidera.bounds import gib, total_memory

FACTORIES = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.eye, torch.randint}
)


LEAST = 64 * 2**20  # bytes that any model may take
MORE = 4  # times its weights: what a constructor makes beside them, and weights that were stored in half


class TooLarge(ValueError):
    """What was asked for is beyond the budget."""

    def __init__(self, needed: str, limit: str) -> None:
        self.needed, self.limit = needed, limit
        super().__init__(f"it takes {needed}, allowed: {limit}")


class Budget(TorchFunctionMode):
    """Inside ``with``, torch's factories raise :class:`TooLarge` once they were asked for more than ``limit`` bytes."""

    def __init__(self, limit: int, most_tensors: int = 10_000_000) -> None:
        """``limit`` in bytes; ``most_tensors`` stops a network of endless small layers too."""
        super().__init__()
        self.limit, self.used = limit, 0
        self.most_tensors = self.tensors_left = most_tensors

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = dict(kwargs or {})
        if func in FACTORIES:
            self.used += self._size(func, args, kwargs)
            self.tensors_left -= 1
            if self.used > self.limit:
                raise TooLarge(f"{gib(self.used)} or more", gib(self.limit))
            if self.tensors_left < 0:
                raise TooLarge(f"more than {self.most_tensors:,} tensors", f"{self.most_tensors:,}")
        return func(*args, **kwargs)

    def _size(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        plain = {name: value for name, value in kwargs.items() if name not in ("generator", "pin_memory", "out")}
        try:
            return func(*args, **{**plain, "device": "meta"}).nbytes
        except (RuntimeError, TypeError) as error:  # more bytes than 64 bits can count
            if "overflow" in str(error).lower():
                raise TooLarge("more bytes than 64 bits can count", gib(self.limit)) from None
            return 0  # the real call fails as well, and says why


def budget_of(weights: Mapping[str, Tensor]) -> Budget:
    """What building a model of these weights may take, whatever its configuration says."""
    wanted = max(LEAST, MORE * sum(tensor.nbytes for tensor in weights.values()))
    return Budget(min(wanted, total_memory() or wanted), MORE * len(weights) + 100)
