"""Optimal transport between items and codes by Sinkhorn's iterations (Cuturi 2013), as LC-Rec (arXiv 2311.09049) parts
items of one semantic ID on the last level (:mod:`sidera.catalog.collisions`).

    sinkhorn_codes(costs)        # (n, K) costs -> (n,) the code that gets most of each item's mass

Every item gives one part of mass and every code takes n / K of it, so items that would all take the nearest code are
spread over those that are nearly as near.
"""

from __future__ import annotations

import math

from torch import Tensor

FIRST_SOFTNESS, SOFTNESS = 0.3, 0.003  # of the transport, of costs between -1 and 1: it hardens from one to the other
ITERATIONS = 50


def sinkhorn_codes(costs: Tensor) -> Tensor:
    """(n, K) costs, constants a row do not count -> (n,) int64. In float64 and logarithms, as the softness is small."""
    costs = costs.double()
    costs = costs - costs.min(dim=1, keepdim=True).values
    middle = float(costs.max()) / 2
    costs = (costs - middle) / (middle + 1e-5)
    share = math.log(costs.shape[0] / costs.shape[1])
    rows, columns = costs.new_zeros(costs.shape[0], 1), costs.new_zeros(costs.shape[1])  # prices
    for step in range(ITERATIONS):
        soft = FIRST_SOFTNESS * (SOFTNESS / FIRST_SOFTNESS) ** (step / (ITERATIONS - 1))
        columns = soft * (share - ((rows - costs) / soft).logsumexp(dim=0))
        rows = -soft * ((columns - costs) / soft).logsumexp(dim=1, keepdim=True)
    gains = columns - costs
    most = gains.max(dim=1, keepdim=True).values
    return (gains > most - 1e-9).float().argmax(dim=1)  # of equals the first
