"""Every special body has a plain one that answers the same, and one that is absent or refuses is never used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from sidera.nn.product import packed, product
from sidera.nn.t5_functions import feed_forward
from sidera.ops import processor
from sidera.ops.attention import attention, sorted_layout
from sidera.ops.shared_keys import Streams, shared_attention

SPECIAL = tuple(processor.OPERATIONS)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """oneDNN's products are taken wherever they run, however fast they are here."""
    monkeypatch.setattr(processor, "ONEDNN_PAYS", 0.0)
    processor.forget()
    yield
    processor.forget()


def refuse(*arguments: Any) -> NoReturn:
    raise RuntimeError("needs a unit that this processor has not")


def disturb(*arguments: Any) -> torch.Tensor:
    return torch.full_like(arguments[0], 7.0)


FAKES = {"absent": None, "refusing": refuse, "wrong": disturb}


def fake(monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    """torch as it would be if one operation were absent, raised, or answered nonsense."""
    body = SimpleNamespace() if FAKES[how] is None else SimpleNamespace(faked=FAKES[how])
    monkeypatch.setattr(torch, "_sidera_fake", body, raising=False)
    monkeypatch.setitem(processor.OPERATIONS, name, "_sidera_fake.faked")
    processor.forget()


def products() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 24, generator=generator), torch.randn(56, 24, generator=generator)
    return [
        *(product(x, weight, relu) for relu in (False, True)),
        *(product(x, packed(weight, 40), relu) for relu in (False, True)),
        product(x[:2], packed(weight, 40)),
        processor.chosen_products(x[:2], weight, torch.tensor([[55, 0, 7, 7], [1, 54, 3, 0]]), weight[:, 0]),
    ]


def gradients() -> list[torch.Tensor]:
    """Results and gradients of everything that is written by hand on top of the special operations."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    qkv, bias, x, up, down = drawn(23, 3, 2, 8), drawn(2, 5, 5), drawn(30, 16), drawn(24, 16), drawn(16, 24)
    q, k, v = drawn(6, 1, 6, 4), drawn(3, 2, 7, 4), drawn(3, 2, 7, 4)
    mask = torch.ones(3, 7, dtype=torch.bool)
    outs = [
        attention(None, qkv, sorted_layout([5, 5, 5, 4, 4]), bias=bias),
        feed_forward(x, up, down, 0.0),
        shared_attention(q, k, v, mask, Streams(3, 2, runs=((3, 2),))),
    ]
    sum((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outs).backward()
    return [*outs, *(leaf.grad for leaf in (qkv, bias, x, up, down, q, k, v))]


@pytest.mark.parametrize("how", FAKES)
@pytest.mark.parametrize("name", SPECIAL)
def test_the_plain_body_answers_what_the_special_one_does(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [*products(), *gradients()]
        fake(monkeypatch, name, how)
        assert not processor.runs(name)
        found = [*products(), *gradients()]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_body_that_is_used_agrees_with_the_reference(name: str) -> None:
    """Where torch serves it, that is; the loop over formats also proves that a refusal never escapes."""
    for dtype in (torch.float32, torch.bfloat16):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            served = processor.runs(name, dtype)
        if served:
            found, expected = processor._EXAMPLES[name](dtype, "cpu")
            torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.05)


def test_a_refusal_is_said_once_and_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "softmax_backward", "refusing")
    with pytest.warns(RuntimeWarning, match="a unit that this processor has not"):
        assert not processor.runs("softmax_backward")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not processor.runs("softmax_backward")


def test_without_onednn_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight = torch.randn(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packed(weight, 64) is weight
        torch.testing.assert_close(product(torch.eye(3).repeat(9, 1), weight)[:3], weight.t())


def test_what_cannot_be_packed_is_multiplied_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 weights on a processor whose oneDNN packs none: the case that used to end in a RuntimeError."""
    fake(monkeypatch, "pack", "refusing")
    weight, x = torch.randn(48, 32).bfloat16(), torch.randn(20, 32).bfloat16()
    with pytest.warns(RuntimeWarning, match=r"bfloat16"):
        laid_out = packed(weight, 64)
    assert laid_out is weight
    torch.testing.assert_close(product(x, laid_out).float(), x.float() @ weight.float().t(), rtol=0.02, atol=0.1)


def test_a_product_that_is_no_faster_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([1.0, 0.9, 1.0, 0.7])  # torch's own and oneDNN's, first of a packed weight, then of a plain one
    weight = torch.ones(3, 2)
    with monkeypatch.context() as patch:
        patch.setattr(processor, "runs", lambda *asked: True)
        patch.setattr(processor, "pack", lambda weight, num_rows: weight)
        patch.setattr(processor, "_fastest", lambda product: next(spent))
        patch.setattr(processor, "ONEDNN_PAYS", 1.25)
        assert packed(weight, 64) is weight
        assert not processor.pays(torch.float32, is_packed=True)
        assert processor.pays(torch.float32, is_packed=False)


def test_trying_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in SPECIAL:
            processor.runs(name)
        processor.resolve_precision("auto", "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_x86_without_the_flags_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "_seconds", lambda square: {torch.float32: 3.0, torch.bfloat16: 1.0}[square.dtype])
    for bf16, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=bf16: answer, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=amx: answer, raising=False)
        processor.forget()
        assert processor.emulates_bf16("cpu") != (bf16 or amx)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # a torch that does not know them any more
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    processor.forget()
    assert processor.emulates_bf16("cpu")


@pytest.mark.parametrize(("bf16_seconds", "resolved"), [(1.0, "bf16"), (2.9, "f32"), (30.0, "f32"), (None, "f32")])
def test_auto_is_what_the_processor_does_well(
    bf16_seconds: float | None, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(square: torch.Tensor) -> float:
        if square.dtype == torch.float32:
            return 3.0
        if bf16_seconds is None:
            raise RuntimeError("no such product")
        return bf16_seconds

    monkeypatch.setattr(processor.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(processor, "_seconds", seconds)
    assert processor.resolve_precision("auto", "cpu") == resolved
    assert processor.resolve_precision("f32", "cpu") == "f32"
    assert processor.resolve_precision("bf16", "cpu") == "bf16"  # who asks for it gets it


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_is_asked_itself(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert processor.resolve_precision("auto", "cuda") == ("bf16" if has_bf16 else "f32")
    assert processor.resolve_precision("auto", "cuda:1") == ("bf16" if has_bf16 else "f32")
