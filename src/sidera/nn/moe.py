"""Mixture of experts for decoder feed-forwards: sparse SwiGLU experts whose load is balanced without a loss term.

Two gates. ``sigmoid``: DeepSeek-V3's (arXiv 2412.19437), used by OneRec's technical report (2506.13695, 2.3) and V2
(2508.20900): scores are sigmoids, the chosen ones are normalised to sum 1. ``softmax``: OneRec v1's (2502.18965): a
softmax over all experts whose chosen values are used as they are. In both a bias per expert is added to the scores *for
choosing only*; after every step it moves by ``gamma`` towards under-used experts ("loss-free balancing", 2408.15664).
Experts that are always on (``num_shared``) are one wider feed-forward.

Traps: the bias must not enter the gate's value, or it becomes part of the function; loads are counted in training only;
under DDP they are summed over the ranks, or each rank would balance another router.

Shape legend: M tokens · D width · E experts · K experts per token · F hidden width of an expert.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sidera.core import InputError

Gate = Literal["sigmoid", "softmax"]


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MoE(nn.Module):
    """``num_active`` of ``num_experts`` SwiGLU experts per token, and ``num_shared`` that every token uses."""

    bias: Tensor
    counts: Tensor
    load: Tensor

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        num_active: int,
        num_shared: int = 0,
        gate: Gate = "sigmoid",
        gamma: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 1 <= num_active <= num_experts:
            raise InputError(f"num_active = {num_active}", allowed=f"1 to {num_experts} (num_experts)")
        self.num_experts, self.num_active, self.gate, self.gamma = num_experts, num_active, gate, gamma
        self.router = nn.Linear(width, num_experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(num_experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(num_experts, hidden, width))
        nn.init.normal_(self.gate_up, std=width**-0.5)
        nn.init.normal_(self.down, std=hidden**-0.5)
        self.shared = SwiGLU(width, num_shared * hidden) if num_shared else None
        self.register_buffer("bias", torch.zeros(num_experts))
        self.register_buffer("counts", torch.zeros(num_experts))  # tokens since the last balancing
        self.register_buffer("load", torch.full((num_experts,), 1 / num_experts))  # running share of the tokens

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), without the residual."""
        x_MD = x.reshape(-1, x.shape[-1])
        chosen_MK, weights_MK = self.route(x_MD)
        order = chosen_MK.flatten().argsort(stable=True)  # (M*K,) token slots, expert after expert
        tokens = order // self.num_active
        slots = chosen_MK.flatten()
        counts = slots.new_zeros(self.num_experts).scatter_add_(0, slots, torch.ones_like(slots))
        weights = weights_MK.flatten()[order].unsqueeze(1)
        answers = self._grouped(x_MD[tokens], counts) if _groups(x_MD) else self._one_by_one(x_MD[tokens], counts)
        out = torch.zeros_like(x_MD).index_add(0, tokens, (answers * weights).to(x_MD.dtype))
        if self.training:
            self.counts += counts
        if self.shared is not None:
            out = out + self.shared(x_MD)
        return out.view_as(x)

    def _one_by_one(self, x: Tensor, counts: Tensor) -> Tensor:
        """Tokens that stand expert after expert, (M*K, D) -> (M*K, D): an expert at a time. Waits for the counts."""
        parts = []
        for expert, part in enumerate(x.split(counts.tolist())):
            if len(part):
                gate, up = (part @ self.gate_up[expert]).chunk(2, dim=-1)
                parts.append((F.silu(gate) * up) @ self.down[expert])
        return torch.cat(parts)

    def _grouped(self, x: Tensor, counts: Tensor) -> Tensor:
        """The same in two calls of torch's grouped product in bfloat16; nothing waits for the counts."""
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(x.bfloat16(), self.gate_up.bfloat16(), offs=ends).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, self.down.bfloat16(), offs=ends)

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Experts (M, K) of each token and the weights (M, K) of their outputs."""
        logits = self.router(x_MD).float()
        scores = logits.sigmoid() if self.gate == "sigmoid" else logits.softmax(-1)  # (M, E)
        chosen = (scores.detach() + self.bias).topk(self.num_active, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.gate == "sigmoid":
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
        return chosen, weights.to(x_MD.dtype)

    @torch.no_grad()
    def balance(self) -> None:
        """Once per optimizer step: move the biases by the loads counted since the last call, and forget these."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)
        total = self.counts.sum()  # 0: nothing was counted, and nothing moves. Asking for it would wait for the device
        self.bias += self.gamma * (self.counts.mean() - self.counts).sign()
        self.load.lerp_(torch.where(total > 0, self.counts / total.clamp(min=1), self.load), 0.05)
        self.counts.zero_()


def _groups(x: Tensor) -> bool:
    """Whether the grouped product takes these tokens: in bfloat16, on a device that has it (Hopper and later)."""
    if not x.is_cuda:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    wide = x.shape[-1] % 8 == 0  # its rows begin at multiples of 16 bytes
    return wide and dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (9, 0)


def balance_experts(model: nn.Module) -> None:
    """Balance every :class:`MoE` inside ``model``; call it at the start of each training loss."""
    for module in model.modules():
        if isinstance(module, MoE):
            module.balance()
