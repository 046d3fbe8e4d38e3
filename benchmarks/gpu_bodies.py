"""Every body that a CUDA device runs, held equal to a reference: for ``benchmarks/gpu.py``.

Each check takes a device and a number format and returns the largest error of values and gradients (:func:`distance`).
The reference is plain torch on the CPU in float64, or the CPU's own body where that is the reference. An answer of ids
or masks has error 0 or 1. ``LIMITS`` says what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_numbers import differs, distance, random
from gpu_searches import SEARCHES
from sidera.nn import t5_functions
from sidera.nn.code_decoder import CodeDecoder, DecoderSize
from sidera.nn.moe import MoE
from sidera.nn.product import packed, product
from sidera.ops.attention import attention, equal_layout, layout_of, looped_attention, sorted_layout
from sidera.ops.dropout import dropout, keep_mask, rounded_rate
from sidera.ops.shared_keys import Streams

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
LENGTHS = (17, 1, 0, 30, 6, 6)
Function = Callable[..., Tensor]


def error(body: Function, reference: Function, inputs: Sequence[Tensor], device: str, dtype: torch.dtype) -> float:
    """Of outputs and of the gradients of all inputs, ``body`` on ``device`` against ``reference`` in float64."""
    here = [value.detach().to(dtype).double().requires_grad_() for value in inputs]  # rounded as the body's are
    there = [value.detach().to(device, dtype, copy=True).requires_grad_() for value in inputs]
    wanted, found = reference(*here), body(*there)
    pull = random(*wanted.shape, seed=99)
    wanted.backward(pull.double())
    found.backward(pull.to(found.device, found.dtype))
    errors = [distance(found, wanted)]
    for mine, theirs in zip(there, here, strict=True):
        if mine.grad is None or theirs.grad is None:
            raise AssertionError("an input got no gradient")
        errors.append(distance(mine.grad, theirs.grad))
    return max(errors)


# ---- attention -------------------------------------------------------------------------------------------------------


def attention_of_histories(device: str, dtype: torch.dtype) -> float:
    """Grouped jagged attention against one history at a time, causal and not; and few queries of each history's own."""
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    packed, layout = random(int(offsets[-1]), 3, 2, 16), layout_of(offsets.to(device))
    own = max(
        error(
            lambda qkv, c=causal: attention(None, qkv, layout, causal=c),
            lambda qkv, c=causal: looped_attention(*qkv.unbind(1), offsets=offsets, causal=c),
            [packed],
            device,
            dtype,
        )
        for causal in (True, False)
    )
    bounds = torch.arange(0, 4 * len(LENGTHS) + 1, 4)
    asked = error(
        lambda q, kv: attention(q, kv, layout.asked_by(4)),
        lambda q, kv: looped_attention(q, *kv.unbind(1), offsets=bounds, key_offsets=offsets),
        [random(4 * len(LENGTHS), 2, 16, seed=1), random(int(offsets[-1]), 2, 2, 16, seed=2)],
        device,
        dtype,
    )
    return max(own, asked)


def attention_inside_a_stream(device: str, dtype: torch.dtype) -> float:
    """Causal attention over few positions."""
    offsets = torch.arange(0, 37, 4)
    return error(
        lambda qkv: attention(None, qkv, equal_layout(9, 4), causal=True),
        lambda qkv: looped_attention(*qkv.unbind(1), offsets=offsets, causal=True),
        [random(36, 3, 2, 16)],
        device,
        dtype,
    )


def code_decoder(device: str, dtype: torch.dtype) -> float:
    """A decoder's log-probabilities and gradients with jagged targets, against the same weights on the CPU, where few
    queries have a body of their own; with experts and with shared heads of keys."""
    size = DecoderSize(32, 2, 4, 2, 48, 0.0, num_experts=3, num_active=2, expert_width=16)
    torch.manual_seed(0)
    model = CodeDecoder(size, (7, 5, 4))
    twin = CodeDecoder(size, (7, 5, 4))
    twin.load_state_dict(model.state_dict())
    twin.to(device)
    offsets = torch.tensor([0, 2, 2, 5, 6])
    sids = torch.stack([torch.randint(k, (6,), generator=torch.Generator().manual_seed(k)) for k in (7, 5, 4)], 1)
    mask = torch.arange(11) < torch.tensor([11, 3, 7, 1])[:, None]
    grads, outs = [], []
    for decoder, where in ((model, "cpu"), (twin, device)):
        keys, values = (random(4, 2, 11, 8, seed=seed).to(where).requires_grad_() for seed in (1, 2))
        halved = dtype != torch.float32 and decoder is twin
        streams = Streams.of(offsets.to(where))
        with torch.autocast(torch.device(where).type, torch.bfloat16, enabled=halved):
            out = decoder.log_probs(sids.to(where), [(keys, values)] * 2, mask.to(where), streams)
        out.float().sum().backward()
        outs.append(out)
        with_gradient = (keys, values, *decoder.parameters())
        grads.append([one.grad for one in with_gradient if one.grad is not None])
    scale = max(float(one.abs().max()) for one in grads[0])
    off = max(float((a.cpu() - b.cpu()).abs().max()) / scale for a, b in zip(grads[1], grads[0], strict=True))
    return max(distance(outs[1], outs[0]), off)


# ---- the functions of a T5 layer ------------------------------------------------------------------------------------


