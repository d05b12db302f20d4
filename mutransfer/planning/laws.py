"""How fresh tensors are filled: the law of a parameter's init, and whether values are those of a fresh draw by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Law:
    """How a fresh tensor is filled.

    Attributes:
        kind: "constant": by code alone (zeros, ones, a range), never multiplied; "drawn": at random, with one mean
            and standard deviation for all its entries; "random": at random in a way that could not be read.
        std: of the entries; 0 for a constant, nan for "random".
        mean: of the entries; nan where it is not one number.
        measured: the std is an estimate from rebuilt models, not read from the constructor's arguments.
    """

    kind: Literal["constant", "drawn", "random"]
    std: float = 0.0
    mean: float = math.nan
    measured: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """JSON has no nan: a mean that is not one number is null there."""
        mean = math.nan if data["mean"] is None else float(data["mean"])
        return cls(data["kind"], float(data["std"]), mean, bool(data["measured"]))

    @property
    def centred(self) -> bool:
        """Whether multiplying the values changes their size only: not so for a gain drawn around 1."""
        return self.kind == "drawn" and abs(self.mean) <= 0.3 * self.std

    def scaled(self, factor: float) -> Law:
        return Law(self.kind, abs(factor) * self.std, factor * self.mean)

    def shifted(self, offset: float) -> Law:
        return Law(self.kind, self.std, self.mean + offset)


FIXED = Law("constant")
UNREADABLE = Law("random", math.nan)


def constant(value: float) -> Law:
    return Law("constant", 0.0, value)


def uniform(low: float, high: float) -> Law:
    return Law("drawn", (high - low) / math.sqrt(12), (low + high) / 2)


FIT_Z = 6.0
"""How many standard errors a fresh tensor may lie from its law: a model of 150 tensors stays clear of 3."""
FIT_RATIO = 1.2
"""And by which factor it must be off as well: small deviations of large tensors matter to nobody."""


FAR = 10.0
"""Standard deviations that no entry of a fresh draw is from its mean, but for one that `trunc_normal_` puts on its
bound: erfinv(-1) is infinite, and U(-1, 1) is -1 once in 2^24 float32 draws."""

FIT_SAMPLE = 2**16
"""How many entries of a large tensor are looked at: they tell its std to 0.28 %, and the rules go by their number."""


def fits(law: Law, tensor: Tensor) -> bool:
    """Whether a tensor's mean and std are those of a fresh draw by the law; rows of padding are left out."""
    if tensor.numel() == 0 or tensor.is_meta:
        return True
    tensor = _as_real(tensor.detach())
    if law.kind == "constant":
        low, high = (0.0, 0.0) if math.isnan(law.mean) else (float(t) - law.mean for t in tensor.aminmax())
        precision = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
        return max(-low, high) <= max(1e-6, precision) * max(1.0, abs(law.mean))
    values = _sample(tensor).double()
    if tensor.ndim > 1 and bool(values.any()):
        values = values[values.any(1)]
    near = values[(values - law.mean).abs() <= FAR * law.std]
    if values.numel() - near.numel() <= 1:
        values = near
    n = values.numel()
    off_mean = abs(float(values.mean()) - law.mean) / law.std
    ratio = float(values.std(correction=0)) / law.std if n > 1 else 1.0
    wrong_std = abs(ratio - 1) * math.sqrt(2 * n) > FIT_Z and not 1 / FIT_RATIO < ratio < FIT_RATIO
    wrong_mean = off_mean * math.sqrt(n) > FIT_Z and off_mean > FIT_RATIO - 1
    return not (wrong_std or wrong_mean)


def _as_real(tensor: Tensor) -> Tensor:
    """The parts of complex numbers, whose std is 1/sqrt(2) of that which they are drawn with, by that std."""
    return torch.view_as_real(tensor) * math.sqrt(2) if tensor.is_complex() else tensor


def _sample(tensor: Tensor) -> Tensor:
    """Rows spread over all of a tensor, and entries spread over all of each; all there are where they are few."""
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    height, width = rows.shape
    kept = min(width, max(1024, FIT_SAMPLE // height))
    return rows[:: max(1, height * kept // FIT_SAMPLE), :: max(1, width // kept)]


def estimate(values: Tensor) -> Law:
    """The law of a tensor by its values alone: constant where they are all equal, else drawn with their std."""
    values = _as_real(values.detach()).double().flatten()
    if values.numel() == 0 or bool((values == values[0]).all()):
        return constant(float(values[0]) if values.numel() else 0.0)
    return Law("drawn", float(values.std(correction=0)), float(values.mean()), measured=True)
