"""Counted FLOPs of the stream of codes, COBRA and LIGER against those that torch sees, on batches without padding."""

from __future__ import annotations

import pytest
import torch
from small_catalog import position_batch, small_catalog
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hand_made import hand_made
from sidera.models import MODELS, parse_model
from sidera.nn import t5_functions

SIZES = (16, 16, 16)


@pytest.mark.parametrize("name", ["decoder_only", "cobra", "liger"])
def test_counted_flops_are_those_done(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's products are oneDNN's own, which torch does not count: it is shown plain ones."""

    def product(x: torch.Tensor, weight: torch.Tensor, relu: bool = False) -> torch.Tensor:
        out = torch.nn.functional.linear(x, weight)
        return out.relu_() if relu else out

    monkeypatch.setattr(t5_functions, "product", product)
    _, config = parse_model({"name": name, "width": 64, "num_layers": 2, "num_heads": 4, "dropout": 0.0})
    catalog = small_catalog(300, SIZES)
    model = MODELS[name](config, catalog).train()
    batch = position_batch([16] * 6, 300, sizes=SIZES)
    if name == "liger":
        items, offsets = batch.item_ids, batch.events.offsets
        batch = hand_made(items, offsets, torch.arange(6), items=catalog, kind="history")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(batch).total.backward()
    future = 0.0  # torch counts attention to what comes later as well, which is thrown away
    if name != "liger":
        tokens = 17 * model.num_tokens
        future = 3 * 2 * 4 * 64 * 6 * tokens * (tokens - 1) / 2
    assert model.flops_per_batch(batch) + future == pytest.approx(float(counter.get_total_flops()), rel=0.01)
