"""Optimal transport between items and codes by Sinkhorn's iterations (Cuturi 2013), as LC-Rec (arXiv 2311.09049) parts
items of one semantic ID on the last level (:mod:`sidera.catalog.collisions`).

    sinkhorn_codes(costs)        # (n, K) costs -> (n,) the code that gets most of each item's mass

Every item gives one part of mass and every code takes n / K of it, so items that would all take the nearest code are
spread over those that are nearly as near.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SOFTNESS = 0.003  # of the transport, of costs between -1 and 1
ITERATIONS = 50


def sinkhorn_codes(costs: Tensor) -> Tensor:
    """(n, K) costs, constants a row do not count -> (n,) int64. In float64 and logarithms, as the softness is small."""
    costs = costs.double()
    costs = costs - costs.min(dim=1, keepdim=True).values
    middle = float(costs.max()) / 2
    kernel = -(costs - middle) / (middle + 1e-5) / SOFTNESS  # (n, K) logarithm of the mass
    share = math.log(costs.shape[0] / costs.shape[1])
    for _ in range(ITERATIONS):
        kernel = kernel - kernel.logsumexp(dim=0) + share
        kernel = kernel - kernel.logsumexp(dim=1, keepdim=True)
    most = kernel.max(dim=1, keepdim=True).values
    return (kernel > most - 1e-6).float().argmax(dim=1)  # of equals the first
