"""The coordinate check: does every parameter's own contribution follow the law of its parameterization?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mutransfer.check.batches import Given, Loss, batch_of, default_loss
from mutransfer.check.builds import Build, builder
from mutransfer.check.grid import Grid
from mutransfer.check.report import Control, CoordReport
from mutransfer.check.runs import Training
from mutransfer.check.slopes import activation_slopes
from mutransfer.check.subjects import MakeOptimizer, control, converted, handwritten
from mutransfer.check.verdict import culprits, implied
from mutransfer.errors import ConfigError
from mutransfer.planning.data import Form
from mutransfer.rules.optimizers import Optimizer, find_optimizer
from mutransfer.rules.table import Parameterization, find_table
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.train.precision import find_precision

ADAM_LR = 2**-10
SGD_LR = 2**-6
"""Small enough for the law, which is first order in the change. Measured on a decoder and a ResNet: at 2^-8 (Adam) and
2^-3 (SGD) a hidden lr wrong by width^0.5 moves the logits so far that the readout shrinks as much as the hidden weights
grow, and the softmax saturates; at these, a rule wrong by 1/2 shows as 0.42 to 0.5. Float32 would allow 2^6 less.
"""
CONTROL_SEEDS = 3
"""The control's exponents are off by 1/2 and more: few seeds show it."""


