"""What this processor does, and does well: found once, by trying, in this one place.

Some products and gradients are fastest in operations that torch keeps private. They may be missing from a build, or
refuse a processor (oneDNN packs bfloat16 weights only where it finds certain vector units, and reads the processor
itself). So each has a plain body beside it, and :func:`runs` tries the operation on a small example: only one that
answers, and answers what the plain body answers, is used. Whose library multiplies faster differs between processors
and releases, so :func:`pays` times oneDNN's products against torch's own.

The same holds for number formats: :func:`emulates_bf16` says whether bfloat16 products bring anything here, and
:func:`resolve_precision` chooses for ``[fit] precision = "auto"``.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["f32", "bf16"]
SIDE = 256  # of the products that are timed
ROUNDS = 5
PAYS = 1.1  # bf16 has to be so many times faster than f32
ONEDNN_PAYS = (
    1.25  # and oneDNN than torch's own: near 1 the choice, and the last digits, would differ between processes
)

# What torch calls them; tests put refusing or missing ones here.
OPERATIONS = {
    "linear": "ops.mkldnn._linear_pointwise.default",
    "pack": "ops.mkldnn._reorder_linear_weight",
    "softmax_backward": "_softmax_backward_data",
    "threshold_backward": "ops.aten.threshold_backward",
    "chosen_products": "sparse.sampled_addmm",
}
ONEDNN = ("linear", "pack")


# -- the operations and their plain bodies ---------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, relu: bool) -> Tensor:
    """x (..., K) times weight (N, K) transposed, by oneDNN; ``weight`` may be packed. Plain: :func:`plain_linear`."""
    out: Tensor = _operation("linear")(x, weight, None, "relu" if relu else "none", [], "")
    return out


def plain_linear(x: Tensor, weight: Tensor, relu: bool) -> Tensor:
    out = F.linear(x, weight)
    return out.relu_() if relu else out


def pack(weight: Tensor, num_rows: int) -> Tensor:
    """``weight`` in oneDNN's layout for about ``num_rows`` rows; only :func:`linear` takes it. Plain: the weight."""
    out: Tensor = _operation("pack")(weight.contiguous(), num_rows)
    return out


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the scores of ``weights`` = softmax(scores, -1), from the gradient of the weights; both (..., S)."""
    if runs("softmax_backward", weights.dtype, weights.device.type):
        out: Tensor = _operation("softmax_backward")(grad, weights, -1, weights.dtype)
        return out
    return plain_softmax_backward(grad, weights)


def plain_softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    along = (grad * weights).sum(-1, keepdim=True)
    return (grad - along).mul_(weights)


def threshold_backward(grad: Tensor, hidden: Tensor) -> Tensor:
    """``grad`` where ``hidden`` is above zero, zero elsewhere: the gradient of a ReLU whose result is ``hidden``."""
    if runs("threshold_backward", hidden.dtype, hidden.device.type):
        out: Tensor = _operation("threshold_backward")(grad, hidden, 0)
        return out
    return plain_threshold_backward(grad, hidden)


def plain_threshold_backward(grad: Tensor, hidden: Tensor) -> Tensor:
    return grad.masked_fill(hidden <= 0, 0)


def chosen_products(rows: Tensor, table: Tensor, index: Tensor, bias: Tensor) -> Tensor:
    """rows (B, D), table (n, D), index (B, P) int64, bias (n,) -> (B, P): each row times the table's rows that it asks
    for, and their biases. No row of the table is copied. Without gradient."""
    if runs("chosen_products", table.dtype, table.device.type):
        return _sampled_products(rows, table, index, bias)
    return plain_chosen_products(rows, table, index, bias)


def _sampled_products(rows: Tensor, table: Tensor, index: Tensor, bias: Tensor) -> Tensor:
    (num_rows, number), asked = index.shape, index.flatten()
    ends = torch.arange(0, num_rows * number + 1, max(1, number), device=table.device)
    pattern = torch.sparse_csr_tensor(ends, asked, bias[asked], (num_rows, len(table)), check_invariants=False)
    out: Tensor = _operation("chosen_products")(pattern, rows, table.T)
    return out.values().view(num_rows, number)


def plain_chosen_products(rows: Tensor, table: Tensor, index: Tensor, bias: Tensor) -> Tensor:
    return torch.bmm(table[index], rows[:, :, None]).squeeze(2) + bias[index]


# -- trying ----------------------------------------------------------------------------------------------------------


@cache
def runs(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> bool:
    """Whether the operation exists here, takes this number format, and agrees with its plain body on an example.

    A refusal is said once, as a RuntimeWarning; a torch built without oneDNN is no refusal.
    """
    if name in ONEDNN and not torch.backends.mkldnn.is_available():
        return False
    try:
        found, expected = _EXAMPLES[name](dtype, device)
    except Exception as error:  # whatever a library's own guard raises
        _say(name, dtype, str(error).splitlines()[0] if str(error) else type(error).__name__)
        return False
    bound = 0.05 if dtype in (torch.bfloat16, torch.float16) else 1e-4
    if found.shape == expected.shape and torch.allclose(found.float(), expected.float(), rtol=bound, atol=bound):
        return True
    _say(name, dtype, "it answers something else than the plain body")
    return False


@cache
def pays(dtype: torch.dtype, is_packed: bool) -> bool:
    """Whether oneDNN's product, of a packed weight or of a plain one, is clearly faster here than torch's own."""
    if not runs("linear", dtype) or (is_packed and not runs("pack", dtype)):
        return False
    x, weight = _ramp(64, 128, dtype=dtype, device="cpu"), _ramp(384, 128, dtype=dtype, device="cpu")
    laid_out = pack(weight, len(x)) if is_packed else weight
    own = _fastest(lambda: plain_linear(x, weight, False))
    return ONEDNN_PAYS * _fastest(lambda: linear(x, laid_out, False)) <= own


def forget() -> None:
    """Try everything again. For tests: a process keeps its processor."""
    for found in (runs, pays, _operation, emulates_bf16, _cpu_bf16_pays):
        found.cache_clear()


def _say(name: str, dtype: torch.dtype, why: str) -> None:
    text = f"torch.{OPERATIONS.get(name, name)} does not serve {dtype} here ({why}); the plain body answers instead"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


@cache
def _operation(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = attrgetter(OPERATIONS[name])(torch)  # AttributeError: this build has none
    return found


def _ramp(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Numbers in [-1, 1] that are not drawn: trying must leave the random generator as it was."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, device=device).roll(count // 3).view(shape).to(dtype)


def _try_linear(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    x, weight = _ramp(32, 24, dtype=dtype, device=device), _ramp(40, 24, dtype=dtype, device=device)
    found = torch.cat([linear(x, weight, relu) for relu in (False, True)])
    return found, torch.cat([plain_linear(x, weight, relu) for relu in (False, True)])


def _try_pack(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    x, weight = _ramp(32, 24, dtype=dtype, device=device), _ramp(40, 24, dtype=dtype, device=device)
    return linear(x, pack(weight, 32), True), plain_linear(x, weight, True)  # of no use without the product


def _try_softmax_backward(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    weights = _ramp(4, 6, dtype=dtype, device=device).softmax(-1)
    grad = _ramp(4, 6, dtype=dtype, device=device)
    return _operation("softmax_backward")(grad, weights, -1, dtype), plain_softmax_backward(grad, weights)


def _try_threshold_backward(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    hidden = _ramp(4, 6, dtype=dtype, device=device).relu()
    grad = _ramp(4, 6, dtype=dtype, device=device).neg()
    return _operation("threshold_backward")(grad, hidden, 0), plain_threshold_backward(grad, hidden)


def _try_chosen_products(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    rows, table = _ramp(2, 24, dtype=dtype, device=device), _ramp(40, 24, dtype=dtype, device=device)
    index = torch.arange(10, device=device).view(2, 5).mul(7).remainder(40)
    bias = table[:, 0].contiguous()
    with warnings.catch_warnings():  # that torch's sparse tensors are young
        warnings.simplefilter("ignore")
        found = _sampled_products(rows, table, index, bias)
    return found, plain_chosen_products(rows, table, index, bias)


_EXAMPLES: dict[str, Callable[[torch.dtype, str], tuple[Tensor, Tensor]]] = {
    "linear": _try_linear,
    "pack": _try_pack,
    "softmax_backward": _try_softmax_backward,
    "threshold_backward": _try_threshold_backward,
    "chosen_products": _try_chosen_products,
}


# -- number formats --------------------------------------------------------------------------------------------------


@cache
def emulates_bf16(device: torch.device | str) -> bool:
    """Whether products in bf16 bring nothing on this device, most often because they are emulated."""
    kind = torch.device(device).type
    if kind == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return kind != "cpu" or not _cpu_bf16_pays()


def resolve_precision(asked: str, device: torch.device | str) -> Precision:
    """The number format of products for ``[fit] precision``: "auto" is bf16 where the device is faster with it."""
    if asked == "auto":
        return "f32" if emulates_bf16(device) else "bf16"
    return "bf16" if asked == "bf16" else "f32"


@cache
def _cpu_bf16_pays() -> bool:
    """bf16 products run here, and faster than f32; x86 without AVX512-BF16 and AMX is known to emulate them."""
    if platform.machine() in ("x86_64", "AMD64") and not _x86_has_bf16():
        return False
    left = _ramp(SIDE, SIDE, dtype=torch.float32, device="cpu")
    halved = left.bfloat16()
    try:
        return PAYS * _seconds(halved) < _seconds(left)
    except RuntimeError:  # no product in bf16 at all
        return False


def _x86_has_bf16() -> bool:
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)


def _seconds(square: Tensor) -> float:
    """Of a product with a transposed matrix, as layers multiply."""
    return _fastest(lambda: F.linear(square, square))


def _fastest(product: Callable[[], Tensor]) -> float:
    """Seconds of the fastest of a few calls; the first is not counted."""
    product()
    spent = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        product()
        spent.append(time.perf_counter() - started)
    return min(spent)
