"""The learning-rate sweep of muP and SP over widths, in bf16 and compiled, on text that every machine has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.parts import Part, Unit, as_json
from mutransfer.errors import MutransferError
from mutransfer.sweep.trial import Trials
from mutransfer.transfer import analyze_records

ROLES = ("input", "hidden", "output", "vector", "scalar")


@dataclass(frozen=True)
class SweepSettings:
    """The grid. At the base width both parameterizations are the same trials, which are run once.

    Attributes:
        base: the smallest width, where the multipliers are 1.
        mup: log2 of the learning rates.
        sp_low, sp_high: log2 of SP's learning rates at the base width; the low end falls by 1 per doubling, as SP's
            optimum does, and the high end stays, since transferring the base's optimum must be measured.
        guess: seconds that the first trial of the smallest width may take, compilation included; it grows with width.
    """

    base: int = 256
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    mup: tuple[int, ...] = (-11, -10, -9, -8, -7, -6)
    sp_low: int = -11
    sp_high: int = -7
    seeds: tuple[int, ...] = (0, 1)
    depth: int = 4
    head_dim: int = 64
    batch: int = 32
    length: int = 256
    steps: int = 300
    input_lr: float = 8.0
    eval_batches: int = 16
    precision: str = "bf16"
    guess: float = 60.0


def sweep_part(settings: SweepSettings, device: torch.device) -> Part:
    """One unit per trial; a whole seed comes before the next, so that a sweep cut short can be analyzed."""
    runner = _Runner(settings, device)
    units = [
        _unit(settings, runner, name, width, power, seed)
        for seed in settings.seeds
        for width in settings.widths
        for name, powers in _grid(settings, width).items()
        for power in powers
    ]
    return Part("sweep", as_json(settings), units, _summarize, _show)


def _grid(settings: SweepSettings, width: int) -> dict[str, Sequence[int]]:
    if width == settings.base:
        return {"mup": settings.mup}
    falls = round(math.log2(width / settings.base))
    return {"mup": settings.mup, "sp": range(settings.sp_low - falls, settings.sp_high + 1)}


def _unit(settings: SweepSettings, runner: _Runner, name: str, width: int, power: int, seed: int) -> Unit:
    title = f"{name} width {width} lr 2^{power} seed {seed}"
    guess = settings.guess * max(1.0, width / settings.base / 4)
    return Unit(title, partial(runner, trial_config(settings, name, width, 2.0**power, seed)), f"width {width}", guess)


def trial_config(settings: SweepSettings, name: str, width: int, lr: float, seed: int) -> dict[str, Any]:
    """The resolved config of one trial, as the sweep verb would make it."""
    return {
        "model": {
            "name": "gpt",
            "width": width,
            "base_width": settings.base,
            "depth": settings.depth,
            "head_dim": settings.head_dim,
        },
        "base": settings.base,
        "parameterization": {"name": name, "form": "auto", "init": "rescale", "scale": "heads"},
        "hp": {"lr": {role: settings.input_lr if role == "input" else 1.0 for role in ROLES}},
        "optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.0, "eps": 1e-8, "betas": [0.9, 0.95]},
        "data": {"name": "stdlib", "batch_size": settings.batch, "seq_len": settings.length},
        "train": {"steps": settings.steps, "compile": True, "eval_batches": settings.eval_batches},
        "precision": {"name": settings.precision},
        "seed": seed,
    }


class _Runner:
    """Runs trials; each width compiles once, since trials of one width share their graph."""

    def __init__(self, settings: SweepSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.trials, self.width = Trials(), 0

    def __call__(self, config: Mapping[str, Any]) -> dict[str, Any]:
        width = config["model"]["width"]
        if width != self.width:
            torch.compiler.reset()
            self.width = width
        return self.trials({**config, "device": str(self.device)}).to_json()


def _summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """The transfer report, or why there is none yet; and the losses as they are."""
    losses = {name: record["val_loss"] for name, record in results.items()}
    try:
        report = analyze_records(list(results.values()))
    except MutransferError as error:
        return {"losses": losses, "transfer": None, "why": str(error)}
    return {"losses": losses, "transfer": report.to_json(), "why": str(report)}


def _show(summary: Mapping[str, Any]) -> str:
    losses = [f"  {name}: {'diverged' if loss is None else f'{loss:.4f}'}" for name, loss in summary["losses"].items()]
    return "\n".join([*losses, summary["why"]])
