"""What a model and a data section may say, without importing torch: mistakes are answered before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mutransfer.sweep.schema import positive, require


class Positions(Enum):
    learned = 1
    rotary = 2


class Activation(Enum):
    gelu = 1
    swiglu = 2


@dataclass
class MLP:
    name: str
    width: int
    depth: int
    base_width: int

    def __post_init__(self) -> None:
        positive("model", width=self.width, depth=self.depth, base_width=self.base_width)


@dataclass
class GPT:
    name: str
    width: int
    depth: int
    base_width: int
    head_dim: int
    kv_heads: int | None
    positions: Positions
    activation: Activation
    tied: bool

    def __post_init__(self) -> None:
        positive("model", width=self.width, depth=self.depth, base_width=self.base_width, head_dim=self.head_dim)
        divides_into_heads(self.width, self.head_dim)


def divides_into_heads(width: int, head_dim: int) -> None:
    require(
        width % head_dim == 0,
        f"model.width={width} does not divide into heads of model.head_dim={head_dim}. "
        f"Choose a multiple of {head_dim}, such as {max(1, round(width / head_dim)) * head_dim}.",
    )


MODELS: dict[str, type] = {"mlp": MLP, "gpt": GPT}


@dataclass
class Stdlib:
    name: str
    batch_size: int
    seq_len: int


DATA: dict[str, type] = {"stdlib": Stdlib}
