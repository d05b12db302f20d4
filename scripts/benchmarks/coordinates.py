"""The coordinate check at the widths of a GPU, with the standard parameterization beside muP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import mutransfer as mt
from benchmarks.parts import Part, Unit, as_json
from mutransfer.train.models import build_model


@dataclass(frozen=True)
class CheckSettings:
    """Which decoders are checked.

    Attributes:
        base: where the check's default learning rate holds; held at width 256, it is too large and muP is undecided.
        guess: seconds that one check may take.
    """

    widths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    base: int = 64
    depth: int = 2
    head_dim: int = 64
    vocab: int = 256
    length: int = 64
    seeds: int = 3
    parameterizations: tuple[str, ...] = ("mup", "sp")
    optimizers: tuple[str, ...] = ("adamw",)
    guess: float = 180.0


def check_part(settings: CheckSettings, device: torch.device) -> Part:
    """One unit per parameterization and optimizer; muP must pass and SP must fail."""
    units = [
        Unit(f"{name} {optimizer}", partial(_check, settings, device, name, optimizer), name, settings.guess)
        for optimizer in settings.optimizers
        for name in settings.parameterizations
    ]
    return Part("check", as_json(settings), units, _summarize, _show)


def _check(settings: CheckSettings, device: torch.device, name: str, optimizer: str) -> dict[str, Any]:
    report = mt.coord_check(
        partial(_build, settings, device),
        widths=list(settings.widths),
        base=settings.base,
        parameterization=name,
        optimizer=optimizer,
        seeds=settings.seeds,
    )
    print(report, flush=True)
    return {"verdict": report.verdict, "reason": report.reason, "report": report.to_json()}


def _build(settings: CheckSettings, device: torch.device, width: int) -> nn.Module:
    sizes = {"depth": settings.depth, "head_dim": settings.head_dim, "vocab_size": settings.vocab}
    model = build_model({"name": "gpt", "width": width, "seq_len": settings.length, **sizes})
    first = next(model.parameters())
    has_values = not first.is_meta and not isinstance(first, FakeTensor)  # planning only looks at shapes and init calls
    return model.to(device) if has_values else model


def _summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {key: result[key] for key in ("verdict", "reason")} for name, result in results.items()}


def _show(summary: Mapping[str, Any]) -> str:
    return "\n".join(f"  {name}: {said['verdict']}: {said['reason']}" for name, said in summary.items())
