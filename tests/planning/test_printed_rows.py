"""Rows of the printed plan: repeated blocks together, and every row with a name that says which parameters it is of."""

from __future__ import annotations

import torch
from torch import nn

import mutransfer as mt


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


class Stack(nn.Module):
    """Three blocks, each with a Sequential inside; a neck of plain layers, the last of which is wider."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.entrance, self.exit = nn.Linear(8, width), nn.Linear(2 * width, 2)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.neck = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 2 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.exit(self.neck(self.blocks(self.entrance(x))))


def test_an_index_is_starred_only_where_it_counts_blocks_and_every_row_has_its_own_name() -> None:
    text = str(mt.plan(Stack(64), "mup", base=32, factory=Stack))
    names = [line.split("  ")[0] for line in text.splitlines() if ".weight" in line.split("  ")[0]]
    assert names == [
        "entrance.weight",
        "exit.weight",
        "blocks.*.mlp.0.weight x3",
        "blocks.*.mlp.2.weight x3",
        "neck.{0,1}.weight x2",
        "neck.2.weight",
    ]
