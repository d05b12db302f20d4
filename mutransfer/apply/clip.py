"""Clipping by the global norm as the family's gauge would see it, whatever form the weights are stored in."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from mutransfer.apply.names import is_sharded, planned_parameters, whole
from mutransfer.errors import ConfigError
from mutransfer.planning.data import ParamPlan, PlanData


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, plan: PlanData, max_norm: float, *, group: ProcessGroup | None = None) -> Tensor:
    """Scales all gradients so that their global norm in the gauge is at most `max_norm`; returns that norm.

    A folded readout's gradient grows with width where the explicit form's stays; each gradient is therefore weighted
    by its multiplier in the gauge over its multiplier here (`ParamPlan.clip`). Then every form clips alike.

    Args:
        model: the planned model itself, not its parameters: they are told apart by name.
        max_norm: of the global 2-norm; positive.
        group: of processes that hold other parts of the model (pipeline stages, not shards), whose norms count too.

    Raises:
        ConfigError: what is given is no model or no norm, or a gradient is sparse.
    """
    if not (isinstance(max_norm, numbers.Real | Tensor) and max_norm > 0):
        raise ConfigError(f"max_norm={max_norm!r} must be a positive number.")
    graded = [(line, p.grad) for line, p in planned_parameters(model, plan) if p.grad is not None]
    for line, gradient in graded:
        if gradient.is_sparse:
            raise ConfigError(
                f"The gradient of {line.name!r} is sparse, and only dense ones can be clipped. Build its layer with "
                "sparse=False."
            )
    total = _total_norm(graded)
    if group is not None:
        squared = total.square()
        torch.distributed.all_reduce(squared, group=group)
        total = squared.sqrt()
    if graded:
        parts = [gradient.to_local() if is_sharded(gradient) else gradient for _, gradient in graded]
        torch._foreach_mul_(parts, (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total


def _total_norm(graded: Sequence[tuple[ParamPlan, Tensor]]) -> Tensor:
    """Of all weighted gradients; one reduction for all that are sharded over the same ranks."""
    by_mesh: dict[Any, list[tuple[ParamPlan, Tensor]]] = {}
    for line, gradient in graded:
        by_mesh.setdefault(getattr(gradient, "device_mesh", None), []).append((line, gradient))
    totals = [whole(_norm(alike)) for alike in by_mesh.values()]
    if not totals:
        return torch.zeros(())
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(totals[0].device) for norm in totals]))
    return total


def _norm(graded: Sequence[tuple[ParamPlan, Tensor]]) -> Tensor:
    norms = torch._foreach_norm([gradient for _, gradient in graded])
    scaled = [norm if line.clip == 1.0 else norm * line.clip for (line, _), norm in zip(graded, norms, strict=True)]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(scaled[0].device) for norm in scaled]))
    return total
