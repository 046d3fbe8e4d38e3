"""A code decoder that goes on after an item: lists as one stream (OneRec v1, 2502.18965).

The stream of a list is [BOS, s1 .. sL] x m: L+1 places an item, every code is read, and the place of s(l) writes
s(l+1). A BOS writes the first code of its item knowing all items before. The place of sL writes nothing; it is read by
what follows, and left out after the last item.

Places inside an item are told apart by a vector per level, items of a list by a vector each (the paper names no
position encoding).

Shape legend: B histories · G lists of each · m items of a list · L levels · P = m (L+1) - 1 places · D width ·
W beams · K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.core import InputError
from sidera.nn.code_decoder import CodeDecoder, DecoderSize, KeysValues
from sidera.nn.laid_out_decoder import DecoderCache, advance
from sidera.ops.shared_keys import Streams


class ListDecoder(CodeDecoder):
    """Writes lists of up to ``length`` items."""

    def __init__(self, size: DecoderSize, level_sizes: Sequence[int], length: int) -> None:
        super().__init__(size, level_sizes)
        self.length = length
        self.last_code = nn.Embedding(self.level_sizes[-1], size.width)
        nn.init.normal_(self.last_code.weight, std=size.code_std or size.width**-0.5)
        self.last_vector = nn.Parameter(torch.randn(size.width) * 0.02)
        self.item_vectors = nn.Parameter(torch.randn(length, size.width) * 0.02)
        if size.code_std:  # as the base class does with the vectors of its places
            for vectors in (self.last_vector, self.item_vectors):
                nn.init.normal_(vectors, std=size.code_std / 2)

    def embed_lists(self, sids: Tensor) -> Tensor:
        """Codes (M, m, L) of M lists -> inputs (M, P, D)."""
        length = sids.shape[1]
        if length > self.length:
            raise InputError(f"a list of {length} items", allowed=f"at most {self.length} (session_length)")
        last = self.last_code(sids[..., -1:]) + self.last_vector  # (M, m, 1, D)
        x = torch.cat((self.embed(sids), last), dim=2) + self.item_vectors[:length, None]  # (M, m, L+1, D)
        return x.flatten(1, 2)[:, :-1]

    def list_log_probs(self, sids: Tensor, kvs: Sequence[KeysValues], mask: Tensor) -> Tensor:
        """Codes (B, G, m, L) -> (B, G, m, L) log-probabilities, each given all codes before it in its list."""
        batch, lists, length, num_levels = sids.shape
        states = self(self.embed_lists(sids.flatten(0, 1)), kvs, mask, Streams(batch, lists))  # (B*G, P, D)
        states = F.pad(states, (0, 0, 0, 1)).unflatten(1, (length, num_levels + 1))[:, :, :-1]  # (B*G, m, L, D)
        return self.code_log_probs(states.flatten(0, 1), sids.reshape(-1, num_levels)).view_as(sids)

    def inputs(self, sids: Tensor) -> Tensor:
        """Codes (M, L) of the first items of lists -> inputs (M, L, D)."""
        return self.embed_lists(sids[:, None])

    @property
    def num_positions(self) -> int:
        return self.length * (len(self.level_sizes) + 1) - 1

    @torch.no_grad()
    def step(
        self, cache: DecoderCache, kvs: Sequence[KeysValues], mask: Tensor, level: int, codes: Tensor | None,
        parents: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, W, K) of the next code; see ``core.SessionGenerator``: level 0 with codes begins the next item."""
        item = cache.ancestors.shape[1] // (len(self.level_sizes) + 1)  # of the list, the one that is being written
        if codes is not None and level == 0 and item + 1 == self.length:
            raise InputError(f"item {item + 2} of a list", allowed=f"{self.length} (session_length)")
        cache.begin_position(parents)
        if codes is not None and level == 0:
            advance(cache, kvs, mask, self.last_code(codes.flatten()) + self.last_vector + self.item_vectors[item])
            cache.begin_position(None)
            item += 1
        if level == 0:
            x = cache.decoder.begin.expand(cache.num_beams, -1)
        else:
            assert codes is not None
            x = F.embedding(codes.flatten(), cache.decoder.codes[level - 1])
        return self.written(cache, kvs, mask, x + self.item_vectors[item], level)
