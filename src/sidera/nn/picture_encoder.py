"""A small picture encoder that can be trained on a CPU beside everything else: 32 x 32 pixels -> 16 tokens.

Patches of 4 pixels, then two convolutions; group norm, so that a batch's other pictures do not matter. The
tokens keep their place (a 4 x 4 grid with an embedding each), and a QFormer reads them as it reads words.

Shape legend: n pictures · S side in pixels · D width · G side of the grid of tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 4


class PictureEncoder(nn.Module):
    """(n, S, S, 3) uint8 -> (n, 16, D)."""

    def __init__(self, width: int, channels: int = 32) -> None:
        super().__init__()
        self.width, self.channels = width, channels
        self.patches = nn.Conv2d(3, channels, kernel_size=4, stride=4)
        self.norm = nn.GroupNorm(1, channels)
        self.shrink = nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1)
        self.norm_shrunk = nn.GroupNorm(1, 2 * channels)
        self.out = nn.Conv2d(2 * channels, width, kernel_size=3, padding=1)
        self.place = nn.Parameter(0.02 * torch.randn(GRID * GRID, width))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # (n, 3, S, S)
        x = F.gelu(self.norm(self.patches(x)))  # (n, C, S/4, S/4)
        x = F.gelu(self.norm_shrunk(self.shrink(x)))  # (n, 2C, S/8, S/8)
        x = self.out(x)
        if x.shape[-1] != GRID:
            x = F.adaptive_avg_pool2d(x, GRID)
        return x.flatten(2).transpose(1, 2) + self.place  # (n, 16, D)
