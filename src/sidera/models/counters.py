"""What OneRec's three architectures cost, from their sizes alone: parameters, FLOPs, activations, keys and values.

    Architecture("lazy", width=1792, decoder_layers=18, ff_width=7168).flops(context=512)["target"]

* ``encoder_decoder``: full self-attention and feed-forward over the context; every decoder layer projects the encoder's
  states to keys and values of its own (technical report, 2506.13695).
* ``naive``: one causal stack over context and target.
* ``lazy``: the context is projected once to ``kv_sharing`` pairs of keys and values; all else runs on the target's
  codes (OneRec-V2, 2508.20900).

Conventions are the paper's: 2 FLOPs a multiply-add, backward = 2 x forward, and ``sharing`` targets of one request
share one context (its k = 5), so a context costs a target a k-th. A layer has 4 d^2 weights of self-attention, 3 d ff
of SwiGLU, and in decoders of an encoder 4 d^2 of cross-attention (2 d^2 in the lazy one, which owns no key and value
weights). docs/understand/scaling.md has these counts beside the published ones.

Counts of built models are in ``nn/counters.py``; a test holds the two and ``torch.utils.flop_counter`` together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidera.config import check_counts, check_value

TRAIN = 6  # FLOPs per weight and token, forward and backward
PAIR = 12  # FLOPs per (query, key) pair and unit of width, forward and backward


@dataclass(frozen=True)
class Architecture:
    """Sizes of one model; widths in numbers, lengths in tokens."""

    kind: Literal["encoder_decoder", "naive", "lazy"]
    width: int
    decoder_layers: int
    ff_width: int
    encoder_layers: int = 0  # encoder_decoder only
    head_width: int = 128
    kv_groups: int | None = None  # heads of keys and values for the context; None: one per query head
    kv_sharing: int = 1  # lazy: L_kv, pairs of keys and values for all layers
    separate_values: bool = False  # lazy: S_kv = 2
    context_width: int | None = None  # lazy: width of a context token before its projection; None: ``width``
    levels: int = 3  # codes of a target
    codebook_size: int = 8192
    num_experts: int = 0  # of decoder layers from ``moe_from`` on; 0: dense
    num_active: int = 3
    num_shared: int = 1
    expert_width: int = 0
    moe_from: int = 0

    def __post_init__(self) -> None:
        check_counts("Architecture", self, "width", "decoder_layers", "ff_width", "head_width", "levels", "kv_sharing")
        encodes = self.kind == "encoder_decoder"
        fits, allowed = encodes == (self.encoder_layers > 0), ">= 1 for encoder_decoder, else 0"
        check_value("Architecture", "encoder_layers", self.encoder_layers, fits, allowed)

    # -- weights, per layer or token -----------------------------------------------------------------------------

    def kv_width(self) -> int:
        """Width of the context's keys (or values) in one layer."""
        return self.width if self.kv_groups is None else self.kv_groups * self.head_width

    def context_weights(self) -> int:
        """Matrix numbers that every context token is multiplied with."""
        layer = 4 * self.width**2 + 3 * self.width * self.ff_width
        if self.kind == "naive":
            return self.decoder_layers * layer
        if self.kind == "encoder_decoder":
            return self.encoder_layers * layer + self.decoder_layers * 2 * self.width * self.kv_width()
        return (self.context_width or self.width) * self.kv_chunks() * self.kv_width()

    def kv_chunks(self) -> int:
        """Lazy: L_kv x S_kv pieces of a projected context token."""
        return self.kv_sharing * (2 if self.separate_values else 1)

    def target_weights(self, active: bool = True) -> int:
        """Matrix numbers of all decoder layers that a code's token is multiplied with; else all that exist."""
        cross = 0 if self.kind == "naive" else 2 * self.width**2
        sparse = max(0, self.decoder_layers - self.moe_from) if self.num_experts else 0
        experts = self.num_shared + (self.num_active if active else self.num_experts)
        moe = experts * 3 * self.width * self.expert_width + self.num_experts * self.width
        dense = (self.decoder_layers - sparse) * 3 * self.width * self.ff_width
        return self.decoder_layers * (4 * self.width**2 + cross) + dense + sparse * moe

    def head_weights(self) -> int:
        """Numbers of one level's output layer."""
        return self.width * self.codebook_size

    # -- counts --------------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, int]:
        """``total`` (without embeddings and norms), ``active`` per token, ``embedding`` (the decoder's code tables)."""
        shared = self.kind == "naive"  # context and target pass the same weights
        context = 0 if shared else self.context_weights()
        heads = self.levels * self.head_weights()
        return {
            "total": context + self.target_weights(active=False) + heads,
            "active": context + self.target_weights() + heads,
            "embedding": (self.levels - 1) * self.head_weights(),
        }

    def flops(self, context: int, sharing: float = 5.0) -> dict[str, float]:
        """Training FLOPs of one target by cause; their sum is the whole. Forward alone is a third.

        ``context``: weights over context tokens; ``target``: weights over the target's tokens; ``heads``;
        ``attention``: of the target's tokens to the context and to each other; ``context_attention``: inside the
        context.
        """
        layers, tokens = self.decoder_layers, self.levels
        inside = {"encoder_decoder": self.encoder_layers * context**2, "naive": layers * context**2 / 2, "lazy": 0}
        return {
            "context": TRAIN * self.context_weights() * context / sharing,
            "target": TRAIN * self.target_weights() * tokens,
            "heads": TRAIN * self.head_weights() * tokens,
            "attention": PAIR * self.width * layers * (tokens * context + tokens**2),
            "context_attention": PAIR * self.width * inside[self.kind] / sharing,
        }

    def flops_per_request(self, context: int, targets: float = 5.0) -> float:
        """Training FLOPs of a request with so many targets, its context computed once."""
        return targets * sum(self.flops(context, targets).values())

    def kv_numbers(self, context: int, batch: int, sharing: float = 5.0) -> float:
        """Numbers in the context's keys and values for a batch of targets."""
        if self.kind == "lazy":
            return batch / sharing * context * self.kv_chunks() * self.kv_width()
        return batch / sharing * context * 2 * self.decoder_layers * self.kv_width()

    def activations(self, context: int, batch: int, sharing: float = 5.0) -> float:
        """Numbers kept for the backward pass of dense layers: every matrix's input or output once, no score matrices.

        A layer keeps two normed states, q, k, v, the attended vector and three hidden vectors of the feed-forward;
        cross-attention adds a normed state, q and the attended vector; keys and values of a context are kept as well
        (the lazy ones twice: before and after their norm).
        """
        layer, cross = 6 * self.width + 3 * self.ff_width, 3 * self.width
        context_tokens, target_tokens = batch / sharing * context, batch * self.levels
        if self.kind == "naive":
            return (context_tokens + target_tokens) * self.decoder_layers * layer
        on_target = target_tokens * self.decoder_layers * (layer + cross)
        kept = (2 if self.kind == "lazy" else 1) * self.kv_numbers(context, batch, sharing)
        return context_tokens * self.encoder_layers * layer + kept + on_target
