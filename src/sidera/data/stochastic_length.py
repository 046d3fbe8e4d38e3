"""Stochastic length: training on random parts of long histories (HSTU, arXiv 2402.17152).

Attention costs the square of a length, and a long history says much the same with some of its events left out. With N
the longest history that is read and n0 = N^(alpha / 2), a history of n > n0 events is read whole with probability
(n0 / n)^2 and else cut to n0 of its events, drawn at random, so that on average it costs N^alpha pairs at most. What
remains is treated as the history: each of its events predicts the next one of it. Its last event always remains, so the
newest target keeps the history before it. Answers read whole histories.

Shape legend: R rows · B histories of a batch · T events.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sidera.batch import Batch


def drawn_lengths(lengths: np.ndarray, longest: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """(R,) how many events of each history are read; all of them where ``alpha`` is 0."""
    if not alpha:
        return lengths
    part = max(round(longest ** (alpha / 2)), 1)  # n0
    whole_mask = rng.random(len(lengths)) * lengths.astype(np.float64) ** 2 < part**2
    return np.where(whole_mask, lengths, np.minimum(lengths, part))


def thinned(batch: Batch, lengths: np.ndarray, rng: np.random.Generator) -> Batch:
    """``batch``, whose targets are one per event, with only ``lengths`` (B,) random events of each history."""
    offsets = batch.events.offsets.numpy()
    if batch.targets is None or (np.diff(offsets) == lengths).all():
        return batch
    rows = np.repeat(np.arange(len(lengths)), np.diff(offsets))
    chance = rng.random(len(rows))
    chance[offsets[1:][np.diff(offsets) > 0] - 1] = -1  # the last event always remains
    order = np.lexsort((chance, rows))
    mask = np.zeros(len(rows), dtype=bool)
    mask[order] = np.arange(len(rows)) - offsets[:-1][rows] < lengths[rows]
    kept = torch.from_numpy(mask)
    events = batch.events.keep(kept)
    targets = batch.targets.items[kept]  # right at last events; the others predict the next event that remains
    goes_on = events.row_ids[1:] == events.row_ids[:-1]
    targets[:-1] = torch.where(goes_on, events.items[1:], targets[:-1])
    return replace(batch, events=events, targets=replace(batch.targets, items=targets, offsets=events.offsets))
