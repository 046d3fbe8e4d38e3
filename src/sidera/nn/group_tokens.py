"""A long history as few tokens: the newest events as they are, older ones in groups that become one token each.

KuaiFormer (arXiv 2411.10057) reads 256 events as 48 newest ones, 5 groups of 16 before them and 2 groups of 64 before
these: 55 tokens. In a group every event reads every other through one layer, and the group's token is their mean.
Groups are counted from the newest event back, so an event changes its group as others follow: a model that reads groups
predicts what follows a history, and not what followed each of its events.

Shape legend: T events · B histories · M tokens · D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sidera.nn.code_decoder import DecoderSize
from sidera.nn.context_encoder import EncoderBlock
from sidera.nn.counters import attention_flops, matmul_flops
from sidera.ops.attention import layout_of
from sidera.ops.jagged import JaggedColumns


class GroupTokens(nn.Module):
    """(T, D) of the events of histories -> tokens (M, D), their slots (M,) and offsets (B+1,).

    A slot numbers tokens from the newest back: 0 is the newest event. ``groups``: (number, events of each), the newer
    ones first.
    """

    def __init__(self, size: DecoderSize, recent: int, groups: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.recent = recent
        self.inside = EncoderBlock(size, sparse=False)
        lengths = torch.tensor([1] * recent + [each for number, each in groups for _ in range(number)])
        self.num_slots = len(lengths)
        slots = torch.arange(len(lengths)).repeat_interleave(lengths)
        self.register_buffer("slot_of", slots, persistent=False)  # (max_history,) by the number of events behind

    def forward(self, events_TD: Tensor, events: JaggedColumns) -> tuple[Tensor, Tensor, Tensor]:
        """``events``: the histories that the vectors belong to."""
        slot_of = cast(Tensor, self.slot_of)
        slots, lengths = slot_of[events.from_end], events.lengths
        counts = self.num_tokens(lengths)
        offsets = nn.functional.pad(counts.cumsum(0), (1, 0))
        tokens = offsets[1:][events.row_ids] - 1 - slots  # (T,) the token of each event, ascending
        grouped = (slots >= self.recent).nonzero().squeeze(1)  # (t,)
        num_tokens = int(offsets[-1])
        sizes = torch.bincount(tokens, minlength=num_tokens)  # (M,)
        if len(grouped):
            of_groups = torch.bincount(tokens[grouped], minlength=num_tokens)
            layout = layout_of(nn.functional.pad(of_groups[of_groups > 0].cumsum(0), (1, 0)))
            events_TD = events_TD.index_copy(0, grouped, self.inside(events_TD[grouped], layout).to(events_TD.dtype))
        shares = events_TD / sizes[tokens, None]
        joined = events_TD.new_zeros(num_tokens, events_TD.shape[1]).index_add(0, tokens, shares)
        token_slots = events.row_ids.new_zeros(num_tokens).index_copy(0, tokens, slots)
        return joined, token_slots, offsets

    def num_tokens(self, lengths: Tensor) -> Tensor:
        """(B,) tokens that histories of these lengths (B,) become."""
        return (cast(Tensor, self.slot_of)[(lengths - 1).clamp(min=0)] + 1) * (lengths > 0)

    def flops(self, lengths: Tensor) -> float:
        """Of one forward pass over histories of these lengths (B,): events of a group read each other."""
        slot_of = cast(Tensor, self.slot_of)
        place = torch.arange(len(slot_of), device=slot_of.device) - torch.searchsorted(slot_of, slot_of)
        pairs = nn.functional.pad(((2 * place + 1) * (slot_of >= self.recent)).cumsum(0), (1, 0))  # by length
        grouped = float((lengths - self.recent).clamp(min=0).sum())
        width = self.inside.norm_ff.normalized_shape[0]
        return matmul_flops(self.inside, grouped) + attention_flops(float(pairs[lengths].sum()), width)


def with_queries(tokens: Tensor, offsets: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, D) tokens and (Q, D) queries, put behind the tokens of every row -> ((M + B Q, D), offsets (B+1,), places of
    the queries (B, Q))."""
    num_rows, each = len(offsets) - 1, len(queries)
    rows = torch.arange(num_rows, device=offsets.device)
    longer = offsets + each * torch.arange(num_rows + 1, device=offsets.device)
    places = longer[1:, None] - each + torch.arange(each, device=offsets.device)  # (B, Q)
    shift = each * rows.repeat_interleave(offsets.diff(), output_size=len(tokens))
    out = tokens.new_empty(len(tokens) + num_rows * each, tokens.shape[1])
    out = out.index_copy(0, torch.arange(len(tokens), device=offsets.device) + shift, tokens)
    out = out.index_copy(0, places.flatten(), queries.to(tokens.dtype).expand(num_rows, -1, -1).flatten(0, 1))
    return out, longer, places
