"""Hand-written modules of the kind that users bring: fused, transposed, tied, loose and convolutional."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

VOCAB = 31


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.softmax_scale = (width // heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.softmax_scale)
        x = x + self.out(rearrange(mixed, "b h t d -> b t (h d)"))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Pre-norm decoder with fused qkv, loose positions and, if asked, a tied readout."""

    def __init__(self, width: int, *, tied: bool = False, head_dim: int = 8, heads: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.positions = nn.Parameter(torch.randn(1, 16, width))
        self.blocks = nn.ModuleList(Block(width, heads or width // head_dim) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, VOCAB, bias=not tied)
        if tied:
            self.readout.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.positions[:, : ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


def token_batches(steps: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (steps, 4, 9), generator=generator)
    return [(batch[:, :-1], batch[:, 1:]) for batch in ids]


def token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, targets = batch
    return functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
