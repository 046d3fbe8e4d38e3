"""Rollouts of a generator: semantic IDs with their probabilities, signed by the policy and catalogue that wrote them.

Alignment rolls out through the engine, with the decoder and the catalogue that serve, so what was rewarded is what
will be answered.

Shape legend: B histories · G semantic IDs of each · L levels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sidera.batch import Batch
from sidera.catalog.catalog import Catalog
from sidera.core import InputError
from sidera.decode.beam import beam_search
from sidera.decode.sample import SampleMode, free_log_probs, masked_log_probs, sample
from sidera.ops.trie import CodeTrie
from sidera.roles import Context, Generator, Rollout

RolloutMode = Literal["masked", "free", "beam"]
MAX_COUNT = 512  # semantic IDs of one history


@torch.inference_mode()
def roll_out(
    generator: Generator,
    context: Context,
    catalog: Catalog,
    count: int,
    mode: RolloutMode,
    temperature: float,
    seed: int,
    version: str,
    part: tuple[int, int] = (0, 1),
) -> Rollout:
    """``count`` semantic IDs for each history; ``seed`` and ``temperature`` have no say in a beam's choice.

    ``part`` as in :func:`sidera.decode.sample.sample`.
    """
    if not 1 <= count <= MAX_COUNT:
        raise InputError(f"a rollout of {count} semantic IDs", allowed=f"1 to {MAX_COUNT}")
    if mode == "beam":
        found = beam_search(generator, context, catalog.trie, width=count, num_results=count)
        sids, item_ids = found.sids, found.item_ids
        log_probs = masked_log_probs(generator, context, sids, catalog.trie, temperature)
    else:
        kind: SampleMode = mode
        drawn = sample(
            generator, context, catalog.trie, count=count, mode=kind, temperature=temperature, seed=seed, part=part
        )
        sids, item_ids, log_probs = drawn.sids, drawn.item_ids, drawn.log_probs
    # clones made outside of inference mode may enter a backward pass
    with torch.inference_mode(False):
        return Rollout(
            sids=sids.clone(),
            item_ids=item_ids.clone(),
            log_probs=log_probs.clone(),
            mode=mode,
            temperature=temperature,
            policy_version=version,
            codebook_id=catalog.codebook_id,
            items_version=catalog.items_version,
        )


def sid_log_probs(
    generator: Generator, batch: Batch, trie: CodeTrie, sids: Tensor, mode: RolloutMode, temperature: float
) -> Tensor:
    """(B, G, L) -> (B, G, L), as a rollout of this mode would record them; without gradient."""
    with torch.no_grad():
        context = generator.context(batch)
        if mode == "free":
            return free_log_probs(generator, context, sids, temperature)
        return masked_log_probs(generator, context, sids, trie, temperature)
