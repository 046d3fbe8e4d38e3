"""TIGER: generative retrieval with a T5 over semantic IDs (Rajput et al. 2023, arXiv 2305.05065).

The last ``max_history`` items are written as their codes, L tokens an item; a bidirectional encoder reads them and a
causal decoder writes the L codes of the next item after a begin token. Vocabulary: pad, begin, one block of tokens per
level, then (optionally) hashed users. Output and input embeddings are tied, scores scaled by width^-0.5 as in T5.

Training takes one target per history (``PrefixRows``) and runs packed: see :mod:`sidera.nn.t5`. Answering runs in
:mod:`sidera.models.generators.tiger_decode`. docs/models/tiger.md says where this differs from the paper, and why.

Shape legend: T tokens or events · B histories · G candidates · L levels · K codes of a level · V vocabulary · D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.batch import Batch, Reads
from sidera.catalog.catalog import Catalog
from sidera.config import check_counts, check_value
from sidera.core import InputError
from sidera.data.batches import PrefixRows
from sidera.models.generators import tiger_decode
from sidera.models.generators.tiger_decode import BeamCache, FastWeights, TigerContext
from sidera.nn.counters import TRAINING, attention_flops, matmul_flops
from sidera.nn.t5 import Decoder, Encoder, T5Size
from sidera.nn.t5_functions import Group, equal_length_groups
from sidera.roles import Loss, StepOutput

PAD, BEGIN, FIRST_CODE = 0, 1, 2


@dataclass(frozen=True)
class PackedRows:
    """Histories as tokens, longest first, one after another."""

    tokens: Tensor  # (T,)
    groups: tuple[Group, ...]  # rows of equal length
    order: Tensor  # (B,) history of each packed row


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
        self.encoder, self.decoder = Encoder(size), Decoder(size)
        self.register_buffer("starts", torch.tensor(self.level_starts), persistent=False)  # (L,)
        self.starts: Tensor
        self._fast_dtype = torch.float32
        self._fast_weights: FastWeights | None = None
        self._parts: tuple[nn.Module, ...] | None = None
        self._fast_versions: tuple[tuple[int, int], ...] = ()

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
        if lengths.numel() == 0 or int(lengths.min()) == 0:
            raise InputError(
                "TIGER was given an empty history", allowed="at least one known item", fix="answer it by popularity"
            )
        order = torch.argsort(lengths, descending=True, stable=True)
        lengths = lengths[order]
        ends = lengths.cumsum(0)
        first = offsets[1:][order] - lengths  # (B,) oldest event that is read
        events = torch.arange(int(ends[-1]), device=ends.device)
        events += torch.repeat_interleave(first - ends + lengths, lengths, output_size=events.numel())
        tokens = self.item_tokens(batch.items.codes)[batch.events.items[events]]  # (items, L)
        prefix = 0
        if self.config.num_user_tokens:
            tokens, prefix = self._with_users(tokens, batch, order, ends - lengths), 1
        row_lengths = [length * self.num_levels + prefix for length in lengths.tolist()]
        return PackedRows(tokens.reshape(-1), equal_length_groups(row_lengths), order)

    def _with_users(self, tokens: Tensor, batch: Batch, order: Tensor, starts: Tensor) -> Tensor:
        """A user's token in front of each row. starts (B,): the row's first item."""
        user_ids = batch.requests.user_ids
        if user_ids is None:
            raise InputError("this TIGER reads user ids and the batch has none", fix="train with num_user_tokens = 0")
        users = self.user_start + user_ids[order] % self.config.num_user_tokens
        places = starts * self.num_levels + torch.arange(starts.numel(), device=starts.device)
        out = tokens.new_empty(tokens.numel() + users.numel())
        code_mask = torch.ones_like(out, dtype=torch.bool)
        code_mask[places] = False
        out[places], out[code_mask] = users, tokens.reshape(-1)
        return out

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        """Sum over histories of -log p(next item); ``parts`` has the mean of each level."""
        targets = batch.targets_of("history").items
        with own_casts(self.embedding.weight) as dtype:
            rows = self.packed_rows(batch)
            memory = self.encoder(self.embedding(rows.tokens), rows.groups, dtype)
            written = self.item_tokens(batch.items.codes[targets[rows.order]])  # (B, L)
            read = F.pad(written[:, :-1], (1, 0), value=BEGIN)  # (B, L)
            states = self.decoder(self.embedding(read.reshape(-1)), memory, self.num_levels, rows.groups, dtype=dtype)
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
        """Encode every history once; the encoder reads both ways, so a context cannot be extended."""
        rows = self.packed_rows(batch)
        if self.training or torch.is_grad_enabled():
            with own_casts(self.embedding.weight) as dtype:
                states = self.encoder(self.embedding(rows.tokens), rows.groups, dtype)
            return TigerContext(states, rows.groups, rows.order)
        weights = self._current_weights()
        return TigerContext(tiger_decode.encode(weights, rows.tokens, rows.groups), rows.groups, rows.order, weights)

    def prepare(self, dtype: torch.dtype = torch.float32) -> Tiger:
        """Choose the number format of answering: bfloat16 is faster and moves scores in the third digit."""
        self._fast_dtype, self._fast_weights = dtype, None
        return self

    def new_cache(self, context: TigerContext, width: int) -> BeamCache:
        return tiger_decode.new_cache(context.weights or self._current_weights(), context, width)

    def _current_weights(self) -> FastWeights:
        """The weights laid out for answering, made anew when a parameter was replaced or written to."""
        if self._parts is None:
            self._parts = tuple(part for part in self.modules() if part._parameters)
        versions = tuple(  # self.parameters() would take longer than a layer
            (weight.data_ptr(), weight._version)
            for part in self._parts
            for weight in part._parameters.values()
            if weight is not None
        )
        if self._fast_weights is None or versions != self._fast_versions:
            self._fast_weights = tiger_decode.layout_weights(self, self._fast_dtype)
            self._fast_versions = versions
        return self._fast_weights

    def step(
        self, context: TigerContext, cache: BeamCache, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> StepOutput:
        return tiger_decode.step(cache, level, codes, parents)

    def log_probs(self, context: TigerContext, sids: Tensor) -> Tensor:
        """Teacher-forced log-probabilities with gradient: (B, G, L) codes -> (B, G, L)."""
        out = []
        for level, (start, logits) in enumerate(self._forced_logits(context, sids)):
            token = sids[:, :, level, None] + (self.level_starts[level] - start)
            out.append(logits.log_softmax(-1).gather(-1, token).squeeze(-1))
        return torch.stack(out, dim=-1)

    def code_logits(self, context: TigerContext, sids: Tensor) -> list[Tensor]:
        """(B, G, L) codes -> per level (B, G, K), with gradient; only a level's own codes, however it is normalised."""
        found = []
        for level, (start, logits) in enumerate(self._forced_logits(context, sids)):
            first = self.level_starts[level] - start
            found.append(logits[..., first : first + self.level_sizes[level]])
        return found

    def _forced_logits(self, context: TigerContext, sids: Tensor) -> list[tuple[int, Tensor]]:
        """Per level the first token that is scored and the scores (B, G, V) float32 after the codes before it."""
        num_histories, num_candidates, num_levels = sids.shape
        tokens = sids + torch.tensor(self.level_starts, device=sids.device)  # (B, G, L)
        read = F.pad(tokens[:, :, :-1], (1, 0), value=BEGIN).reshape(-1)
        memory, groups, order = context.states, context.groups, context.order
        read = read.view(num_histories, -1)[order].view(-1)
        with own_casts(self.embedding.weight) as dtype:
            states = self.decoder(self.embedding(read), memory, num_levels, groups, num_candidates, dtype).to(dtype)
            states = states.view(num_histories, num_candidates, num_levels, -1)
            states = torch.empty_like(states).index_copy(0, order, states)
            found = [self._logits(states[:, :, level], level) for level in range(num_levels)]
        return [(start, logits.float()) for start, logits in found]

    def __getstate__(self) -> dict[str, Any]:
        """Copies start without the weights laid out for answering, which cannot be copied."""
        return {**self.__dict__, "_fast_weights": None, "_parts": None}

    def train(self, mode: bool = True) -> Tiger:
        """Switching modes drops the weights laid out for answering."""
        self._fast_weights = None
        return super().train(mode)


@contextmanager
def own_casts(weight: Tensor) -> Iterator[torch.dtype]:
    """Autocast off, because the layers cast by themselves; gives the number format that it asked products to have."""
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        yield dtype
