"""A small vision transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mutransfer.errors import ConfigError
from mutransfer.train.models.blocks import ACTIVATIONS, NORMS, Attention, Block, FeedForward, make_norm
from mutransfer.train.models.heads import hidden_size, resolve_head_dim
from mutransfer.train.models.init import init_standard
from mutransfer.train.settings import check_choice, check_fraction, check_positive, check_whole


@dataclass(frozen=True)
class ViTConfig:
    """Sizes and variants of a vision transformer.

    Attributes:
        width, depth, head_dim, n_heads, mlp_ratio, activation, norm, bias, dropout: as in `GPTConfig`.
        channels, image_size, outputs: from the data.
        patch_size: pixels of a patch's side.
        embedding_std: of the cls token and the positions.
    """

    width: int
    channels: int
    image_size: int
    outputs: int
    depth: int = 2
    head_dim: int | None = 16
    n_heads: int | None = None
    patch_size: int = 2
    mlp_ratio: float = 4
    activation: str = "gelu"
    norm: str = "layernorm"
    bias: bool = True
    embedding_std: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_whole("model", self, "width", "depth", "channels", "image_size", "outputs", "patch_size")
        check_positive("model", self, "mlp_ratio", "embedding_std")
        check_fraction("model", self, "dropout")
        check_choice("model", self, "activation", ACTIVATIONS)
        check_choice("model", self, "norm", NORMS)
        hidden_size(self.width, self.mlp_ratio)
        resolve_head_dim(self.width, self.head_dim, self.n_heads)
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"model.patch_size={self.patch_size} does not divide images of {self.image_size} pixels. "
                f"Choose a divisor of {self.image_size}."
            )


class ViT(nn.Module):
    """Images (batch, channels, height, width) to logits (batch, outputs).

    >>> ViT(ViTConfig(width=32, channels=1, image_size=8, outputs=10))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        patches = (config.image_size // config.patch_size) ** 2
        self.patches = nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size, bias=config.bias)
        self.cls = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, config.width))
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = make_norm(config.norm, config.width, bias=config.bias)
        self.readout = nn.Linear(config.width, config.outputs, bias=config.bias)
        init_standard(self)
        for parameter in (self.cls, self.positions):
            nn.init.normal_(parameter, std=config.embedding_std)

    def forward(self, images: Tensor) -> Tensor:
        patches = rearrange(self.patches(images), "b d h w -> b (h w) d")
        x = torch.cat((repeat(self.cls, "1 1 d -> b 1 d", b=len(images)), patches), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.readout(self.norm(x)[:, 0])
        return logits

    def example_inputs(self, batch: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        size = self.config.image_size
        return (torch.randn(batch, self.config.channels, size, size, generator=generator),)


def _block(config: ViTConfig) -> Block:
    head_dim = resolve_head_dim(config.width, config.head_dim, config.n_heads)
    attention = Attention(config.width, head_dim, bias=config.bias, causal=False, dropout=config.dropout)
    hidden = hidden_size(config.width, config.mlp_ratio)
    feed_forward = FeedForward(config.width, hidden, activation=config.activation, bias=config.bias)
    norms = tuple(make_norm(config.norm, config.width, bias=config.bias) for _ in range(2))
    return Block(attention, feed_forward, (norms[0], norms[1]), config.dropout)
