"""TIGER: generative retrieval with a T5 over semantic IDs (Rajput et al. 2023, arXiv 2305.05065).

The last ``max_history`` items are written as their codes, L tokens an item; a bidirectional encoder reads them and a
causal decoder writes the L codes of the next item after a begin token. Vocabulary: pad, begin, one block of tokens per
level, then (optionally) hashed users. Output and input embeddings are tied, scores scaled by width^-0.5 as in T5.

Training takes one target per history (``PrefixRows``) and runs packed: see :mod:`sidera.nn.t5`. Answering runs in
:mod:`sidera.models.generators.tiger_decode`. Where this differs from the paper, and
why: docs/understand/models/tiger.md.

Shape legend: T tokens or events · B histories · G candidates · L levels · K codes of a level · V vocabulary · D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.catalog.code_vectors import start_from_centroids
from sidera.config import check_counts, check_value, later
from sidera.core import InputError
from sidera.data.batches import PrefixRows
from sidera.models.generators import tiger_decode
from sidera.models.generators.tiger_decode import CodeTokens, FastWeights, TigerCache, TigerContext
from sidera.nn.counters import TRAINING, attention_flops, matmul_flops
from sidera.nn.made_of_weights import MadeOfWeights
from sidera.nn.t5 import Decoder, Encoder, PackedRows, T5Size, own_casts, packed_rows
from sidera.ops.waiting import may_ask
from sidera.roles import Loss, StepOutput

PAD, BEGIN, FIRST_CODE = 0, 1, 2


class Tiger(nn.Module):
    """Writes the codes of the next item with an encoder-decoder."""

    @dataclass(frozen=True)
    class Config:
        max_history: int = 20  # newest items read of a history
        width: int = 128  # dims of a token
        num_layers: int = 4  # of the encoder, and of the decoder
        num_heads: int = 6  # heads of attention
        head_width: int = 64  # dims of a head of attention
        ff_width: int = 1024  # dims inside a feed-forward
        dropout: float = 0.1  # share of units dropped
        normalize: Literal["level", "vocabulary"] = "level"  # softmax over a level's codes, or over all tokens as T5
        num_user_tokens: int = 0  # tokens that user ids are hashed to (paper: 2000); 0: the model reads no user id
        code_start: Literal["random", "centroids"] = later("random")  # vectors of codes: drawn, or the quantizer's

        def __post_init__(self) -> None:
            check_counts("[model]", self, "max_history", "width", "num_layers", "num_heads", "head_width", "ff_width")
            check_value("[model]", "dropout", self.dropout, 0 <= self.dropout < 1, "0 <= x < 1")
            check_counts("[model]", self, "num_user_tokens", low=0)

        @property
        def reads(self) -> Reads:
            return Reads(self.max_history)

    role = "generator"
    feed = PrefixRows

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.reads = config, config.reads
        self.codebook_id = catalog.codebook_id
        self.level_sizes = tuple(int(size) for size in catalog.level_sizes)
        starts = FIRST_CODE + np.concatenate([[0], np.cumsum(self.level_sizes)])
        self.level_starts = tuple(int(start) for start in starts[:-1])  # first token of each level
        self.user_start = int(starts[-1])
        size = T5Size(
            config.width, config.num_layers, config.num_heads, config.head_width, config.ff_width, config.dropout
        )
        self.embedding = nn.Embedding(self.user_start + config.num_user_tokens, config.width)
        nn.init.normal_(self.embedding.weight)
        if config.code_start == "centroids":
            for level, (start, codes) in enumerate(zip(self.level_starts, self.level_sizes, strict=True)):
                start_from_centroids(self.embedding.weight[start : start + codes], catalog, level, std=1.0)
        self.encoder, self.decoder = Encoder(size), Decoder(size)
        self.register_buffer("starts", torch.tensor(self.level_starts), persistent=False)  # (L,)
        self.starts: Tensor
        self._fast_dtype = torch.float32
        self._fast_weights = MadeOfWeights[FastWeights]()
        self._parts = tuple(part for part in self.modules() if part._parameters)

    @property
    def num_levels(self) -> int:
        return len(self.level_sizes)

    # -- reading -------------------------------------------------------------------------------------------------

    def item_tokens(self, codes: Tensor) -> Tensor:
        """(..., L) codes -> (..., L) tokens."""
        return codes + self.starts

    def packed_rows(self, batch: Batch) -> PackedRows:
        """The newest items of every history as tokens, rows sorted by length (longest first)."""
        lengths, offsets = batch.lengths, batch.events.offsets  # (B,) items
        if lengths.numel() == 0 or (may_ask(lengths) and int(lengths.min()) == 0):
            raise InputError(
                "TIGER was given an empty history", allowed="at least one known item", fix="answer it by popularity"
            )
        return packed_rows(self.event_tokens(batch), offsets * self.num_levels, self.user_tokens(batch))

    def event_tokens(self, batch: Batch) -> Tensor:
        """(T,) tokens of the events' items."""
        return self.item_tokens(batch.items.codes)[batch.events.items].flatten()

    def inputs(self, rows: PackedRows, batch: Batch, table: Tensor) -> Tensor:
        """(T, D): what the encoder reads of every token. ``table`` (V, D): vectors of the vocabulary."""
        return F.embedding(rows.tokens, table)

    def user_tokens(self, batch: Batch) -> Tensor | None:
        """(B,) a user's token, which stands in front of the row."""
        if not self.config.num_user_tokens:
            return None
        user_ids = batch.requests.user_ids
        if user_ids is None:
            raise InputError("this TIGER reads user ids and the batch has none", fix="train with num_user_tokens = 0")
        return self.user_start + user_ids % self.config.num_user_tokens

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """Sum over histories of -log p(next item); ``parts`` has the mean of each level."""
        batch.targets_of("history")
        with own_casts(self.embedding.weight) as dtype:
            rows = self.packed_rows(batch)
            memory = self.encoder(self.inputs(rows, batch, self.embedding.weight), rows.layout, dtype)
            return self.written_loss(batch, rows, memory, dtype)

    def written_loss(self, batch: Batch, rows: PackedRows, memory: Tensor, dtype: torch.dtype) -> Loss:
        """The loss of the decoder that reads ``memory`` (T, D), autocast off."""
        targets = batch.targets_of("history").items
        written = self.item_tokens(batch.items.codes[targets[rows.order]])  # (B, L)
        read = F.pad(written[:, :-1], (1, 0), value=BEGIN)  # (B, L)
        states = self.decoder(self.embedding(read.reshape(-1)), memory, self.num_levels, rows.layout, dtype=dtype)
        per_level = self._level_losses(states.view(-1, self.num_levels, self.config.width).to(dtype), written)
        means = (per_level.detach() / targets.numel()).tolist()
        parts = {f"level_{level}": mean for level, mean in enumerate(means)}
        return Loss(per_level.sum(), targets.numel(), parts)

    def _level_losses(self, states: Tensor, tokens: Tensor) -> Tensor:
        """(L,) sums of cross-entropies. states (B, L, D), tokens (B, L)."""
        losses = []
        for level in range(self.num_levels):
            start, logits = self._logits(states[:, level], level)
            losses.append(F.cross_entropy(logits.float(), tokens[:, level] - start, reduction="sum"))
        return torch.stack(losses)

    def _logits(self, states: Tensor, level: int) -> tuple[int, Tensor]:
        """First token and logits of the softmax of a level: (..., K) or, normalised over the vocabulary, (..., V)."""
        start, weight = 0, self.embedding.weight
        if self.config.normalize == "level":
            start = self.level_starts[level]
            weight = weight[start : start + self.level_sizes[level]]
        return start, F.linear(states * self.config.width**-0.5, weight.to(states.dtype))

    def flops_per_batch(self, batch: Batch) -> float:
        """FLOPs of one training step on this batch, forward and backward."""
        levels, targets = self.num_levels, batch.num_histories
        lengths = batch.lengths * levels + (self.config.num_user_tokens > 0)
        tokens, inner = int(lengths.sum()), self.config.num_heads * self.config.head_width
        forward = matmul_flops(self.encoder, tokens) + matmul_flops(self.decoder, targets * levels)
        pairs = float((lengths**2).sum()) + targets * levels**2 + levels * tokens  # encoder, decoder, cross
        forward += self.config.num_layers * attention_flops(pairs, inner)
        for layer in self.decoder.layers:  # keys and values of the encoder's tokens, which are not the decoder's own
            forward += matmul_flops(layer.cross.key_value, tokens - targets * levels)  # type: ignore[union-attr, arg-type]
        vocabulary = sum(self.level_sizes)
        scored = vocabulary if self.config.normalize == "level" else levels * self.embedding.num_embeddings
        return TRAINING * (forward + 2.0 * targets * scored * self.config.width)

    # -- answering -----------------------------------------------------------------------------------------------

    def context(self, batch: Batch) -> TigerContext:
        """Encode every history once; the encoder reads both ways."""
        return self.encoded(self.packed_rows(batch), batch)

    def encoded(self, rows: PackedRows, batch: Batch) -> TigerContext:
        """The context of the batch whose packed rows these are."""
        if self.training or torch.is_grad_enabled():
            with own_casts(self.embedding.weight) as dtype:
                states = self.encoder(self.inputs(rows, batch, self.embedding.weight), rows.layout, dtype)
            return TigerContext(states, rows.layout, rows.order)
        weights = self._current_weights()
        states = tiger_decode.encode(weights, self.inputs(rows, batch, weights.embedding), rows.layout)
        return TigerContext(states, rows.layout, rows.order, weights)

    def prepare(self, dtype: torch.dtype = torch.float32) -> Tiger:
        """Choose the number format of answering: bfloat16 is faster and moves scores in the third digit."""
        self._fast_dtype = dtype
        self._fast_weights.drop()
        return self

    def new_cache(self, context: TigerContext, width: int) -> TigerCache:
        return tiger_decode.new_cache(context.weights or self._current_weights(), context, width)

    def _current_weights(self) -> FastWeights:
        """The weights laid out for answering."""
        every = (part._parameters.values() for part in self._parts)  # self.parameters() would take longer than a layer
        weights = (weight for some in every for weight in some if weight is not None)
        return self._fast_weights.get(weights, self._laid_out)

    def _laid_out(self) -> FastWeights:
        max_tokens = self.config.max_history * self.num_levels + 1  # + 1: a user's token
        tokens = CodeTokens(self.level_starts, self.level_sizes, self.config.normalize == "vocabulary")
        weight = self.embedding.weight
        return tiger_decode.layout_weights(self.encoder, self.decoder, weight, tokens, max_tokens, self._fast_dtype)

    def step(
        self, context: TigerContext, cache: TigerCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        return tiger_decode.step(cache, level, codes, parents)

    def code_logits(self, context: TigerContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K), with gradient; only a level's own codes, however it is normalised."""
        num_histories, num_candidates, num_levels = sids.shape
        read = F.pad(self.item_tokens(sids)[:, :, :-1], (1, 0), value=BEGIN).reshape(num_histories, -1)
        memory, layout, order = context.states, context.layout, context.order
        with own_casts(self.embedding.weight) as dtype:
            read = self.embedding(read[order].view(-1))
            states = self.decoder(read, memory, num_levels, layout, num_candidates, dtype).to(dtype)
            states = states.view(num_histories, num_candidates, num_levels, -1)
            states = torch.empty_like(states).index_copy(0, order, states)
            logits = [self._logits(states[:, :, level], level) for level in range(num_levels)]
        firsts = [self.level_starts[level] - start for level, (start, _) in enumerate(logits)]
        sizes = zip(logits, firsts, self.level_sizes, strict=True)
        return [scores[..., first : first + size].float() for (_, scores), first, size in sizes]

    def train(self, mode: bool = True) -> Tiger:
        """Switching modes drops the weights laid out for answering."""
        self._fast_weights.drop()
        return super().train(mode)
