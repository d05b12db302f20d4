"""A model of which only the end matters: what it does with a hidden state and parameters of any shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mutransfer as mt

Head = Callable[[Any, Tensor], Tensor]
Shapes = Callable[[int], dict[str, tuple[int, ...]]]


class Net(nn.Module):
    """An input layer and whatever `head` does with the hidden state and parameters of the given shapes."""

    def __init__(self, width: int, head: Head, shapes: Shapes) -> None:
        super().__init__()
        self.width, self.head = width, head
        self.embed = nn.Linear(5, width)
        for name, shape in shapes(width).items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, torch.tanh(self.embed(x)))


def plan_of(head: Head, shapes: Shapes, batch: int = 2, **options: Any) -> mt.Plan:
    def build(width: int) -> nn.Module:
        return Net(width, head, shapes)

    x = torch.zeros(batch, 6, 5)
    return mt.plan(build(64), "mup", base=16, factory=build, example_inputs=x, **options)
