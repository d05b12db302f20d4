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
        wide = 5 * width - 16  # another ratio at every width, so that m_in and m_out of `up` and `down` differ
        self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)
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


class SharedWeight(nn.Module):
    """Two layers, two names, one tensor, hidden and readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.one, self.two = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out, self.other = nn.Linear(width, 7), nn.Linear(width, 7)
        self.two.weight, self.other.weight = self.one.weight, self.out.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(torch.tanh(self.inp(x))))
        return self.out(hidden) + self.other(torch.tanh(self.two(hidden)))


class Convolutional(nn.Module):
    """Images of 3 channels; m_in and m_out of the second convolution differ."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.mid, self.out = nn.Conv2d(width, 3 * width - 8, 3), nn.Linear(3 * width - 8, 7)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.inp(x)))
        return self.out(torch.relu(self.mid(hidden)).mean((2, 3)))


class Recurrent(nn.Module):
    """torch's own LSTM, whose four gates share a matrix and whose forward reads its weights from a list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(2 * width - 4, 7)
        self.lstm = nn.LSTM(width, 2 * width - 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.inp(x))[0])


class Attending(nn.Module):
    """nn.MultiheadAttention reads out_proj.weight itself: the forward of out_proj is never called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.attention = nn.Linear(5, width), nn.MultiheadAttention(width, width // 8, batch_first=True)
        self.out = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


class Experts(nn.Module):
    """Three experts in one 3-D tensor each, and a router."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 3 * width - 8
        self.inp, self.router, self.out = nn.Linear(5, width), nn.Linear(width, 3), nn.Linear(width, 7)
        self.up = nn.Parameter(torch.randn(3, width, wide) * width**-0.5)
        self.down = nn.Parameter(torch.randn(3, wide, width) * wide**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inp(x))
        hidden = torch.relu(torch.einsum("btw,ewf->btef", x, self.up))
        return self.out(x + torch.einsum("btef,efw,bte->btw", hidden, self.down, self.router(x).softmax(-1)))
