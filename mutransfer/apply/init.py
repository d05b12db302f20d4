"""Brings a model's values to what the plan says: rescaled from its own fresh draws, redrawn, or kept."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from mutransfer.apply.names import planned_parameters
from mutransfer.errors import AlreadyParameterizedError
from mutransfer.planning.data import ParamPlan, PlanData
from mutransfer.planning.laws import Law

FRESH_Z = 6.0
"""How many standard errors a fresh tensor may lie from its init law: a model of 150 tensors stays clear of 3."""
FRESH_RATIO = 1.2
"""And by which factor it must be off as well: large tensors show deviations that matter to nobody."""


@torch.no_grad()
def initialize(model: nn.Module, plan: PlanData) -> None:
    """Multiplies or redraws every parameter as planned; all checks come before the first write.

    Raises:
        AlreadyParameterizedError: init="rescale" and a tensor that is not as its constructor left it.
    """
    pairs = planned_parameters(model, plan)
    if plan.init == "rescale":
        for line, tensor in pairs:
            _check_fresh(line, tensor)
    for line, tensor in pairs:
        if plan.init == "table" and line.init_law.kind != "constant":
            tensor.copy_(_draw(line, tensor))
        elif line.init_factor != 1.0:
            tensor.mul_(line.init_factor)


def _draw(line: ParamPlan, tensor: Tensor) -> Tensor:
    """A normal draw from the tensor's own seed: its name and torch's initial seed, whatever was drawn before."""
    seed = (zlib.crc32(line.name.encode()) << 31) ^ torch.initial_seed()
    generator = torch.Generator().manual_seed(seed % 2**63)
    fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
    return (fresh * line.init_std).to(tensor)


def _check_fresh(line: ParamPlan, tensor: Tensor) -> None:
    """A tensor already scaled, or trained, must not be scaled again."""
    if tensor.is_meta or tensor.numel() == 0:
        return
    law = line.init_law
    if law.kind == "constant":
        known = not math.isnan(law.mean)
        fresh = not known or bool((tensor.float() - law.mean).abs().max() <= 1e-6 * max(1.0, abs(law.mean)))
    else:
        fresh = law.measured or _plausible(tensor, law)
    if not fresh:
        raise AlreadyParameterizedError(
            f"{line.name!r} is not as its constructor leaves it (init law: {_in_words(law)}; here mean "
            f"{float(tensor.float().mean()):.3g}, std {_std(tensor):.3g}): it was scaled or trained already. "
            "Parameterize a fresh model, or give init='keep' for a pretrained one."
        )


def _plausible(tensor: Tensor, law: Law) -> bool:
    n = tensor.numel()
    ratio = _std(tensor) / law.std if n > 1 else 1.0
    z_std = abs(ratio - 1) * math.sqrt(2 * n)
    z_mean = abs(float(tensor.double().mean()) - law.mean) / law.std * math.sqrt(n)
    off_std = z_std > FRESH_Z and not 1 / FRESH_RATIO < ratio < FRESH_RATIO
    off_mean = z_mean > FRESH_Z and z_mean / math.sqrt(n) > FRESH_RATIO - 1
    return not (off_std or off_mean)


def _std(tensor: Tensor) -> float:
    return float(tensor.double().std(correction=0))


def _in_words(law: Law) -> str:
    return f"constant {law.mean:g}" if law.kind == "constant" else f"mean {law.mean:.3g}, std {law.std:.3g}"
