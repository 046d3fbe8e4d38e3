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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.data.batches import RequestRows
from sidera.nn.code_decoder import CodeDecoder, KeysValues
from sidera.nn.counters import attention_flops, causal_pairs, matmul_flops
from sidera.nn.event_features import padded
from sidera.nn.laid_out_decoder import DecoderCache
from sidera.nn.list_decoder import ListDecoder
from sidera.nn.moe import balance_experts
from sidera.ops.jagged import with_copies
from sidera.ops.shared_keys import Streams
from sidera.roles import Loss, StepOutput


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

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def tensors(self) -> tuple[Tensor, ...]:
        """Each once, however many layers share it."""
        return (*{id(part): part for pair in self.pairs for part in pair}.values(), self.mask)

    def padded_to(self, num_histories: int, length: int) -> RequestContext:
        """See :class:`sidera.decode.graph.Paddable`."""
        more, longer = num_histories - self.num_histories, length - self.length
        padded = {id(part): with_copies(F.pad(part, (0, 0, 0, longer)), more) for pair in self.pairs for part in pair}
        pairs = [(padded[id(keys)], padded[id(values)]) for keys, values in self.pairs]
        return RequestContext(pairs, with_copies(F.pad(self.mask, (0, longer)), more), num_histories)


class RequestGenerator(nn.Module, ABC):
    """Loss and steps of a generator that reads feedback and is trained on requests."""

    role = "generator"
    feed: Any = RequestRows

    decoder: CodeDecoder  # made by the model

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(codes) for codes in catalog.level_sizes)

    @abstractmethod
    def context(self, batch: Batch) -> RequestContext:
        """What the batch's requests cost once."""

    def keys_values(self, context: RequestContext) -> list[KeysValues]:
        """What each decoder layer reads of a context, (B, R, S, E) keys and values: by default its own pair."""
        return context.pairs

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
        targets = batch.targets_of("request", "exposure", "history")
        sids = batch.items.codes[targets.items]  # (M, L)
        streams = Streams.of(targets.offsets)
        context = self.context(batch)
        return self.decoder.log_probs(sids, self.keys_values(context), context.mask, streams)

    def decoder_flops(self, batch: Batch, context_tokens: Tensor) -> float:
        """Forward FLOPs of writing the batch's targets, each reading its request's ``context_tokens`` (B,)."""
        targets, size, levels = batch.targets_of(), self.decoder.size, len(self.level_sizes)
        number = targets.num_values
        pairs = levels * float((targets.lengths * context_tokens).sum()) + number * levels**2
        written = matmul_flops(self.decoder.layers, number * levels) + matmul_flops(self.decoder.heads, number)
        return written + size.num_layers * attention_flops(pairs, size.width)

    def code_logits(self, context: RequestContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K), with gradient."""
        return self.decoder.code_logits(sids, self.keys_values(context), context.mask)

    def new_cache(self, context: RequestContext, width: int) -> DecoderCache:
        return self.decoder.new_cache(context.num_histories, width)

    def step(
        self, context: RequestContext, cache: DecoderCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        """(B, W, K) logits of the next code."""
        return StepOutput(self.decoder.step(cache, self.keys_values(context), context.mask, level, codes, parents))


class ListRequestGenerator(RequestGenerator):
    """A request generator whose streams go on after an item: a target is an item of its request's one list."""

    decoder: ListDecoder
    session_length: int
    list_beam: int

    def target_log_probs(self, batch: Batch) -> Tensor:
        """(M, L) log-probability of every code of the batch's targets, given the items before it in its list."""
        targets = batch.targets_of("list", "request", "history")
        sids, mask = padded(batch.items.codes[targets.items], targets.offsets)  # (B, m, L), (B, m)
        return self.log_probs_lists(self.context(batch), sids[:, None])[:, 0][mask]

    def decoder_flops(self, batch: Batch, context_tokens: Tensor) -> float:
        """Forward FLOPs of writing the batch's lists; padding of short lists does not count."""
        targets, size, levels = batch.targets_of(), self.decoder.size, len(self.level_sizes)
        positions = (targets.lengths * (levels + 1) - 1).clamp(min=0)  # (B,): the last code of a list is not read
        pairs = float((positions * context_tokens).sum()) + causal_pairs(positions)
        written = matmul_flops(self.decoder.layers, int(positions.sum()))
        written += matmul_flops(self.decoder.heads, targets.num_values)
        return written + size.num_layers * attention_flops(pairs, size.width)

    def log_probs_lists(self, context: RequestContext, sids: Tensor) -> Tensor:
        """(B, G, m, L) codes of lists -> (B, G, m, L), with gradient."""
        return self.decoder.list_log_probs(sids, self.keys_values(context), context.mask)


def positive_mask(batch: Batch, positive: str) -> Tensor:
    """(T,) events with the label ``positive``; all where there is no such label."""
    if positive not in batch.events.feedback:
        return torch.ones_like(batch.events.items, dtype=torch.bool)
    return batch.events.feedback[positive] > 0
