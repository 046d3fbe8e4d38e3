"""The counters against OneRec-V2's tables: increments and ratios, which follow from shapes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidera.core import InputError
from sidera.models.counters import Architecture

CONTEXT, BATCH = 512, 512  # tokens, targets (2508.20900, section 3.4 here)
# "1B": 18 layers of 1792; context features of 3 x embed_dim, which the increments of the K/V rows imply
LAZY = Architecture("lazy", width=1792, decoder_layers=18, ff_width=4 * 1792, context_width=3 * 90)
SIZES = {"0.1B": (640, 12, 32), "0.5B": (1408, 14, 70), "1B": (1792, 18, 90)}


def whole(architecture: Architecture) -> float:
    return sum(architecture.flops(CONTEXT).values())


@pytest.mark.parametrize(
    ("kv_sharing", "separate", "published"),
    [(1, True, 19.19), (3, False, 19.49), (9, False, 21.27), (18, False, 23.95)],
)
def test_sharing_keys_and_values_costs_what_the_paper_says(kv_sharing: int, separate: bool, published: float) -> None:
    increment = whole(replace(LAZY, kv_sharing=kv_sharing, separate_values=separate)) - whole(LAZY)
    assert increment / 1e9 == pytest.approx(published - 18.89, abs=0.011)  # two roundings to 0.01 in the table


@pytest.mark.parametrize(("groups", "published"), [(14, 94e6), (7, 47e6), (2, 13e6), (1, 7e6)])
def test_grouped_queries_shrink_keys_and_values_as_in_the_paper(groups: int, published: float) -> None:
    assert replace(LAZY, kv_groups=groups).kv_numbers(CONTEXT, BATCH) == pytest.approx(published, abs=0.5e6)


@pytest.mark.parametrize(("size", "published"), [("0.1B", 1.98), ("0.5B", 9.55), ("1B", 18.89)])
def test_all_but_the_weights_of_the_lazy_rows_follows(size: str, published: float) -> None:
    """The rows are 18 FLOPs per *named* parameter, and what attention and the projection add follows from shapes."""
    width, layers, embed = SIZES[size]
    lazy = Architecture("lazy", width=width, decoder_layers=layers, ff_width=4 * width, context_width=3 * embed)
    parts = lazy.flops(CONTEXT)
    added = parts["context"] + parts["attention"] * CONTEXT / (CONTEXT + lazy.levels)
    named = 18 * float(size[:-1]) * 1e9
    assert (named + added) / 1e9 == pytest.approx(published, abs=0.006)


def test_formulas_by_context_length() -> None:
    """0.66 N + 8.1 and 1.2 N + 18 GFLOPs at 1B: shares of 6 FLOPs x parameters, for layers of 16 and 20 d^2."""
    both = Architecture("encoder_decoder", width=1792, decoder_layers=8, ff_width=4 * 1792, encoder_layers=10)
    naive = Architecture("naive", width=1792, decoder_layers=18, ff_width=4 * 1792)
    total = both.context_weights() + both.target_weights()
    encoder = both.encoder_layers * 16 * both.width**2
    assert encoder == total / 2  # 0.5B : 0.5B
    assert 1.2 * both.context_weights() / total == pytest.approx(0.66, abs=1e-9)
    assert 18 * both.target_weights() / total == pytest.approx(8.1, abs=1e-9)
    assert naive.context_weights() == naive.target_weights()
    parts = naive.flops(3000)
    assert parts["context"] / parts["target"] == pytest.approx(1.2 * 3000 / 18)
    assert parts["target"] / (parts["target"] + parts["context"]) == pytest.approx(0.0049, abs=1e-4)


def test_naive_to_lazy() -> None:
    naive = Architecture("naive", width=1792, decoder_layers=18, ff_width=4 * 1792)
    parts = naive.flops(CONTEXT)
    ours = (parts["context"] + parts["target"]) / naive.target_weights() / (whole(LAZY) / LAZY.target_weights())
    assert ours == pytest.approx(634.83 / 18.89, rel=0.03)  # per parameter: the two have 16 and 18 d^2 a layer


@pytest.mark.parametrize(
    ("kind", "published"),
    [("lazy", (0.31, 0.77, 1.24)), ("naive", (7.52, 19.28, 31.53)), ("encoder_decoder", (4.21, 10.79, 17.63))],
)
def test_activations(kind: str, published: tuple[float, ...]) -> None:
    for (width, layers, _), expected in zip(SIZES.values(), published, strict=True):
        half = layers // 2
        split = {"encoder_layers": half, "decoder_layers": half} if kind == "encoder_decoder" else {}
        architecture = Architecture(kind, **{"width": width, "decoder_layers": layers, "ff_width": 4 * width} | split)  # type: ignore[arg-type]
        assert architecture.activations(CONTEXT, BATCH) / 1e9 == pytest.approx(expected, rel=0.02)


def test_experts_that_sleep_are_not_active() -> None:
    """53 routed and a shared expert, 3 of them chosen, from the third block on: the paper's 4B with 0.5B active."""
    moe = Architecture(
        "lazy", width=1408, decoder_layers=14, ff_width=4 * 1408, num_experts=53, num_active=3, num_shared=1,
        expert_width=1408, moe_from=2,
    )  # fmt: skip
    dense = replace(moe, num_experts=0)
    asleep = 12 * 50 * 3 * 1408 * 1408
    assert moe.parameters()["total"] - moe.parameters()["active"] == asleep
    assert moe.target_weights() - dense.target_weights() == 12 * 53 * 1408  # 4 experts of d = one of 4 d, and routers
    assert 3.8e9 < moe.parameters()["total"] < 4.3e9
    assert 0.45e9 < moe.target_weights() < 0.55e9


def test_a_request_computes_its_context_once() -> None:
    one, five = LAZY.flops(CONTEXT, 1.0), LAZY.flops(CONTEXT, 5.0)
    targets = 5 * (sum(five.values()) - five["context"])
    assert LAZY.flops_per_request(CONTEXT, 5) == pytest.approx(one["context"] + targets)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="encoder_layers"):
        Architecture("lazy", width=64, decoder_layers=2, ff_width=64, encoder_layers=1)
    with pytest.raises(InputError, match="width = 0"):
        Architecture("lazy", width=0, decoder_layers=2, ff_width=64)
