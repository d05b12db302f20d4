from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mutransfer.rules.depth import Place
from mutransfer.rules.optimizers import OPTIMIZERS
from mutransfer.rules.scale import Scale, m_depth, m_in, m_out
from mutransfer.rules.table import Parameterization, Role
from mutransfer.train.models import build_model

GROWING: dict[Role, Scale] = {
    Role.INPUT: m_out,
    Role.HIDDEN: m_in,
    Role.OUTPUT: m_in,
    Role.VECTOR: m_out,
    Role.SCALAR: m_in * m_out,
}
"""The size ratio that is not 1 for a role's tensors (for a scalar's, both are)."""


def corrupt(
    table: Parameterization,
    role: Role,
    cell: str,
    power: float,
    optimizer: str = "adamw",
    *,
    ratio: Scale | None = None,
) -> Parameterization:
    """The table with one cell wrong by a factor ratio^power."""
    factor = (ratio or GROWING[role]) ** power
    family = OPTIMIZERS[optimizer].family if cell == "lr" else None
    return table.with_cell(role, cell, lambda right: right * factor, family=family)


def mlp(width: int) -> nn.Module:
    """Every role has a drawn tensor: torch draws biases too."""
    hidden = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(width, 16))


def gpt(width: int, **settings: object) -> nn.Module:
    return build_model({"name": "gpt", "width": width, "vocab_size": 64, "seq_len": 8, **settings})


def resnet(width: int) -> nn.Module:
    return build_model({"name": "resnet", "width": width, "channels": 3, "outputs": 32, "image_size": 8, "stages": 2})


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 16)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class OffsetNorm(nn.Module):
    """An RMS norm whose gain is 1 + w, as Gemma's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class PostNormBlock(nn.Module):
    """Norms on the stream, as BERT's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class SandwichBlock(PostNormBlock):
    """A norm in front of each branch and one at its end, as Gemma 2's."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm1, self.norm2, self.after1, self.after2 = (OffsetNorm(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.after1(self.attention(self.norm1(x)))
        return x + self.after2(self.mlp(self.norm2(x)))


class Stack(nn.Module):
    def __init__(
        self, block: Callable[[int], nn.Module], width: int, depth: int, *, embedding_std: float = 1.0
    ) -> None:
        super().__init__()
        self.embed, self.readout = nn.Embedding(64, width), nn.Linear(width, 64, bias=False)
        self.blocks, self.norm = nn.ModuleList(block(width) for _ in range(depth)), nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=embedding_std)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))

    def example_inputs(self, batch: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        return (torch.randint(64, (batch, 8), generator=generator),)


def deep_gpt(width: int, depth: int) -> nn.Module:
    return gpt(width, depth=depth)


def post_norm(width: int, depth: int, **settings: float) -> nn.Module:
    return Stack(PostNormBlock, width, depth, **settings)


def sandwich(width: int, depth: int, **settings: float) -> nn.Module:
    return Stack(SandwichBlock, width, depth, **settings)


def corrupt_depth(
    table: Parameterization, place: Place, cell: str, power: float, optimizer: str = "adamw"
) -> Parameterization:
    """The table with one cell of its depth rules wrong by a factor m_depth^power."""
    depth = table.depth
    assert depth is not None
    row, family = depth.rows[place], OPTIMIZERS[optimizer].family
    if cell in ("init", "multiplier"):
        row = replace(row, **{cell: getattr(row, cell) * m_depth**power})
    else:
        rule = row.rules[family]
        rule = replace(rule, **{cell: getattr(rule, cell) * m_depth**power})
        row = replace(row, rules={**row.rules, family: rule})
    return replace(table, depth=replace(depth, rows={**depth.rows, place: row}))


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    return SimpleNamespace(
        mlp=mlp,
        gpt=gpt,
        resnet=resnet,
        stack=Stack,
        deep={"gpt": deep_gpt, "post-norm": post_norm, "sandwich": sandwich},
        vectors=torch.randn(8, 8, generator=torch.Generator().manual_seed(0)),
    )


@pytest.fixture(scope="session")
def corrupted() -> Callable[..., Parameterization]:
    return corrupt


@pytest.fixture(scope="session")
def corrupted_depth() -> Callable[..., Parameterization]:
    return corrupt_depth
