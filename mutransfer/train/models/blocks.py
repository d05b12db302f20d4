"""The pre-norm transformer block that the decoder and the ViT share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NORMS: dict[str, type[nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
ACTIVATIONS = ("gelu", "swiglu")


def make_norm(kind: str, width: int, *, bias: bool) -> nn.Module:
    """A norm over the last dimension; RMSNorm never has a bias."""
    return nn.RMSNorm(width, eps=1e-5) if kind == "rmsnorm" else nn.LayerNorm(width, bias=bias)


class Attention(nn.Module):
    """Multi-head attention, with `kv_groups` query heads to each key-value head.

    Attributes:
        softmax_scale: what the logits are multiplied by, 1/sqrt(head_dim); a plain float that can be set from outside.
    """

    def __init__(
        self, width: int, head_dim: int, *, kv_groups: int = 1, bias: bool = False, causal: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.head_dim, self.kv_groups, self.causal, self.dropout = head_dim, kv_groups, causal, dropout
        self.softmax_scale = 1 / math.sqrt(head_dim)
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, width // kv_groups, bias=bias)
        self.v = nn.Linear(width, width // kv_groups, bias=bias)
        self.o = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = (rearrange(f(x), "b t (h d) -> b h t d", d=self.head_dim) for f in (self.q, self.k, self.v))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
            scale=self.softmax_scale,
            enable_gqa=self.kv_groups > 1,
        )
        out: Tensor = self.o(rearrange(mixed, "b h t d -> b t (h d)"))
        return out


class RotaryPositions(nn.Module):
    """Cosines and sines of rotary positions, each (length, head_dim / 2)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, head_dim: int) -> None:
        super().__init__()
        frequency = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angle = torch.outer(torch.arange(length).float(), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        return self.cos[:length], self.sin[:length]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (x[i], x[i + d/2]) of a (batch, heads, length, d) tensor by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class FeedForward(nn.Module):
    """up, activation, down; SwiGLU has a gate beside up."""

    def __init__(self, width: int, hidden: int, *, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias) if activation == "swiglu" else None
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        out: Tensor = self.down(hidden)
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, norms: tuple[nn.Module, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = norms[0], attention
        self.feed_forward_norm, self.feed_forward = norms[1], feed_forward
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation))
        out: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return out
