"""Accelerate: `clip_grad_norm_` of an Accelerator as the plan's gauge sees it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mutransfer.convert import Plan
from mutransfer.errors import ConfigError

_OWN_CLIPPING = ("DEEPSPEED", "MEGATRON_LM", "XLA")


def plan_accelerator(accelerator: Any, plan: Plan, model: nn.Module) -> None:
    """Lets `accelerator.clip_grad_norm_` clip as `plan.clip_grad_norm_` does; the parameters that it is given must be
    the model's. Groups and schedules need nothing: `prepare` keeps them.

    Args:
        accelerator: an `accelerate.Accelerator`.
        plan: the model's.
        model: as `accelerator.prepare` returned it.

    Raises:
        ConfigError: a backend that clips gradients by itself, or splits parameters into flat pieces (FSDP1).
    """
    backend = accelerator.distributed_type.name
    flat = backend == "FSDP" and not getattr(accelerator, "is_fsdp2", False)
    if backend in _OWN_CLIPPING or flat:
        raise ConfigError(
            f"{'FSDP1' if flat else backend} clips gradients by itself, with its own norm. Use FSDP2 or DDP, or "
            "form='explicit' and the mup table, whose norm is the plain one."
        )

    def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        if norm_type != 2:
            raise ConfigError(f"norm_type={norm_type!r}: a plan clips by the 2-norm. Leave norm_type at 2.")
        _refuse_others(parameters, model)
        accelerator.unscale_gradients()
        return plan.clip_grad_norm_(model, max_norm)

    accelerator.clip_grad_norm_ = clip_grad_norm_


def _refuse_others(parameters: Any, model: nn.Module) -> None:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if {id(p) for p in given} != {id(p) for p in model.parameters()}:
        raise ConfigError(
            f"accelerator.clip_grad_norm_ is given {len(given)} parameters that are not all of the planned model's. "
            "Give model.parameters()."
        )
