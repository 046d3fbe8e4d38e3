"""Counted FLOPs against those that torch sees being done, forward and backward, on batches without padding.

On the CPU the decoder's self-attention is written out without matrix products; torch's counter is shown its reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from labelled_log import labelled_view
from small_catalog import position_batch, small_catalog
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hand_made import changed, hand_made
from sidera.batch import Batch, Lifelong
from sidera.data.features import FeatureSchema
from sidera.models.counters import Architecture
from sidera.models.generators.onerec import OneRec
from sidera.models.generators.onerec_v1 import OneRecV1
from sidera.models.generators.onerec_v2 import OneRecV2
from sidera.models.generators.sidera import SideraGenerator
from sidera.models.generators.tiger import Tiger
from sidera.models.rankers.pscore import PScore
from sidera.models.retrievers.hstu import HSTU
from sidera.models.retrievers.sasrec import SASRec
from sidera.nn import t5_functions
from sidera.nn.counters import count_parameters, matmul_flops
from sidera.nn.moe import MoE
from sidera.ops import attention


def measured(model: Any, batch: Batch) -> float:
    """What torch's counter sees of a training step; it knows attention only when that is made of plain products."""
    model.train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(batch).total.backward()
    return float(counter.get_total_flops())


def lazy(**changes: Any) -> OneRecV2:
    catalog = with_features(small_catalog(200, (16, 16, 16)))
    sizes = {"width": 64, "num_layers": 3, "num_heads": 4, "num_kv_groups": 4, "ff_width": 256, "dropout": 0.0}
    return OneRecV2(OneRecV2.Config(**(sizes | changes)), catalog)  # type: ignore[arg-type]


def with_features(catalog: Any) -> Any:
    """The catalogue with the schema of a log without feedback."""
    object.__setattr__(catalog, "schema", FeatureSchema())
    object.__setattr__(catalog, "features", {})
    return catalog


def plain_product(x: torch.Tensor, weight: torch.Tensor, relu: bool = False) -> torch.Tensor:
    out = torch.nn.functional.linear(x, weight)
    return out.relu_() if relu else out


def encoded(**changes: Any) -> OneRec:
    catalog = with_features(small_catalog(200, (16, 16, 16)))
    sizes = {"width": 64, "num_heads": 4, "num_kv_groups": 4, "ff_width": 256, "dropout": 0.0}
    return OneRec(OneRec.Config(**(sizes | changes)), catalog)  # type: ignore[arg-type]


def requests(length: int = 30, rows: int = 4, targets: int = 2) -> Batch:
    """``rows`` histories of one length with ``targets`` each: nothing is padded."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(200, (rows * length,), generator=generator)
    return hand_made(
        items,
        torch.arange(0, rows * length + 1, length),
        torch.randint(200, (rows * targets,), generator=generator),
        target_offsets=torch.arange(0, rows * targets + 1, targets),
        items=small_catalog(200, (16, 16, 16)),
    )


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FEW_POSITIONS", 0)


@pytest.mark.parametrize("changes", [{}, {"kv_sharing": 3, "num_kv_groups": 1}, {"separate_values": True}])
def test_onerec_v2(changes: dict[str, Any]) -> None:
    model, batch = lazy(**changes), requests()
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.03)


def test_onerec_v2_with_experts() -> None:
    model, batch = lazy(num_experts=8, num_active=2, expert_width=64), requests()
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.03)


@pytest.mark.parametrize(
    "changes",
    [
        {"short_term": 30, "positive_length": 0, "num_lifelong_queries": 0},
        {"short_term": 6, "positive_length": 10, "num_lifelong_queries": 4},
        {"short_term": 0, "positive_length": 8, "num_lifelong_queries": 0, "num_kv_groups": 2, "decoder_layers": 3},
    ],
)
def test_onerec(changes: dict[str, Any]) -> None:
    model, batch = encoded(**changes), requests()
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.03)


def test_onerec_with_representatives() -> None:
    batch = requests()
    tokens = requests(length=20)
    lifelong = Lifelong(
        tokens.item_ids, tokens.events.offsets, torch.full((80,), 3), torch.zeros(80, dtype=torch.int64)
    )
    model = encoded(short_term=6, positive_length=10, num_lifelong_queries=4, lifelong="representatives")
    batch = changed(batch, lifelong=lifelong)
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.03)


def test_sizes_alone_give_the_decoder_of_onerec_v2() -> None:
    """The built model = the analytic one + what embeds events and users."""
    length, rows, targets = 30, 4, 2
    model, batch = lazy(), requests(length, rows, targets)
    sizes = Architecture("lazy", width=64, decoder_layers=3, ff_width=256, head_width=16, codebook_size=16)
    embedding = 3 * (model.events.flops(batch) + matmul_flops(model.user, rows))
    analytic = rows * sizes.flops_per_request(length + 1, targets) + embedding
    assert model.flops_per_batch(batch) == pytest.approx(analytic, rel=1e-6)
    weights = sum(module.weight.numel() for module in model.decoder.modules() if isinstance(module, torch.nn.Linear))
    assert sizes.parameters()["total"] == weights + model.processor.project.weight.numel()


def test_padding_does_not_count() -> None:
    model, batch = lazy(), requests()
    short = hand_made(
        batch.item_ids[:33],
        torch.tensor([0, 30, 31, 32, 33]),
        batch.target_ids,
        target_offsets=batch.targets.offsets,
        items=small_catalog(200, (16, 16, 16)),
    )
    needed, done = model.flops_per_batch(short), measured(model, short)
    assert needed < 0.98 * done  # keys of three histories of one event are padded to thirty, and nothing else is
    assert done < measured(model, batch)


@pytest.mark.parametrize(
    "changes",
    [
        {"history_tokens": "item", "num_experts": 0},
        {"history_tokens": "codes", "num_experts": 0},
        {"history_tokens": "item", "num_experts": 6, "num_active": 2, "expert_width": 64},
    ],
)
def test_onerec_v1(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's products are oneDNN's own, which torch does not count: it is shown plain ones."""
    monkeypatch.setattr(t5_functions, "product", plain_product)
    catalog = with_features(small_catalog(200, (16, 16, 16)))
    sizes = {"width": 64, "num_layers": 2, "num_heads": 4, "ff_width": 256, "dropout": 0.0, "session_length": 4}
    model = OneRecV1(OneRecV1.Config(**(sizes | changes), min_watched=1), catalog)
    batch = requests(length=30, targets=4)
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.03)
    assert model.flops_per_batch(changed(batch, target_ids=None)) == 0
    uneven = changed(batch, target_ids=batch.target_ids[:10], target_offsets=torch.tensor([0, 4, 7, 8, 10]))
    assert model.flops_per_batch(uneven) < 0.95 * measured(model, uneven)  # short lists are padded, which is no work


