"""QFormer: a few learned queries read any number of tokens and come back as that many vectors.

The block of OneRec's technical report (arXiv 2506.13695): N layers of ``Q <- CrossAttn(Q, M, M)`` and
``Q <- FFN(RMSNorm(Q))``, here with pre-RMSNorm on both sides and residuals. Item vectors use 4 queries over the tokens
of text, pictures and numbers; lifelong histories use 128 over their representatives.

Tokens come padded (B, S, D) with a mask, or jagged (T, D) with offsets; jagged rows are padded only inside groups of
similar length, and both ways give the same numbers. Queries do not read each other: they differ through what they read.

Traps: a row without tokens has nothing to attend to: softmax over nothing is NaN, so such a row's attention is 0 and it
comes out as the queries alone, the same for every empty row. The queries start small: after the first layer a row is
what it read, not a constant that all rows share.

Shape legend: T tokens of all rows · B rows · S longest row · D width · Q queries · H heads · E dims of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.core import InputError
from sidera.nn.dropout import Dropout
from sidera.ops.jagged import JaggedLayout, jagged_layout

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

    def forward(self, queries_BQD: Tensor, tokens: Tensor, layout: JaggedLayout | None, mask: Tensor | None) -> Tensor:
        query = self.query(self.norm(queries_BQD)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, Q, E)
        key_value = self.key_value(tokens)  # (T, 2D) or (B, S, 2D)
        if layout is None:
            attended = self._attend(query, key_value, mask)
        else:
            attended = torch.zeros_like(query)
            for group in layout.groups:
                members = layout.rows[group.gather[:, 0]]  # (b,) rows of this group
                steps = torch.arange(group.gather.shape[1], device=tokens.device)
                real_mask = steps < group.lengths[:, None] if group.padded else None  # (b, s)
                read = self._attend(query[members], key_value[group.gather], real_mask)
                attended = attended.index_copy(0, members, read)
        return self.out(attended.transpose(1, 2).flatten(2))  # (B, Q, D)

    def _attend(self, query: Tensor, key_value: Tensor, mask: Tensor | None) -> Tensor:
        """query (b, H, Q, E), key_value (b, s, 2D), mask (b, s) -> (b, H, Q, E)."""
        key, value = key_value.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, H, s, E)
        if mask is None:
            return F.scaled_dot_product_attention(query, key, value)
        empty = ~mask.any(1)  # (b,): let these look anywhere and forget what they saw
        seen = (mask | empty[:, None])[:, None, None]  # (b, 1, 1, s)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return read.masked_fill(empty[:, None, None, None], 0.0)


class QFormerLayer(nn.Module):
    """Cross-attention, then a feed-forward; each after a norm, with a residual and dropout on its output."""

    def __init__(self, width: int, num_heads: int, ff_width: int, token_width: int, dropout: float) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads, token_width)
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.up = nn.Linear(width, ff_width)
        self.down = nn.Linear(ff_width, width)
        self.dropout = Dropout(dropout)

    def forward(self, queries_BQD: Tensor, tokens: Tensor, layout: JaggedLayout | None, mask: Tensor | None) -> Tensor:
        queries_BQD = queries_BQD + self.dropout(self.attention(queries_BQD, tokens, layout, mask))
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

    def forward(
        self,
        tokens: Tensor,
        *,
        offsets: Tensor | None = None,
        mask: Tensor | None = None,
        layout: JaggedLayout | None = None,
    ) -> Tensor:
        """Padded (B, S, D) with ``mask`` (B, S) bool, True = a token (none: all are), or jagged (T, D) with ``offsets``
        (B+1,), or with a ``layout`` that the caller has already -> (B, Q, D) of unit root mean square times a weight.
        """
        if tokens.ndim == 2:
            if layout is None:
                if offsets is None:
                    problem = f"QFormer tokens have shape {tuple(tokens.shape)} and no offsets"
                    raise InputError(problem, fix="give offsets, or tokens (B, S, D)")
                layout = jagged_layout(offsets)
            num_rows = len(layout.offsets) - 1
        else:
            num_rows, layout = tokens.shape[0], None
        tokens = self.norm_tokens(tokens)
        queries_BQD = self.queries.expand(num_rows, -1, -1)
        for layer in self.layers:
            queries_BQD = layer(queries_BQD, tokens, layout, mask)
        return self.norm(queries_BQD)


def looped_qformer(module: QFormer, rows: list[Tensor]) -> Tensor:
    """The reference of :class:`QFormer`: one row, one query and one head at a time. (s_i, D) each -> (B, Q, D)."""
    outputs = []
    for tokens in rows:
        tokens = module.norm_tokens(tokens)
        for query in module.queries:
            state = query
            for layer in module.layers:
                assert isinstance(layer, QFormerLayer)
                state = state + _read_alone(layer.attention, state, tokens)
                state = state + layer.down(F.gelu(layer.up(layer.norm(state))))
            outputs.append(module.norm(state))
    return torch.stack(outputs).view(len(rows), -1, module.queries.shape[1])


def _read_alone(attention: CrossAttention, state: Tensor, tokens: Tensor) -> Tensor:
    """One query (D,) reads one row (s, D): softmax(q k / sqrt(E)) v, head by head."""
    if not len(tokens):
        return torch.zeros_like(state)
    query = attention.query(attention.norm(state)).view(attention.num_heads, -1)  # (H, E)
    keys, values = attention.key_value(tokens).chunk(2, dim=-1)  # each (s, D)
    heads = []
    for head, key, value in zip(query, keys.chunk(len(query), -1), values.chunk(len(query), -1), strict=True):
        weights = (key @ head * len(head) ** -0.5).softmax(0)  # (s,)
        heads.append(weights @ value)
    return attention.out(torch.cat(heads))
