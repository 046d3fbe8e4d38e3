"""QFormer: a few learned queries read any number of tokens and come back as that many vectors.

The block of OneRec's technical report (arXiv 2506.13695): N layers of ``Q <- CrossAttn(Q, M, M)`` and
``Q <- FFN(RMSNorm(Q))``, here with pre-RMSNorm on both sides and residuals. Item vectors use 4 queries over the tokens
of text, pictures and numbers; lifelong histories use 128 over their representatives.

Tokens come padded (B, S, D) with a mask, or jagged (T, D) with offsets. Queries do not read each other: they differ
through what they read.

Traps: a row without tokens has nothing to attend to: its attention is 0 and it comes out as the queries alone, the same
for every empty row. The queries start small: after the first layer a row is what it read, not a constant that all rows
share.

Shape legend: T tokens of all rows · B rows · S longest row · D width · Q queries · H heads · E dims of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.core import InputError
from sidera.nn.dropout import Dropout
from sidera.ops.attention import Layout, attention, layout_of

EPSILON = 1e-6


class CrossAttention(nn.Module):
    """Queries (B, Q, D) read the tokens of their own row."""

    def __init__(self, width: int, num_heads: int, token_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(token_width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, queries_BQD: Tensor, tokens: Tensor, layout: Layout) -> Tensor:
        """tokens (T, D) of the rows; ``layout``: the queries of each row read its tokens."""
        query = self.query(self.norm(queries_BQD)).unflatten(-1, (self.num_heads, -1))  # (B, Q, H, E)
        key_value = self.key_value(tokens).unflatten(-1, (2, self.num_heads, -1))  # (T, 2, H, E)
        return self.out(attention(query.flatten(0, 1), key_value, layout).view_as(queries_BQD))


class QFormerLayer(nn.Module):
    """Cross-attention, then a feed-forward; each after a norm, with a residual and dropout on its output."""

    def __init__(self, width: int, num_heads: int, ff_width: int, token_width: int, dropout: float) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads, token_width)
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.up = nn.Linear(width, ff_width)
        self.down = nn.Linear(ff_width, width)
        self.dropout = Dropout(dropout)

    def forward(self, queries_BQD: Tensor, tokens: Tensor, layout: Layout) -> Tensor:
        queries_BQD = queries_BQD + self.dropout(self.attention(queries_BQD, tokens, layout))
        return queries_BQD + self.dropout(self.down(F.gelu(self.up(self.norm(queries_BQD)))))


class QFormer(nn.Module):
    """``num_queries`` vectors of ``width`` per row, whatever the number of its tokens.

    ``token_width`` is the width of the tokens, ``ff_width`` of the feed-forward; 0: ``width`` and four times it.
    """

    def __init__(
        self,
        width: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        *,
        ff_width: int = 0,
        token_width: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        counts = {"width": width, "num_queries": num_queries, "num_layers": num_layers, "num_heads": num_heads}
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"QFormer {name} = {value}", allowed="1 or more")
        if width % num_heads:
            raise InputError(f"QFormer width = {width}, num_heads = {num_heads}", allowed="heads that divide the width")
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.norm_tokens = nn.RMSNorm(token_width or width, eps=EPSILON)
        self.layers = nn.ModuleList(
            QFormerLayer(width, num_heads, ff_width or 4 * width, token_width or width, dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        nn.init.normal_(self.queries, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, *, offsets: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Jagged (T, D) with ``offsets`` (B+1,), or padded (B, S, D) with ``mask`` (B, S) bool, True = a token (none:
        all are) -> (B, Q, D) of unit root mean square times a weight.
        """
        if tokens.ndim == 3:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
            tokens, offsets = tokens[mask], F.pad(mask.sum(1).cumsum(0), (1, 0))
        if offsets is None:
            problem = f"QFormer tokens have shape {tuple(tokens.shape)} and no offsets"
            raise InputError(problem, fix="give offsets, or tokens (B, S, D)")
        layout = layout_of(offsets).asked_by(len(self.queries))
        tokens = self.norm_tokens(tokens)
        queries_BQD = self.queries.expand(len(offsets) - 1, -1, -1)
        for layer in self.layers:
            queries_BQD = layer(queries_BQD, tokens, layout)
        return self.norm(queries_BQD)
