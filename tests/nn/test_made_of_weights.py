"""What is made of weights is made once, and again after every way in which weights change."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sidera.nn.made_of_weights import MadeOfWeights


def test_it_is_made_again_when_a_weight_changed_and_only_then() -> None:
    layer, kept, calls = nn.Linear(2, 2, bias=False), MadeOfWeights[torch.Tensor](), []

    def get() -> torch.Tensor:
        return kept.get([layer.weight], lambda: calls.append(1) or layer.weight.detach().clone())

    first = get()
    assert get() is first
    with torch.no_grad():
        layer.weight.add_(1)  # written to
    assert torch.equal(get(), layer.weight)
    layer.weight = nn.Parameter(torch.zeros(2, 2))  # replaced
    assert torch.equal(get(), layer.weight)
    layer.double()  # moved
    assert get().dtype == torch.float64
    assert len(calls) == 4
    kept.drop()
    get()
    assert len(calls) == 5


def test_a_copy_starts_without_it() -> None:
    kept = MadeOfWeights[int]()
    weight = torch.zeros(1)
    assert kept.get([weight], lambda: 1) == 1
    assert copy.deepcopy(kept).get([weight], lambda: 2) == 2
    assert kept.get([weight], lambda: 3) == 1
