"""The standard parameterization's init, in ordinary torch init calls that a recorder can read."""

from __future__ import annotations

import math

from torch import Tensor, nn

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d)


def init_standard(model: nn.Module, *, embedding_std: float = 1.0) -> None:
    """Matrices and kernels from N(0, 1/fan_in), embeddings from N(0, embedding_std^2), biases 0, gains 1."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            init_matrix(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=embedding_std)
        elif isinstance(module, _NORMS) and module.weight is not None:
            nn.init.ones_(module.weight)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)


def init_matrix(weight: Tensor) -> None:
    """N(0, 1/fan_in), for weights stored as (fan_out, fan_in, ...)."""
    nn.init.normal_(weight, std=1 / math.sqrt(math.prod(weight.shape[1:])))
