"""Beam search without the trie: any code may follow any other, so the model can write items that do not exist.

Nobody is served from here. It measures *legality*, the share of freely written semantic IDs that some item has: how
well the model knows the catalogue by itself.

Shape legend: B histories · W beams · K codes of a level · R results · L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.core import InputError
from sidera.decode.beam import normalised
from sidera.decode.eligible import NEG_INF
from sidera.decode.select import best_first, best_positions
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, Generator


@dataclass(frozen=True, eq=False)
class FreeBeams:
    """Freely written semantic IDs, most likely first; ``legal_mask`` is True where an item of the trie has it.

    ``valid_mask`` is False where the beam ran out of codes with any probability: there nothing was written.
    """

    sids: Tensor  # (B, R, L) int64
    scores: Tensor  # (B, R) float32
    legal_mask: Tensor  # (B, R) bool
    valid_mask: Tensor  # (B, R) bool

    def legality(self) -> float:
        """The share of legal semantic IDs among those written, over all histories."""
        return float(self.legal_mask.sum() / self.valid_mask.sum())


@torch.inference_mode()
def free_beam(
    generator: Generator, context: Context | Batch, trie: CodeTrie, *, width: int, num_results: int
) -> FreeBeams:
    """The ``num_results`` most likely semantic IDs that a beam of ``width`` finds, legal or not.

    R is ``num_results``, or less where the beam cannot hold so many. Equal scores go to the smaller semantic ID.
    """
    if width < 1 or num_results < 1:
        raise InputError(f"width is {width} and num_results {num_results}", allowed="1 or more")
    if isinstance(context, Batch):
        context = generator.context(context)
    sizes, num_histories = generator.level_sizes, context.num_histories
    cache = generator.new_cache(context, width)
    scores, sids, codes, parents = None, None, None, None
    for level, size in enumerate(sizes):
        logits, log_norm = normalised(generator.step(context, cache, level, codes, parents))
        log_probs = logits.float() - log_norm[..., None]  # (B, W, K)
        if scores is not None:
            log_probs = log_probs + scores[..., None]
        flat = log_probs.flatten(1)  # (B, W K)
        last = level == len(sizes) - 1
        chosen = best_first(flat, num_results) if last else best_positions(flat, min(width, flat.shape[1]))
        scores, parents, codes = flat.gather(1, chosen), chosen // size, chosen % size  # (B, W) each
        if sids is None:
            sids = codes[..., None]
        else:
            kept = sids.gather(1, parents[..., None].expand(num_histories, -1, level))
            sids = torch.cat([kept, codes[..., None]], dim=-1)  # (B, W, level + 1)
    assert sids is not None
    assert scores is not None
    legal = torch.from_numpy(trie.legal(sids.cpu().numpy())).to(scores.device)
    valid_mask = scores > NEG_INF
    return FreeBeams(sids, scores, legal & valid_mask, valid_mask)
