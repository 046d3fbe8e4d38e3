"""A step's two batches as one: requests that the method works on, and next tokens beside them.

Both sources repeat, each in epochs of its own. Batch ``n`` of the training is a function of ``n`` alone, so a training
that is continued gets the batches that an uninterrupted one gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from sidera.batch import Batch
from sidera.config import digest
from sidera.core import InputError
from sidera.fit.protocols import BatchSource


@dataclass(frozen=True)
class JointBatch:
    """One batch of an alignment."""

    number: int  # of all batches of the training
    requests: Batch | None  # for the method; None where next tokens are all that is learned
    next_tokens: Batch | None
    global_count: int = 1  # the loss is a mean already: batches weigh alike, however many targets they have

    @property
    def _parts(self) -> list[Batch]:
        return [batch for batch in (self.requests, self.next_tokens) if batch is not None]

    @property
    def num_histories(self) -> int:
        return sum(batch.num_histories for batch in self._parts)

    @property
    def num_events(self) -> int:
        return sum(batch.num_events for batch in self._parts)

    def to(self, device: torch.device | str) -> JointBatch:
        requests, next_tokens = (batch and batch.to(device) for batch in (self.requests, self.next_tokens))
        return replace(self, requests=requests, next_tokens=next_tokens)


class JointSource:
    """``length`` joint batches."""

    def __init__(self, length: int, requests: BatchSource | None, next_tokens: BatchSource | None) -> None:
        self.length, self.requests, self.next_tokens = length, requests, next_tokens

    @property
    def digest(self) -> str:
        return digest([getattr(source, "digest", "") for source in (self.requests, self.next_tokens)])

    def num_batches(self, epoch: int) -> int:
        return self.length if epoch == 0 else 0

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[JointBatch]:
        requests = _repeated(self.requests, start, rank, world_size)
        next_tokens = _repeated(self.next_tokens, start, rank, world_size)
        for number in range(start, self.num_batches(epoch)):
            yield JointBatch(number, next(requests), next(next_tokens))


def _repeated(source: BatchSource | None, start: int, rank: int, world_size: int) -> Iterator[Batch | None]:
    """Epoch after epoch, without end, from batch ``start`` of all epochs on; None for ever without a source."""
    epoch = 0
    while source is None:
        yield None
    while True:
        count = source.num_batches(epoch)
        if not count:
            raise InputError("there is nothing to align on: the source gives no batch", fix="use a larger log")
        if start < count:
            yield from source.batches(epoch, start, rank, world_size)
        epoch, start = epoch + 1, max(0, start - count)
