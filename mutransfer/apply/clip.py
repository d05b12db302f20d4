"""Clipping by the global norm as the family's gauge would see it, whatever form the weights are stored in."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor, nn

from mutransfer.apply.names import planned_parameters
from mutransfer.errors import ConfigError
from mutransfer.planning.data import PlanData


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, plan: PlanData, max_norm: float) -> Tensor:
    """Scales all gradients so that their global norm in the gauge is at most `max_norm`; returns that norm.

    A folded readout's gradient grows with width where the explicit form's stays; each gradient is therefore weighted
    by its multiplier in the gauge over its multiplier here (`ParamPlan.clip`). Then every form clips alike.

    Args:
        model: the planned model itself, not its parameters: they are told apart by name.
        max_norm: of the global 2-norm; positive.

    Raises:
        ConfigError: what is given is no model or no norm, or a gradient is sparse.
    """
    if not (isinstance(max_norm, numbers.Real | Tensor) and max_norm > 0):
        raise ConfigError(f"max_norm={max_norm!r} must be a positive number.")
    graded = [(line, p.grad) for line, p in planned_parameters(model, plan) if p.grad is not None]
    if not graded:
        return torch.zeros(())
    for line, gradient in graded:
        if gradient.is_sparse:
            raise ConfigError(
                f"The gradient of {line.name!r} is sparse, and only dense ones can be clipped. Build its layer with "
                "sparse=False."
            )
    gradients = [gradient for _, gradient in graded]
    norms = torch._foreach_norm(gradients)
    scaled = [norm if line.clip == 1.0 else norm * line.clip for (line, _), norm in zip(graded, norms, strict=True)]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(gradients[0].device) for norm in scaled]))
    torch._foreach_mul_(gradients, (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total
