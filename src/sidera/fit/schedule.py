"""Learning rates and the optimizer.

The learning rate is a function of the step's number and of where the cool-down began (:mod:`sidera.fit.cooldown`), so
that a resumed training needs no scheduler state. Under a time budget it is a function of max(share of steps, share of
time): the low-rate tail, where much of the quality comes from, is reached even when the machine is slower than the
recipe's author thought.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from sidera.core import InputError
from sidera.fit.config import FitConfig
from sidera.fit.cooldown import CoolDown
from sidera.fit.protocols import BatchSource


def learning_rate(
    config: FitConfig, step: int, total_steps: int, time_share: float = 0.0, cool_down: CoolDown | None = None
) -> float:
    """The rate of optimizer step ``step`` (0-based) of ``total_steps``; ``time_share``: share of max_minutes gone, in a
    cool-down of what was left of them."""
    if cool_down is not None:
        return cool_down.rate(config, step, time_share)
    warmup = min(config.warmup_steps, total_steps // 4)
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    progress = min(1.0, max(0.0, progress, time_share))
    if config.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        shape = 1 - progress
    elif config.schedule == "inverse_sqrt":  # has no end, so neither kind of share enters
        shape = math.sqrt(max(1, warmup) / max(1, step + 1, warmup))
        return config.lr * min(_rise(step, warmup), max(shape, config.min_lr_ratio))
    else:  # "constant", and "wsd" before its cool-down
        shape = 1.0
    # min, not a product: under a short time budget the rate may have to fall before the warm-up is over
    return config.lr * min(_rise(step, warmup), config.min_lr_ratio + (1 - config.min_lr_ratio) * shape)


def count_steps(config: FitConfig, source: BatchSource) -> int:
    """All optimizer steps of the training: ``epochs`` of them, more where that makes fewer than ``min_steps``."""
    steps, epoch = 0, 0
    while epoch < config.epochs or steps < config.min_steps:
        in_epoch = math.ceil(source.num_batches(epoch) / config.accumulate)
        steps, epoch = steps + in_epoch, epoch + 1
        if config.max_steps is not None and steps >= config.max_steps:
            return config.max_steps
        if in_epoch == 0:
            break
    if steps == 0:
        raise InputError("there is nothing to train on: the data gives no batch", fix="use a larger log")
    return steps


def _rise(step: int, warmup: int) -> float:
    return (step + 1) / warmup if step < warmup else 1.0


def make_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; the fused update where the device has one."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():  # shared parameters come once
        if not parameter.requires_grad:
            continue
        is_decayed = parameter.ndim >= 2 and (config.decay_embeddings or id(parameter) not in tables)
        (decayed if is_decayed else plain).append(parameter)
    if not decayed and not plain:
        raise InputError("the model has no trainable parameters", fix="leave out training for it")
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if parameters
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in decayed + plain)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=fused)
