"""A small next-item model and a data source for the tests of the training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.data.features import FeatureSchema
from sidera.data.items import ItemTable
from sidera.data.reading import Reading, Wanted
from sidera.roles import Loss

NUM_ITEMS = 23
READING = Reading(FeatureSchema(), ItemTable.plain(NUM_ITEMS), Reads(10))


class Toy(nn.Module):
    """Predicts the next item of a ring from the last one."""

    def __init__(self, dropout: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.item = nn.Embedding(NUM_ITEMS, width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))
        self.out = nn.Linear(width, NUM_ITEMS)

    def logits(self, item_ids: Tensor) -> Tensor:
        return self.out(self.mix(self.item(item_ids)))

    def loss(self, batch: Batch) -> Loss:
        target_ids = batch.target_ids
        assert target_ids is not None
        total = F.cross_entropy(self.logits(batch.item_ids).float(), target_ids, reduction="sum")
        return Loss(total, target_ids.numel(), {"first_bias": float(self.out.bias[0].detach())})


class RingSource:
    """Histories of unequal length walking round a ring of items; each batch is cut among ranks by history."""

    digest = "ring"

    def __init__(
        self, num_batches: int = 7, batch_size: int = 5, pause: float = 0.0, hang_at: Sequence[int] = ()
    ) -> None:
        self._num_batches, self._batch_size, self._pause = num_batches, batch_size, pause
        self._hang_at = tuple(hang_at)  # (epoch, batch) that never comes, for a test that kills the process there

    def num_batches(self, epoch: int) -> int:
        return self._num_batches

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        for number in range(start, self._num_batches):
            time.sleep(600 if (epoch, number) == self._hang_at else self._pause)
            generator = torch.Generator().manual_seed(1000 * epoch + number)
            lengths = torch.randint(1, 6, (self._batch_size,), generator=generator)
            firsts = torch.randint(NUM_ITEMS, (self._batch_size,), generator=generator)
            walks = [(first + torch.arange(n + 1)) % NUM_ITEMS for first, n in zip(firsts, lengths, strict=True)]
            mine = walks[rank::world_size]
            empty = [torch.zeros(0, dtype=torch.int64)]
            offsets = torch.tensor([0, *(len(walk) - 1 for walk in mine)]).cumsum(0)
            inputs, targets = (torch.cat([walk[cut] for walk in mine] + empty) for cut in (slice(-1), slice(1, None)))
            wanted = Wanted("event", targets.numpy(), offsets.numpy())
            yield READING.batch(
                inputs.numpy(), offsets.numpy(), wanted=wanted, global_count=int(lengths.sum()), whole=True
            )


def accuracy(model: nn.Module) -> dict[str, float]:
    assert isinstance(model, Toy)
    item_ids = torch.arange(NUM_ITEMS)
    logits = model.logits(item_ids)
    targets = (item_ids + 1) % NUM_ITEMS
    return {
        "accuracy": (logits.argmax(1) == targets).double().mean().item(),
        "loss": F.cross_entropy(logits, targets).item(),
    }
