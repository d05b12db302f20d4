"""A pre-norm decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mutransfer.errors import ConfigError
from mutransfer.train.models.blocks import ACTIVATIONS, NORMS, Attention, Block, FeedForward, RotaryPositions, make_norm
from mutransfer.train.models.heads import hidden_size, resolve_head_dim
from mutransfer.train.models.init import init_matrix, init_standard
from mutransfer.train.settings import check_choice, check_fraction, check_positive, check_whole


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and variants of a decoder.

    Attributes:
        width: of the residual stream.
        vocab_size, seq_len: from the data.
        depth: number of blocks.
        head_dim: of each head; the number of heads is then width / head_dim.
        n_heads: fixes the number of heads instead; head_dim must then be None.
        kv_groups: query heads per key-value head (1: multi-head attention), so that both grow with the width.
        mlp_ratio: feed-forward size over width.
        positions: learned or rotary.
        activation: gelu or swiglu.
        norm: layernorm or rmsnorm.
        tied: the readout is the embedding, drawn like a readout.
        bias: of every linear layer and LayerNorm.
        embedding_std: of tokens and learned positions.
        dropout: on attention weights and branches.
    """

    width: int
    vocab_size: int
    seq_len: int
    depth: int = 2
    head_dim: int | None = 16
    n_heads: int | None = None
    kv_groups: int = 1
    mlp_ratio: float = 4
    positions: str = "learned"
    activation: str = "gelu"
    norm: str = "layernorm"
    tied: bool = False
    bias: bool = False
    embedding_std: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_whole("model", self, "width", "depth", "vocab_size", "seq_len", "kv_groups")
        check_positive("model", self, "mlp_ratio", "embedding_std")
        check_fraction("model", self, "dropout")
        check_choice("model", self, "positions", ("learned", "rotary"))
        check_choice("model", self, "activation", ACTIVATIONS)
        check_choice("model", self, "norm", NORMS)
        hidden_size(self.width, self.mlp_ratio)
        head_dim = resolve_head_dim(self.width, self.head_dim, self.n_heads)
        if self.width // head_dim % self.kv_groups:
            raise ConfigError(
                f"model.kv_groups={self.kv_groups} does not divide the {self.width // head_dim} heads of "
                f"model.width={self.width}. Choose a width with a multiple of {self.kv_groups} heads."
            )
        if self.positions == "rotary" and head_dim % 2:
            raise ConfigError(f"model.positions=rotary needs an even head_dim, and it is {head_dim}.")


class GPT(nn.Module):
    """Token ids (batch, length) to logits (batch, length, vocab_size).

    >>> GPT(GPTConfig(width=32, vocab_size=256, seq_len=64))(torch.zeros(2, 8, dtype=torch.long)).shape
    torch.Size([2, 8, 256])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        head_dim = resolve_head_dim(config.width, config.head_dim, config.n_heads)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        rotary = config.positions == "rotary"
        self.positions = None if rotary else nn.Embedding(config.seq_len, config.width)
        self.blocks = nn.ModuleList(_block(config, head_dim) for _ in range(config.depth))
        self.norm = make_norm(config.norm, config.width, bias=config.bias)
        self.readout = nn.Linear(config.width, config.vocab_size, bias=False)
        self.rotation = RotaryPositions(config.seq_len, head_dim) if rotary else None
        init_standard(self, embedding_std=config.embedding_std)
        if config.tied:
            self.embedding.weight = self.readout.weight
            init_matrix(self.readout.weight)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(length, device=ids.device))
        rotation = None if self.rotation is None else self.rotation(length)
        for block in self.blocks:
            x = block(x, rotation)
        logits: Tensor = self.readout(self.norm(x))
        return logits

    def example_inputs(self, batch: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        shape = batch, min(8, self.config.seq_len)
        return (torch.randint(self.config.vocab_size, shape, generator=generator),)


def _block(config: GPTConfig, head_dim: int) -> Block:
    attention = Attention(
        config.width,
        head_dim,
        kv_groups=config.kv_groups,
        bias=config.bias,
        causal=True,
        dropout=config.dropout,
    )
    hidden = hidden_size(config.width, config.mlp_ratio)
    feed_forward = FeedForward(config.width, hidden, activation=config.activation, bias=config.bias)
    norms = tuple(make_norm(config.norm, config.width, bias=config.bias) for _ in range(2))
    return Block(attention, feed_forward, (norms[0], norms[1]), config.dropout)
