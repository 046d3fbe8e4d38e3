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
        counts = torch.bincount(chosen_MK.flatten(), minlength=self.num_experts)
        weights = weights_MK.flatten()[order].unsqueeze(1)
        parts = []
        for expert, part in enumerate(x_MD[tokens].split(counts.tolist())):
            if len(part):
                gate, up = (part @ self.gate_up[expert]).chunk(2, dim=-1)
                parts.append((F.silu(gate) * up) @ self.down[expert])
        out = torch.zeros_like(x_MD).index_add(0, tokens, torch.cat(parts) * weights)
        if self.training:
            self.counts += counts
        if self.shared is not None:
            out = out + self.shared(x_MD)
        return out.view_as(x)

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
        total = self.counts.sum()
        if total == 0:
            return
        self.bias += self.gamma * (self.counts.mean() - self.counts).sign()
        self.load.lerp_(self.counts / total, 0.05)
        self.counts.zero_()


def balance_experts(model: nn.Module) -> None:
    """Balance every :class:`MoE` inside ``model``; call it at the start of each training loss."""
    for module in model.modules():
        if isinstance(module, MoE):
            module.balance()