def t5_norm_and_products(device: str, dtype: torch.dtype) -> float:
    x, up, down = random(37, 24), random(40, 24, seed=1), random(24, 40, seed=2)
    low = dtype

    def unit(value: Tensor) -> Tensor:
        return value * (value.square().mean(-1, keepdim=True) + t5_functions.EPSILON).rsqrt()

    return max(
        error(lambda v: t5_functions.unit_rms(v, low), unit, [x], device, torch.float32),
        error(t5_functions.linear, lambda v, w: v @ w.T, [x, up], device, dtype),
        error(
            lambda v, a, b: t5_functions.feed_forward(v, a, b, 0.0),
            lambda v, a, b: (v @ a.T).relu() @ b.T,
            [x, up, down],
            device,
            dtype,
        ),
        error(lambda v, w: t5_functions.add_dropped(v, w, 0.0), torch.add, [x, x.flip(0)], device, torch.float32),
    )


def t5_attention(device: str, dtype: torch.dtype) -> float:
    """Neighbouring rows of equal length with a position bias: of a row to itself, and to another."""
    lengths, heads = (5, 5, 3, 1), 2
    offsets, layout, bias = torch.tensor([0, *lengths]).cumsum(0), sorted_layout(lengths), random(heads, 5, 5, seed=3)
    bounds = torch.arange(0, 9, 2)
    own = error(
        lambda qkv, b: attention(None, qkv, layout, bias=b.float(), scale=1.0),
        lambda qkv, b: looped_attention(*qkv.unbind(1), offsets=offsets, bias=b, scale=1.0),
        [random(sum(lengths), 3, heads, 4, seed=4), bias],
        device,
        dtype,
    )
    asked = error(
        lambda q, kv: attention(q, kv, layout.asked_by(2), scale=1.0),
        lambda q, kv: looped_attention(q, *kv.unbind(1), offsets=bounds, key_offsets=offsets, scale=1.0),
        [random(8, heads, 4, seed=6), random(sum(lengths), 2, heads, 4, seed=5)],
        device,
        dtype,
    )
    return max(own, asked)


def products(device: str, dtype: torch.dtype) -> float:
    """The products of answering, with a packed weight and with a plain one."""
    x, weight = random(33, 24), random(16, 24, seed=1)
    wanted = F.linear(x.double(), weight.double()).relu()
    with torch.inference_mode():
        x, weight = x.to(device, dtype), weight.to(device, dtype)
        return max(distance(product(x, w, relu=True), wanted) for w in (weight, packed(weight, 33)))


# ---- dropout and experts --------------------------------------------------------------------------------------------


def dropouts(device: str, dtype: torch.dtype) -> float:
    """Share and expectation within five deviations, the gradient has the mask of the output, a seed repeats it."""
    rate, size = 0.3, 400_000
    x = torch.ones(size, device=device, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(x, rate)
    out.sum().backward()
    torch.manual_seed(1)
    again = dropout(x.detach(), rate)
    assert x.grad is not None
    wrong = [differs(x.grad != 0, out != 0), differs(again, out)]
    deviation = (rate * (1 - rate) / size) ** 0.5
    for kept in (float((out != 0).double().mean()), float(keep_mask((size,), rate, device).double().mean())):
        wrong.append(float(min(abs(1 - kept - rate), abs(1 - kept - rounded_rate(rate))) > 5 * deviation))
    wrong.append(float(abs(float(out.detach().double().mean()) - 1) > 5 * deviation / (1 - rate) + 4e-3))
    return max(wrong)


def experts(device: str, dtype: torch.dtype) -> float:
    """Routing against a loop over tokens and experts in float64; loads are counted the same."""
    worst = 0.0
    for gate in ("sigmoid", "softmax"):
        torch.manual_seed(0)
        moe = MoE(12, 8, 6, 2, 1, gate)
        moe.bias.copy_(torch.linspace(-0.2, 0.2, 6))
        x = random(40, 12)
        wanted = _looped_experts(moe.double(), x.double())
        there = moe.float().to(device).train()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype != torch.float32):
            found = there(x.to(device))
        if dtype == torch.float32:  # in half precision another expert may be chosen
            worst = max(worst, distance(found, wanted))
        worst = max(worst, float(int(there.counts.sum()) != 80), float(not bool(found.isfinite().all())))
    return worst


def _looped_experts(moe: Any, x: Tensor) -> Tensor:
    rows = []
    for token in x:
        logits = moe.router(token)
        scores = logits.sigmoid() if moe.gate == "sigmoid" else logits.softmax(0)
        chosen = (scores + moe.bias).topk(moe.num_active).indices.tolist()
        total = sum(scores[one] for one in chosen) if moe.gate == "sigmoid" else 1.0
        row = moe.shared(token)
        for one in chosen:
            gate, up = (token @ moe.gate_up[one]).chunk(2)
            row = row + scores[one] / total * ((F.silu(gate) * up) @ moe.down[one])
        rows.append(row)
    return torch.stack(rows)


CHECKS: dict[str, Callable[[str, torch.dtype], float]] = {
    check.__name__: check
    for check in (
        attention_of_histories, attention_inside_a_stream, code_decoder, t5_norm_and_products, t5_attention, products,
        dropouts, experts, *SEARCHES,
    )
}  # fmt: skip