def coord_check(
    build: Build | nn.Module | Any,
    *,
    widths: Sequence[int],
    parameterization: str | Parameterization = "mup",
    optimizer: str = "adamw",
    lr: float | None = None,
    steps: int = 4,
    seeds: int = 8,
    base: int | Any | None = None,
    batches: Given | None = None,
    loss: Loss | None = None,
    make_optimizer: MakeOptimizer | None = None,
    precision: str = "fp32",
    form: Form = "auto",
    scale: Literal["heads", "head_dim"] = "heads",
    roles: Mapping[str, str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    plot: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CoordReport:
    """Measures whether a model follows its parameterization's law in width, tensor by tensor, and says which does not.

    The exponent of a tensor is the slope, against log2 width, of log2 RMS of multiplier * (W_t - W_0) x_t, its own
    contribution as it enters what follows: 0 in everything that transfers. At init it is multiplier * W_0 x_0.
    A few seeded tokens a step, one repeated batch per seed, the mean over steps 2, 3, ...: small, fast and sharp.

    >>> import mutransfer as mt, torch
    >>> make = lambda width: torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 16))
    >>> mt.coord_check(make, widths=[64, 128, 256]).verdict
    'pass'

    Args:
        build: width -> fresh model, on any device; or a model with a `.config`, or a transformers config, which is then
            made at every width with the fields that follow the width scaled as in `mutransfer.parameterize`.
        widths: at least 3, far larger than the number of tokens per step.
        parameterization: a name in `mutransfer.PARAMETERIZATIONS`, or a `Parameterization` of your own.
        optimizer: a name in `mutransfer.OPTIMIZERS`.
        lr: at the base; by default 2^-10 for Adam-like optimizers, 2^-6 for SGD.
        steps: optimizer steps per run; the first is not counted.
        seeds: runs per width; more are added while the verdict is undecided, up to 4 times as many.
        base: as in `mutransfer.parameterize`; by default the smallest width.
        batches: one batch per seed, or seed -> batch; by default 8 seeded tokens, 8 vectors, or one image.
        loss: (model, batch) -> scalar; by default cross-entropy against the batch's, or against seeded, targets.
        make_optimizer: (model, width) -> optimizer checks hand-written code as it is: nothing is converted.
        precision: of the training steps, "fp32" or "bf16"; measurements are in float32.
        form, scale, roles, hyperparameters, example_inputs: as in `mutransfer.parameterize`.
        plot: where to draw the report's figure.
        progress: called with (runs done, runs planned).

    Raises:
        ConfigError: widths, steps or seeds out of range, or an lr at which the training diverges.
        RuleError, RoleError, ShapeError: as in `mutransfer.parameterize`.
    """
    began = time.process_time()
    table, family = find_table(parameterization, PARAMETERIZATIONS), find_optimizer(optimizer)
    sizes, make = _checked(widths, steps, seeds, lr), builder(build, scale)
    rate, why = (lr, "given") if lr is not None else _default_lr(family)
    options = {
        "base": sizes[0] if base is None else base,
        "optimizer": optimizer,
        "example_inputs": example_inputs,
        "scale": scale,
        "roles": roles,
        "form": form,
        "hyperparameters": hyperparameters,
    }
    training = Training(
        steps, lambda m, s: batch_of(m, s, batches, example_inputs), loss or default_loss, find_precision(precision)
    )
    grid = Grid(table, sizes, training, roles or {}, rate, progress)
    if make_optimizer is None:
        subject = converted(make, table, rate, options)
    else:
        subject = handwritten(make, make_optimizer, table.name)
    runs, judged = grid.until_decided(subject, seeds)
    against = None
    if judged.verdict == "pass" and not table.is_control:
        plain = control(make, rate, options, is_converted=make_optimizer is None)
        against = grid.control(plain, min(seeds, CONTROL_SEEDS))
    unseen = [item.parameter for item in judged.listed if item.unseen]
    doubt = _doubt(against, unseen, unread=scale == "head_dim" and not judged.softmax)
    report = CoordReport(
        verdict="undecided" if doubt and judged.verdict == "pass" else judged.verdict,
        doubt=doubt,
        parameterization=table.name,
        source=table.source,
        optimizer=optimizer,
        lr=rate,
        lr_from=why,
        widths=sizes,
        seeds=len(runs[sizes[0]]),
        steps=steps,
        batch=runs[sizes[0]][0].batch,
        positions=max((use.positions for use in runs[sizes[0]][0].init.uses), default=0),
        slopes=(*judged.slopes, *activation_slopes(runs)),
        softmax=tuple(judged.softmax),
        listed=tuple(judged.listed),
        culprits=tuple(culprits(judged.slopes, judged.softmax)),
        control=against,
        implied=implied(table, family) if family.family in table.families else {},
        cpu_seconds=time.process_time() - began,
        model=runs[sizes[0]][0].model,
        base=_said(options["base"]) if make_optimizer is None else None,
    )
    if plot is not None:
        report.plot(plot)
    return report


def _said(base: Any) -> int | dict[str, int] | str:
    """A base as JSON can hold it."""
    if isinstance(base, int | str | Path):
        return base if isinstance(base, int) else str(base)
    return dict(base) if isinstance(base, Mapping) else type(base).__name__


def _doubt(against: Control | None, unseen: Sequence[str], *, unread: bool) -> str:
    """Why a check that finds nothing wrong cannot vouch that all is right; empty where it can."""
    if against is not None and against.verdict == "pass":
        return f"the control ({against.name}) passes too, so this check cannot tell right from wrong here"
    if unseen:
        return f"the contribution of {unseen[0]!r} could not be seen, so nothing is known of it"
    if unread:
        return "head_dim is said to grow, and no softmax scale of a growing head_dim could be read"
    return ""


def _checked(widths: Sequence[int], steps: int, seeds: int, lr: float | None) -> tuple[int, ...]:
    sizes = tuple(sorted({int(width) for width in widths}))
    if len(sizes) < 3:
        raise ConfigError(
            f"widths={list(widths)} has {len(sizes)} widths; an exponent needs at least 3, such as [64, 128, 256]."
        )
    if sizes[0] < 1 or steps < 1 or seeds < 2:
        raise ConfigError(
            f"widths and steps must be positive and seeds at least 2 (got {steps=}, {seeds=}, {widths=})."
        )
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"lr={lr} is not a positive number.")
    return sizes


def _default_lr(optimizer: Optimizer) -> tuple[float, str]:
    if optimizer.family == "sgd":
        return SGD_LR, "default for SGD"
    return ADAM_LR, "default for Adam-like optimizers"
