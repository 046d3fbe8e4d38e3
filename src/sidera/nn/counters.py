"""Counts of a model as it stands: parameters by kind, and floating-point operations of its matrix products.

Conventions, so that numbers can be set beside published ones: a multiply-add is 2 FLOPs; only matrix products count
(norms, activations, softmax and look-ups do not); the backward pass costs twice the forward pass; rows that only pad a
batch do not count, so that an MFU built on these numbers is of useful work. ``torch.utils.flop_counter`` agrees on
batches without padding, for every model (``tests/contracts/test_flops.py``). Counts from sizes alone, for architectures
that nobody has built, are in ``models/counters.py``.

Every model with a loss has a method ``flops_per_batch(batch)``, which its MFU comes from; most need no more than

    def flops_per_batch(self, batch: Batch) -> float:
        forward = matmul_flops(self.events, batch.events.num_values) + attention_flops(...)
        return TRAINING * forward

Shape legend: tokens = vectors that enter a module, over the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sidera.nn.moe import MoE

TRAINING = 3.0  # forward and backward pass / forward pass
FIRST = 2.0  # the same of a product whose input gets no gradient: half of its backward pass is left out


@dataclass(frozen=True)
class ParameterCount:
    """Trainable numbers of a model; a tensor that two modules share counts once."""

    total: int
    embedding: int  # tables of nn.Embedding
    active: int  # of the rest, those that one token passes: all but the experts that sleep

    @property
    def dense(self) -> int:
        """All but embeddings: the N of scaling laws."""
        return self.total - self.embedding


def count_parameters(model: nn.Module) -> ParameterCount:
    """Total, embedding and active parameters of ``model``."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    embedding = sum(tables.values())
    asleep = sum(
        (module.num_experts - module.num_active) * (module.gate_up[0].numel() + module.down[0].numel())
        for module in model.modules()
        if isinstance(module, MoE)
    )
    return ParameterCount(total, embedding, total - embedding - asleep)


def matmul_flops(module: nn.Module, tokens: int | float) -> float:
    """FLOPs of a forward pass of ``tokens`` vectors through every linear layer (and chosen expert) of ``module``."""
    return 2.0 * tokens * active_weights(module)


def active_weights(module: nn.Module) -> int:
    """Numbers in the matrices that one token is multiplied with."""
    if isinstance(module, MoE):
        expert = module.gate_up[0].numel() + module.down[0].numel()
        shared = active_weights(module.shared) if module.shared is not None else 0
        return module.num_active * expert + module.router.weight.numel() + shared
    if isinstance(module, nn.Linear):
        return module.weight.numel()
    return sum(active_weights(child) for child in module.children())


def attention_flops(pairs: int | float, width: int) -> float:
    """Forward FLOPs of scores and weighted sums over ``pairs`` (query, key) pairs; ``width`` = heads x head width."""
    return 4.0 * pairs * width


def causal_pairs(lengths: Tensor) -> float:
    """(query, key) pairs of causal self-attention inside each of these lengths: n (n + 1) / 2."""
    lengths = lengths.double()
    return float((lengths * (lengths + 1) / 2).sum())
