"""What OneRec's architectures share: a batch row is a request, a CodeDecoder writes its targets, the loss is theirs.

A model below says what a request's context is (``context``) and which keys and values each decoder layer reads of it
(``keys_values``); loss, teacher forcing and beam steps are the same for all of them and stand here.

A request's targets are jagged: each is one stream of the decoder, and all of them read the request's one context.

Shape legend: T events of the batch · B requests · G targets or beams of each · M targets of all · L levels · S context
tokens · K codes of a level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sidera.catalog.catalog import Catalog
from sidera.core import Batch, InputError, Loss, StepOutput
from sidera.data.batches import RequestRows
from sidera.nn.code_decoder import CodeDecoder, DecoderCache, DecoderSize, KeysValues, Streams
from sidera.nn.counters import attention_flops, matmul_flops
from sidera.nn.moe import balance_experts


@dataclass(frozen=True)
class RequestContext:
    """Keys and values of the requests' contexts: a pair for each decoder layer, or one for several of them."""

    pairs: list[KeysValues]  # (B, R, S, E) each
    mask: Tensor  # (B, S) True = a token
    num_histories: int

    @property
    def nbytes(self) -> int:
        tensors = {id(part): part for pair in self.pairs for part in pair}  # shared keys and values count once
        return sum(part.numel() * part.element_size() for part in tensors.values())


class RequestGenerator(nn.Module, ABC):
    """Loss and steps of a generator that reads feedback and is trained on requests."""

    role = "generator"
    feed = RequestRows
    reads_feedback = True
    item_codes: Tensor  # (N, L)

    def __init__(self, size: DecoderSize, catalog: Catalog) -> None:
        super().__init__()
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(codes) for codes in catalog.level_sizes)
        codes = torch.from_numpy(np.asarray(catalog.codes, dtype=np.int64))
        self.register_buffer("item_codes", codes, persistent=False)
        self.decoder = CodeDecoder(size, self.level_sizes)

    @abstractmethod
    def context(self, batch: Batch) -> RequestContext:
        """What the batch's requests cost once."""

    @abstractmethod
    def keys_values(self, context: RequestContext) -> list[KeysValues]:
        """What each decoder layer reads of a context: (B, R, S, E) keys and values."""

    def loss(self, batch: Batch) -> Loss:
        """Sum over targets of -log p(item); ``gen_loss`` is OneRec-V2's mean over codes."""
        if self.training:
            balance_experts(self)
        log_p = self.target_log_probs(batch)
        per_level, count = -log_p.sum(0), len(log_p)
        means = (per_level.detach() / count).tolist()
        parts = {f"level_{level}": mean for level, mean in enumerate(means)}
        return Loss(per_level.sum(), count, parts | {"gen_loss": sum(means) / len(means)})

    def target_log_probs(self, batch: Batch) -> Tensor:
        """(M, L) log-probability of every code of the batch's targets."""
        if batch.target_ids is None:
            raise InputError("the batch has no targets", fix="use RequestRows batches")
        sids = self.item_codes[batch.target_ids]  # (M, L)
        streams = Streams(len(sids), 1) if batch.target_offsets is None else Streams.of(batch.target_offsets)
        context = self.context(batch)
        return self.decoder.log_probs(sids, self.keys_values(context), context.mask, streams)

    def decoder_flops(self, batch: Batch, context_tokens: Tensor) -> float:
        """Forward FLOPs of writing the batch's targets, each reading its request's ``context_tokens`` (B,)."""
        assert batch.target_ids is not None
        size, levels, targets = self.decoder.size, len(self.level_sizes), batch.target_ids.numel()
        bounds = batch.target_offsets
        per_request = torch.ones_like(context_tokens) if bounds is None else bounds.diff()
        pairs = levels * float((per_request * context_tokens).sum()) + targets * levels**2
        written = matmul_flops(self.decoder.layers, targets * levels) + matmul_flops(self.decoder.heads, targets)
        return written + size.num_layers * attention_flops(pairs, size.width)

    def log_probs(self, context: RequestContext, sids: Tensor) -> Tensor:
        """(B, G, L) codes -> (B, G, L) log-probabilities, with gradient."""
        histories, each, levels = sids.shape
        streams = Streams(histories, each)
        found = self.decoder.log_probs(sids.reshape(-1, levels), self.keys_values(context), context.mask, streams)
        return found.view(sids.shape)

    def code_logits(self, context: RequestContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K), with gradient."""
        histories, each, levels = sids.shape
        inputs, streams = self.decoder.embed(sids.reshape(-1, levels)), Streams(histories, each)
        states = self.decoder(inputs, self.keys_values(context), context.mask, streams)
        return [logits.unflatten(0, (histories, each)) for logits in self.decoder.all_logits(states)]

    def new_cache(self, context: RequestContext, width: int) -> DecoderCache:
        return DecoderCache(width=1)

    def step(
        self, context: RequestContext, cache: DecoderCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """(B, W, K) logits of the next code."""
        return StepOutput(self.decoder.step(cache, self.keys_values(context), context.mask, level, codes, parents))


def event_places(batch: Batch) -> tuple[Tensor, Tensor]:
    """(T,) the history of each event and (T,) its place there, 0 = newest."""
    lengths, total = batch.lengths, batch.item_ids.numel()
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths, output_size=total)
    return rows, batch.offsets[1:][rows] - 1 - torch.arange(total, device=rows.device)


def positive_mask(batch: Batch, positive: str) -> Tensor:
    """(T,) events with the label ``positive``; all where there is no such label."""
    if positive not in batch.feedback:
        return torch.ones_like(batch.item_ids, dtype=torch.bool)
    return batch.feedback[positive] > 0
