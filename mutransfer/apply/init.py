"""Brings a model's values to what the plan says: rescaled from its own fresh draws, redrawn, or kept."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import distribute_tensor

from mutransfer.apply.names import is_sharded, planned_parameters, whole
from mutransfer.errors import AlreadyParameterizedError
from mutransfer.planning.data import ParamPlan, PlanData
from mutransfer.planning.laws import Law, estimate, fits


@torch.no_grad()
def initialize(model: nn.Module, plan: PlanData) -> None:
    """Multiplies or redraws every parameter as planned; all checks come before the first write.

    init="table" writes every tensor but those that are filled by code and not with one number (a state-space model's
    A_log, say): they keep what they hold, so after `to_empty` run their own reset first.

    Raises:
        AlreadyParameterizedError: init="rescale" and a tensor that is not as its constructor left it.
    """
    pairs = planned_parameters(model, plan)
    if plan.init == "rescale":
        for line, tensor in pairs:
            _check_fresh(line, tensor)
    for line, tensor in pairs:
        if plan.init == "table" and not math.isnan(line.init_law.mean):
            tensor.copy_(_as_placed(_draw(line, tensor), tensor))
        elif line.init_factor != 1.0:
            tensor.mul_(line.init_factor)
            if line.offset:  # c (1 + w) - 1
                tensor.add_(line.offset * (line.init_factor - 1))


def _as_placed(fresh: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out as a sharded one is; the first rank's draw counts, whatever the others' seeds."""
    if not is_sharded(like):
        return fresh
    return distribute_tensor(fresh, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def _draw(line: ParamPlan, tensor: Tensor) -> Tensor:
    """A normal draw from the tensor's own seed: its name and torch's initial seed, whatever was drawn before. A
    constant is a draw without spread: a gain of 1, a bias of 0."""
    digest = hashlib.sha256(f"{torch.initial_seed()} {line.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
    fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
    mean = 0.0 if line.init_law.centred else (line.offset + line.init_law.mean) * line.init_factor - line.offset
    return (fresh * line.init_std + mean).to(device=tensor.device, dtype=tensor.dtype)


def _check_fresh(line: ParamPlan, tensor: Tensor) -> None:
    """A tensor already scaled, or trained, must not be scaled again."""
    law = line.init_law
    values = whole(tensor)
    if not law.measured and not fits(law, values):
        raise AlreadyParameterizedError(
            f"{line.name!r} is not as its constructor leaves it ({_in_words(law)}; here "
            f"{_in_words(estimate(values))}): it was scaled or trained already. Parameterize a fresh model, "
            "or give init='keep' for a pretrained one."
        )


def _in_words(law: Law) -> str:
    return f"constant {law.mean:g}" if law.kind == "constant" else f"mean {law.mean:.3g}, std {law.std:.3g}"
