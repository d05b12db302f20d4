"""A multilayer perceptron."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mutransfer.train.models.init import init_standard
from mutransfer.train.settings import check_choice, check_whole

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of an MLP.

    Attributes:
        width: of every hidden layer.
        depth: number of hidden layers.
        shape: of one input; it is flattened.
        outputs: number of logits or regression targets.
        activation: relu, gelu or tanh.
        bias: whether the layers have biases.
    """

    width: int
    shape: tuple[int, ...]
    outputs: int
    depth: int = 2
    activation: str = "relu"
    bias: bool = True

    def __post_init__(self) -> None:
        check_whole("model", self, "width", "depth", "outputs")
        check_choice("model", self, "activation", _ACTIVATIONS)


class MLP(nn.Module):
    """`depth` hidden layers and a readout.

    >>> MLP(MLPConfig(width=64, shape=(8, 8), outputs=10))(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [math.prod(config.shape), *[config.width] * config.depth]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out, bias=config.bias) for fan_in, fan_out in pairwise(sizes))
        self.activation = _ACTIVATIONS[config.activation]()
        self.readout = nn.Linear(config.width, config.outputs, bias=config.bias)
        init_standard(self)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = self.activation(layer(x))
        logits: Tensor = self.readout(x)
        return logits

    def example_inputs(self, batch: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        return (torch.randn(batch, *self.config.shape, generator=generator),)
