"""Data parallelism under ``torchrun``: every rank holds the model, takes its cut of each batch, and averages gradients.

    torchrun --nproc-per-node 2 -m sidera train recipe.toml ...

Started by hand (no ``WORLD_SIZE`` in the environment) all of this is a process alone: rank 0 of 1, nothing to average.

The trap: DistributedDataParallel averages over ranks, whose cuts differ in targets. Each rank therefore returns
``total * world_size / global_count``, whose average is the sum over all targets by their number, however the batch was
cut.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sidera.core import InputError
from sidera.fit.protocols import Objective, TrainingBatch

# One rank evaluates while the others wait at a collective, so the limit is that of a long evaluation.
TIMEOUT = timedelta(hours=2)


def setup(device: str = "cpu") -> str:
    """Join the group that ``torchrun`` describes in the environment; returns this rank's device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r} is not available here", allowed="cpu", fix="install a CUDA build of torch")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    return device


def cleanup() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        # DistributedDataParallel sits in reference cycles that keep the group's threads alive; found by the
        # interpreter's shutdown rather than here, they end the process with SIGABRT now and then
        gc.collect()
        dist.destroy_process_group()


@contextlib.contextmanager
def group(device: str = "cpu") -> Iterator[str]:
    """Inside, the processes of a ``torchrun`` train together; yields this rank's device. One process is a group too."""
    try:
        yield setup(device)
    finally:
        cleanup()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    gather([0.0])


def gather(values: Sequence[float]) -> list[list[float]]:
    """Every rank's ``values``, by rank."""
    if world_size() == 1:
        return [list(values)]
    mine = torch.tensor(list(values), dtype=torch.float64, device=_collective_device())
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    return [row.tolist() for row in everyone]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's ``value``, by rank."""
    everyone = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, value)
    return everyone


def share(value: Any) -> Any:
    """Rank 0's ``value``, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_collective_device())
    return box[0]


def share_weights(model: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            contiguous = tensor.to(_collective_device()).contiguous()
            dist.broadcast(contiguous, src=0)
            tensor.copy_(contiguous)


def _collective_device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


class _LossOf(nn.Module):
    """The objective as a forward, because DistributedDataParallel hooks only that."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: TrainingBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        if batch.num_histories == 0:  # fewer histories than ranks
            return self._nothing(), {}
        loss = self.objective(self.model, batch, step)
        alone = world_size() == 1 or loss.total.requires_grad
        return loss.total if alone else loss.total + self._nothing(), loss.parts

    def _nothing(self) -> Tensor:
        """A rank that learns nothing takes part in the averaging with zeros."""
        return torch.stack([p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad]).sum()


class ParallelLoss:
    """Calls the objective so that the backward pass of the step's last batch averages gradients over ranks."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self._loss: nn.Module = _LossOf(model, objective)
        if world_size() > 1:
            # buffers (tries, code tables) are constants and large: sent once, not at every step. The option's name
            # has changed between the torch versions that are allowed.
            known = inspect.signature(DistributedDataParallel).parameters
            sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            # a model may leave parameters out of some losses; torch remarks once, in vain, when this one does not
            options: dict[str, Any] = {sync: False, "find_unused_parameters": True}
            self._loss = DistributedDataParallel(self._loss, **options)

    def close(self) -> None:
        """Let go of the group, or the traceback of an exception would keep it beyond :func:`cleanup`."""
        self._loss = nn.Identity()

    def __call__(self, batch: TrainingBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        found: tuple[Tensor, Mapping[str, float]] = self._loss(batch, step)
        return found

    def keep_local(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around forward *and* backward of a batch: gradients stay on the rank unless it is the step's last."""
        if isinstance(self._loss, DistributedDataParallel) and not is_last:
            return self._loss.no_sync()
        return nullcontext()