@pytest.mark.parametrize("changes", [{}, {"num_kernels": 2, "num_heads": 4}])
def test_pscore(changes: dict[str, Any]) -> None:
    config = PScore.Config(max_history=24, width=32, hidden=48, tower_width=16, dropout=0.0, **changes)
    model = PScore(config, labelled_view()[1])

    def feedback(count: int) -> dict[str, torch.Tensor]:
        return {name: torch.arange(count) % (2 + place) / 1.0 for place, name in enumerate(model.columns)}

    batch = requests(length=30, rows=6, targets=4)
    batch = changed(
        batch, labelled_view()[1].items, item_ids=batch.item_ids % 40, target_ids=batch.target_ids % 40,
        kind="exposure", feedback=feedback(180), target_feedback=feedback(24),
    )  # fmt: skip
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.03)
    assert model.flops_per_batch(changed(batch, target_ids=None)) == 0
    bounds, offsets = torch.tensor([0, 4, 5, 6, 7, 8, 9]), torch.tensor([0, 30, 32, 34, 36, 38, 40])
    uneven = changed(
        batch, item_ids=batch.item_ids[:40], offsets=offsets, feedback=feedback(40), target_feedback=feedback(9),
        target_ids=batch.target_ids[:9], target_offsets=bounds,
    )  # fmt: skip
    assert model.flops_per_batch(uneven) < 0.7 * measured(model, uneven)  # most candidates and events are padding


@pytest.mark.parametrize(("loss", "rel"), [("full", 0.03), ("sampled", 0.03), ("bce", 0.08)])
def test_sasrec(loss: str, rel: float) -> None:
    """torch counts attention to the future as well, which is thrown away; bce's scores are sums, not products."""
    catalog: Any = small_catalog(300, (8, 8, 8))
    config = SASRec.Config(width=64, num_layers=2, num_heads=2, dropout=0.0, loss=loss, num_negatives=64)  # type: ignore[arg-type]
    model, batch = SASRec(config, catalog), position_batch([16] * 6, 300)
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=rel)


@pytest.mark.parametrize("kind", ["linear", "mla", "sparse"])
def test_sasrec_with_attention_for_long_histories(kind: str) -> None:
    """torch counts squares whole, mla's padded values, and windows before the first block."""
    config = SASRec.Config(width=64, dropout=0.0, loss="full", attention=kind, block_size=8, max_history=64)  # type: ignore[arg-type]
    model, batch = SASRec(config, small_catalog(300, (8, 8, 8))), position_batch([64] * 3, 300)
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.15)


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_hstu(loss: str) -> None:
    """A strip is measured whole, and a half of its last square is thrown away."""
    config = HSTU.Config(width=64, dropout=0.0, loss=loss, num_negatives=64)  # type: ignore[arg-type]
    model, batch = HSTU(config, small_catalog(300, (8, 8, 8))), position_batch([16] * 6, 300)
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.1)


def test_sidera_generator() -> None:
    codes = np.stack(np.unravel_index(np.arange(64), (8, 8)), axis=1).astype(np.int32)  # 8 children everywhere
    catalog: Any = small_catalog(64, (8, 8))
    object.__setattr__(catalog, "codes", codes)
    config = SideraGenerator.Config(width=64, num_layers=2, num_heads=2, dropout=0.0)
    model, batch = SideraGenerator(config, catalog), changed(position_batch([16] * 6, 64), catalog)
    assert model.flops_per_batch(batch) == pytest.approx(measured(model, batch), rel=0.03)


@pytest.mark.parametrize("normalize", ["level", "vocabulary"])
def test_tiger(normalize: str) -> None:
    """Its forward products are oneDNN's own, which torch does not count: the backward pass, two thirds, is compared."""
    catalog: Any = small_catalog(200, (16, 16, 16))
    sizes = {"width": 64, "num_layers": 2, "num_heads": 4, "head_width": 16, "ff_width": 128, "dropout": 0.0}
    model = Tiger(Tiger.Config(**sizes, normalize=normalize, num_user_tokens=0), catalog)  # type: ignore[arg-type]
    packed = position_batch([10] * 6, 200, sizes=(16, 16, 16))
    batch = changed(packed, target_ids=packed.item_ids[:6], kind="history")
    loss = model.loss(batch).total
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert model.flops_per_batch(batch) * 2 / 3 == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_parameters_by_kind() -> None:
    model = lazy(num_experts=8, num_active=2, expert_width=32, moe_from=1)
    found = count_parameters(model)
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
    assert found.dense == found.total - tables
    num_sparse = sum(isinstance(module, MoE) for module in model.modules())
    assert num_sparse == 2
    assert found.dense - found.active == num_sparse * 6 * 3 * 64 * 32
