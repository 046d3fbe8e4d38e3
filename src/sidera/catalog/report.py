"""How good are these semantic IDs? Reconstruction, use of the codes, collisions, kept neighbours, kept transitions.

"Used 256 of 256" hides skew, so every level also reports the perplexity of its codes: the number of equally used codes
that would be as surprising.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidera.catalog.collisions import Resolved, bucket_ids
from sidera.catalog.nearest import chunk_rows
from sidera.catalog.quantizers import Quantizer
from sidera.data.dataset import Dataset
from sidera.data.split import Split

OVERLAP_SAMPLE = 2000
OVERLAP_K = 10


def quality_report(
    vectors: Tensor, quantizer: Quantizer, quantizer_codes: np.ndarray, resolved: Resolved, seed: int = 0
) -> dict[str, Any]:
    """Facts about the codes, ready for JSON. vectors (N, D), quantizer_codes (N, L) as before the collision policy."""
    rebuilt = quantizer.decode(torch.from_numpy(quantizer_codes.astype(np.int64)))  # (N, D)
    _, counts = bucket_ids(quantizer_codes)
    known = vectors.abs().sum(1) > 0
    cosine = torch.cosine_similarity(vectors[known], rebuilt[known])
    return {
        "num_items": len(vectors),
        "level_sizes": list(resolved.level_sizes),
        "relative_error": float((vectors - rebuilt).square().sum() / vectors.square().sum().clamp(min=1e-30)),
        "cosine": float(cosine.mean()) if cosine.numel() else 0.0,
        "levels": [level_use(resolved.codes[:, level], size) for level, size in enumerate(resolved.level_sizes)],
        "collision_rate": 1.0 - len(counts) / len(vectors),  # items beyond the first of each semantic ID
        "num_colliding_items": int(counts[counts > 1].sum()),
        "largest_bucket": int(counts.max()),
        "num_moved": resolved.num_moved,
        "num_overflowed": resolved.num_overflowed,
        "num_residual": resolved.num_residual,
        f"neighbour_overlap@{OVERLAP_K}": neighbour_overlap(vectors, rebuilt, seed),
    }


def level_use(codes: np.ndarray, size: int) -> dict[str, Any]:
    """Use of one level's codes (N,)."""
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log2(shares)).sum())
    return {
        "size": size,
        "used": int((counts > 0).sum()),
        "entropy_bits": entropy,
        "perplexity": 2.0**entropy,
        "largest": int(counts.max()),
    }


def neighbour_overlap(vectors: Tensor, rebuilt: Tensor, seed: int = 0) -> float:
    """Share of an item's ten nearest (cosine) that are still among its ten nearest after quantization, sampled."""
    num_items = len(vectors)
    k = min(OVERLAP_K, num_items - 1)
    if k < 1:
        return 1.0
    sample = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed))[:OVERLAP_SAMPLE]
    unit = [torch.nn.functional.normalize(each, dim=1) for each in (vectors, rebuilt)]
    shared = 0
    for rows in chunk_rows(len(sample), num_items):
        ids = sample[rows]
        found = []
        for each in unit:
            scores = each[ids] @ each.T  # (n, N)
            scores[torch.arange(len(ids)), ids] = -torch.inf
            found.append(scores.topk(k, dim=1).indices)
        shared += int((found[0].unsqueeze(2) == found[1].unsqueeze(1)).sum())
    return shared / (len(sample) * k)


def transition_shares(codes: np.ndarray, dataset: Dataset, split: Split) -> dict[str, float]:
    """Share of steps from an item to the next that stay inside one level-1 code: in training, and into validation.

    ``chance`` is the validation share that clusters of the same popularity would reach by accident.
    """
    cluster = codes[:, 0]
    train = np.arange(dataset.num_events) < split.train_ends[dataset.event_users]
    step = train[1:] & (dataset.event_users[1:] == dataset.event_users[:-1])
    same = cluster[dataset.item_ids[1:]] == cluster[dataset.item_ids[:-1]]
    shares = {"train": float(same[step].mean()) if step.any() else 0.0}
    asked = split.valid.ends > split.valid.starts
    if asked.any():
        before, after = cluster[dataset.item_ids[split.valid.ends[asked] - 1]], cluster[split.valid.target_ids[asked]]
        shares["valid"] = float((before == after).mean())
        size = int(cluster.max()) + 1
        weights = [np.bincount(each, minlength=size) / len(each) for each in (before, after)]
        shares["chance"] = float(weights[0] @ weights[1])
    return shares
