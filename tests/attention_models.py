"""One attention, its scale written into the code, with its queries made in every way that models make them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BASE, HEADS = 16, 2


class Attention(nn.Module):
    """Two heads, whatever the width: head_dim grows. No float attribute is the softmax scale.

    Args:
        width: of q, k and v together.
        by_hand: the logits are scaled as muP wants it, in the code: by 1/d, as large as 1/sqrt(d) at the base.
        mult: the logits are multiplied by it, in the code.
    """

    def __init__(self, width: int, *, by_hand: bool = False, mult: str = "1") -> None:
        super().__init__()
        self.width, self.by_hand, self.mult = width, by_hand, mult
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 3)
        self.build(width)

    def build(self, width: int) -> None:
        self.qkv = nn.Linear(width, 3 * width)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.heads(q), self.heads(k), self.heads(v)

    def scale(self, head_dim: int) -> float:
        at_base = (BASE // HEADS) ** 0.5
        return float(self.mult) * (at_base / head_dim if self.by_hand else head_dim**-0.5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, scale=self.scale(q.shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(x + self.attend(*self.project(x)).transpose(1, 2).flatten(-2))


class EveryHeadApart(Attention):
    """The rows of q, k and v alternate by head (GPT-NeoX)."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv(x).unflatten(-1, (HEADS, -1)).transpose(1, 2).chunk(3, -1)


class Grouped(Attention):
    """Two queries share a key and a value, the rows of which are written together (Falcon)."""

    def build(self, width: int) -> None:
        self.qkv = nn.Linear(width, 2 * width, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = self.qkv(x).unflatten(-1, (1, 4, -1))
        q, k, v = groups[..., :-2, :], groups[..., [-2], :], groups[..., [-1], :]
        return tuple(t.expand(*x.shape[:-1], 1, 2, -1).flatten(2, 3).transpose(1, 2) for t in (q, k, v))


class Transposed(Attention):
    """The weight is (in, out), as in GPT-2's Conv1D."""

    def build(self, width: int) -> None:
        self.w, self.b = nn.Parameter(torch.randn(width, 3 * width) * width**-0.5), nn.Parameter(torch.zeros(3 * width))

    def qkv(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, x.flatten(0, 1), self.w).unflatten(0, x.shape[:2])


class Convolved(Attention):
    """A 1x1 convolution over positions."""

    def build(self, width: int) -> None:
        self.conv = nn.Conv1d(width, 3 * width, 1)

    def qkv(self, x: Tensor) -> Tensor:
        return self.conv(x.mT).mT


class BiasApart(Attention):
    """The layer is not called: its weight is read, and the bias put together from parts (BEiT)."""

    def build(self, width: int) -> None:
        self.layer = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def qkv(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias])
        return functional.linear(x, self.layer.weight, bias)


class Rotated(Attention):
    """Positions rotate q and k after they are split (RoPE)."""

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / torch.arange(1, x.shape[-1] // 2 + 1)
        cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat([-other, one], -1) * sin

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return self.rotated(q), self.rotated(k), v


class RotatedInPlace(Rotated):
    """The rotation is written into a part of each head."""

    def rotated(self, x: Tensor) -> Tensor:
        x, half = x.contiguous() + 0, x.shape[-1] // 2
        x[..., :half] = super().rotated(x[..., :half].clone())
        return x


class QkNorm(Attention):
    """A gain makes the queries, whatever size the projection has."""

    def build(self, width: int) -> None:
        super().build(width)
        self.q_norm, self.k_norm = nn.RMSNorm(width // HEADS), nn.RMSNorm(width // HEADS)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class RelativePositions(Attention):
    """The queries meet positions too, which no softmax scale multiplies (SAM): the keys must carry it."""

    def build(self, width: int) -> None:
        super().build(width)
        self.relative = nn.Parameter(torch.zeros(11, width // HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        index = torch.arange(6)[:, None] - torch.arange(6) + 5
        positions = torch.einsum("bhqd,qkd->bhqk", q, self.relative[index])
        return (q @ k.mT * self.scale(q.shape[-1]) + positions).softmax(-1) @ v


class WrittenOut(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.mT * self.scale(q.shape[-1])
        return logits.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1) @ v


class Torchs(Attention):
    """nn.MultiheadAttention, which knows one scale only: by hand the reference multiplies its query rows."""

    def build(self, width: int) -> None:
        self.core = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x, head_dim = self.inp(x), self.width // HEADS
        if not self.by_hand and self.mult == "1":
            return self.out(x + self.core(x, x, x, need_weights=False)[0])
        q, k, v = functional.linear(x, self.core.in_proj_weight, self.core.in_proj_bias).chunk(3, -1)
        mixed = self.attend(self.heads(q), self.heads(k), self.heads(v)).transpose(1, 2).flatten(-2)
        assert head_dim * HEADS == self.width
        return self.out(x + self.core.out_proj(mixed))


class Gated(Attention):
    """The queries are a gate as well."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(q, k, v) * torch.sigmoid(q + k)


class Shuffled(Attention):
    """Which entries are queries is in a buffer: what a trace sees of it is not what will be there."""

    def build(self, width: int) -> None:
        super().build(width)
        self.register_buffer("order", torch.arange(3 * width).flip(0))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.heads(part) for part in self.qkv(x)[..., self.order].chunk(3, -1))


class OneForBoth(Attention):
    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, _, v = super().project(x)
        return q, q.flip(-2), v


class Cosine(Attention):
    """q and k have length 1, so their product is as large at every head_dim; each head has a temperature."""

    def build(self, width: int) -> None:
        super().build(width)
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), 7.0))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
        return (logits * self.temperature * float(self.mult)).softmax(-1) @ v


class FixedCosine(Cosine):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
        return (logits * 7 + 0 * self.temperature).softmax(-1) @ v


class RootMeanSquare(Cosine):
    """Entries of size 1 instead: here the product grows."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (functional.rms_norm(t, t.shape[-1:]) for t in (q, k))
        return (q @ k.mT / q.shape[-1] * self.temperature).softmax(-1) @ v


KINDS = [Attention, EveryHeadApart, Grouped, Transposed, Convolved, BiasApart, Rotated, RotatedInPlace, QkNorm,
         RelativePositions, WrittenOut, Torchs]  # fmt: skip
FUSED = [kind for kind in KINDS if kind is not QkNorm]
