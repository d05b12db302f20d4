"""The coordinate check: does every parameter's own contribution follow the law of its parameterization?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mutransfer.check.axes import Axis, Runs
from mutransfer.check.batches import Batches, Given, Loss, default_loss, inputs_in
from mutransfer.check.builds import Build, BuildDeep
from mutransfer.check.few import FEW, TOKENS
from mutransfer.check.grid import Grid, Judged
from mutransfer.check.report import Control, CoordReport
from mutransfer.check.runs import Training
from mutransfer.check.setups import CONTROL_SEEDS, Asked, depth_setup, depth_width, width_setup
from mutransfer.check.shadow import Use
from mutransfer.check.slopes import activation_slopes
from mutransfer.check.subjects import MakeOptimizer, largest_lr
from mutransfer.check.verdict import culprits, implied
from mutransfer.errors import ConfigError
from mutransfer.planning.data import Form, Init
from mutransfer.rules.optimizers import Optimizer, find_optimizer
from mutransfer.rules.table import Parameterization, find_table
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.train.precision import find_precision

ADAM_LR_TIMES_WIDTH = 2**-7
SGD_LR = 2**-6
"""Small enough for the law, which is first order in the change. Adam's step changes a hidden activation by up to
lr * fan-in, whatever the gradient's size, so that its lr goes inversely with the base's width: 2^-13 at 64. Measured on
a decoder and a ResNet of that width: at 2^-8 (Adam) and 2^-3 (SGD) a hidden lr wrong by width^0.5 moves the logits so
far that the readout shrinks as much as the hidden weights grow, and the softmax saturates; at 2^-10 and 2^-6 a rule
wrong by 1/2 shows as 0.42 to 0.5. Where weights begin at 0.02 that is still much beside what they do: from a base of
256, GLM-4V's decoder showed +0.27 at 2^-10 and was undecided after 32 seeds, and passes with 8 at 2^-12, all within
0.08; a mixture of experts that was undecided at 128 with 2^-11 passes with 2^-14. Float32 would allow 2^-16.
"""


def coord_check(
    build: Build | BuildDeep | nn.Module | Any,
    *,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    parameterization: str | Parameterization = "mup",
    optimizer: str = "adamw",
    lr: float | None = None,
    steps: int = 3,
    seeds: int = 8,
    base: int | Any | None = None,
    base_depth: int | Mapping[str, int] | None = None,
    batches: Given | None = None,
    loss: Loss | None = None,
    make_optimizer: MakeOptimizer | None = None,
    precision: str = "fp32",
    form: Form = "auto",
    init: Init = "rescale",
    scale: Literal["heads", "head_dim"] = "heads",
    roles: Mapping[str, str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    plot: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CoordReport:
    """Measures whether a model follows its parameterization's law in width, or in depth, tensor by tensor.

    The exponent of a tensor is the slope, against log2 size, of log2 RMS of multiplier * (W_t - W_0) x_t, its own
    contribution as it enters what follows. In width it is 0 in everything that transfers; in depth tensors are pooled
    over the blocks, and it is what their place in the residual stack says. At init it is multiplier * W_0 x_0. A few
    seeded tokens a step, one repeated batch per seed, measured after the last step: small, fast and sharp. Of larger
    batches, and of images and sound, a weight learns from the 8 positions with the largest gradients, see
    `mutransfer.check.few`. What meets activations that shrink with width, as behind a bottleneck of fixed size, is held
    to its law relative to them.

    >>> import mutransfer as mt, torch
    >>> make = lambda width: torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 16))
    >>> mt.coord_check(make, widths=[64, 128, 256]).verdict
    'pass'

    Args:
        build: width -> fresh model, on any device, or with depths= (width, depth) -> fresh model; or a model with a
            `.config`, or a transformers config, which is then made at every size with the fields that follow the width
            scaled and the numbers of layers set as in `mutransfer.parameterize`.
        widths: at least 3, the smallest far larger than 8; with depths= the one width, by default the
            config's own, or 64.
        depths: at least 3 numbers of blocks, to check the rules of depth; such as 1, 2, 4 and 8 times the base's.
        parameterization: a name in `mutransfer.PARAMETERIZATIONS`, or a `Parameterization` of your own. One without
            depth rules is held to CompleteP's law in depth, under which the learning rate transfers.
        optimizer: a name in `mutransfer.OPTIMIZERS`.
        lr: at the base; by default 2^-7 / width for Adam-like optimizers (2^-13 at width 64), 2^-6 for SGD. The width
            is the base's, where `base` is one, or else the smallest.
        steps: optimizer steps per run. The change of the first alone is noise (the seeds' standard deviation is 0.5
            octaves, not 0.04), and what lies before a readout and a branch that begin at zero first moves in the third.
        seeds: runs per size; more are added while the verdict is undecided, up to 4 times as many.
        base, base_depth: as in `mutransfer.parameterize`; by default the smallest width and depth.
        batches: one batch per seed, or seed -> batch; by default 8 seeded tokens, 8 vectors, or one image.
        loss: (model, batch) -> scalar; by default cross-entropy against the batch's, or against seeded, targets.
        make_optimizer: (model, width), or (model, depth) with depths= -> optimizer: checks hand-written code as it is,
            nothing is converted; the learning rates are its own, without lr=.
        precision: of the training steps, "fp32" or "bf16"; measurements are in float32.
        form, scale, roles, hyperparameters, example_inputs: as in `mutransfer.parameterize`; without example_inputs
            those of the first batch, where it has its own and no loss= says what they are. In depth the check raises
            embedding_mult where the base's branches are larger than the embedding.
        init: as in `mutransfer.parameterize`. With "keep" (adapters on a frozen, pretrained model) the values are not
            the table's: sizes at init and softmax scales are not judged, and the law of changes is that of a frozen
            model whose activations have the same size at every width.
        plot: where to draw the report's figure.
        progress: called with (runs done, runs planned).

    Raises:
        ConfigError: widths, depths, steps or seeds out of range, or an lr at which the training diverges.
        RuleError, RoleError, ShapeError: as in `mutransfer.parameterize`.
    """
    began = time.process_time()
    table, family = find_table(parameterization, PARAMETERIZATIONS), find_optimizer(optimizer)
    if lr is not None and make_optimizer is not None:
        raise ConfigError("lr= is of converted models, and make_optimizer= makes optimizers with their own: give one.")
    across, down = _checked(widths, depths, steps, seeds, lr)
    across = across or (depth_width(build, scale),)
    rate, why = (lr, "given") if lr is not None else _default_lr(family, base if isinstance(base, int) else across[0])
    asked = Asked(
        table,
        rate,
        across,
        down,
        base,
        base_depth,
        {
            "optimizer": optimizer,
            "scale": scale,
            "roles": roles,
            "form": form,
            "init": init,
            "hyperparameters": hyperparameters,
        },
        inputs_in(batches) if example_inputs is None and loss is None else example_inputs,
        make_optimizer,
    )
    batch = Batches(batches, example_inputs).of
    training = Training(steps, batch, loss or default_loss, find_precision(precision))
    setup = depth_setup(build, asked, training) if asked.depths else width_setup(build, asked)
    lower = f"lr {rate:g}. Give a smaller lr="
    if make_optimizer is not None:
        rate = largest_lr(setup.subject, setup.sizes[0])
        why = f"make_optimizer's largest at {setup.axis.name} {setup.sizes[0]}"
        lower = f"the learning rates of make_optimizer, such as {rate:g}. Give it smaller ones"
    if setup.axis.name == "width":
        training = training.between(setup.subject, setup.sizes[0], setup.sizes[-1])
    grid = Grid(table, family, setup.axis, setup.sizes, training, lower, progress)
    runs, judged = grid.until_decided(setup.subject, seeds)
    verdict, against, notes = judged.found.verdict, None, setup.notes
    if verdict == "pass" and not table.is_control:
        control, why_this = setup.must_fail()
        against, notes = grid.control(control, min(seeds, CONTROL_SEEDS)), (*notes, *why_this)
    unseen = [item.parameter for item in judged.listed if item.unseen]
    unread = not asked.depths and scale == "head_dim" and not (asked.kept or judged.found.softmax)
    first, most = runs[setup.sizes[0]], _most_positions(runs, setup.axis, judged)
    doubt = _doubt(against, unseen, unread=unread) or ("" if asked.depths else _of_too_many(most, setup.widths[0]))
    report = CoordReport(
        verdict="undecided" if doubt and verdict == "pass" else verdict,
        doubt=doubt,
        parameterization=table.name,
        source=table.source,
        optimizer=optimizer,
        lr=rate,
        lr_from=why,
        axis=setup.axis.name,
        widths=setup.widths,
        depths=setup.depths,
        seeds=len(first),
        steps=steps,
        batch=first[0].batch,
        positions=most.positions if most else 0,
        slopes=(*judged.found.slopes, *activation_slopes(runs, setup.axis)),
        softmax=tuple(judged.found.softmax),
        groups=tuple(judged.found.settings),
        listed=tuple(judged.listed),
        culprits=tuple(culprits(judged.found)),
        control=against,
        implied=implied(table, family) if not asked.depths and family.family in table.families else {},
        notes=notes,
        cpu_seconds=time.process_time() - began,
        model=first[0].model,
        init=init,
        base=_said(setup.base),
        base_depth=_said(setup.base_depth),
    )
    if plot is not None:
        report.plot(plot)
    return report


def _most_positions(runs: Runs, axis: Axis, judged: Judged) -> Use | None:
    """The use that learns from the most vectors; in width of those whose fan-in grows, which alone align less."""
    small, large = (runs[size][0].last.uses for size in (min(runs), max(runs)))
    fan_ins = {use.key: use.fan_in for use in small}
    learning = {slope.parameter for slope in judged.found.judged if slope.kind == "change"}
    uses = (use for use in large if axis.pooled(use.parameter) in learning)
    counted = (use for use in uses if axis.name == "depth" or use.fan_in > fan_ins.get(use.key, use.fan_in))
    return max(counted, key=lambda use: use.positions, default=None)


def _of_too_many(most: Use | None, width: int) -> str:
    """Where a call is none that `FewPositions` knows, and what it learns from hardly aligns."""
    if most is None or most.positions <= max(TOKENS, width // FEW):
        return ""
    return (
        f"{most.parameter} learns from all {most.positions} positions of a step ({most.op}), not far fewer than the "
        f"smallest width {width}, so a rule that is too large by 1/2 may pass: give fewer positions or larger widths"
    )


def _said(base: Any) -> int | dict[str, int] | str | None:
    """A base as JSON can hold it."""
    if isinstance(base, int | str | Path | None):
        return str(base) if isinstance(base, Path) else base
    return dict(base) if isinstance(base, Mapping) else type(base).__name__


def _doubt(against: Control | None, unseen: Sequence[str], *, unread: bool) -> str:
    """Why a check that finds nothing wrong cannot vouch that all is right; empty where it can."""
    if against is not None and against.verdict != "fail":
        seen = "passes too" if against.verdict == "pass" else "does not fail"
        return f"the control ({against.name}) {seen}, so this check cannot tell right from wrong here"
    if unseen:
        return f"the contribution of {unseen[0]!r} could not be seen, so nothing is known of it"
    if unread:
        return "head_dim is said to grow, and no softmax scale of a growing head_dim could be read"
    return ""


def _checked(
    widths: Sequence[int] | None, depths: Sequence[int] | None, steps: int, seeds: int, lr: float | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and depths in order, of which one varies."""
    across, down = (tuple(sorted({int(size) for size in sizes or ()})) for sizes in (widths, depths))
    if down and len(across) > 1:
        raise ConfigError(
            f"{widths=} and {depths=} both vary, and a slope is of one of them. Give one width, or leave depths= out."
        )
    name, sizes, example = ("depths", down, [2, 4, 8]) if down else ("widths", across, [64, 128, 256])
    if len(sizes) < 3:
        raise ConfigError(
            f"{name}={list(sizes)} has {len(sizes)} {name}; an exponent needs at least 3, such as {example}."
        )
    if min((*across, *down)) < 1 or steps < 1 or seeds < 2:
        raise ConfigError(
            f"Sizes and steps must be positive and seeds at least 2 (got {name}={list(sizes)}, {steps=}, {seeds=})."
        )
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"{lr=} is not a positive number.")
    return across, down


def _default_lr(optimizer: Optimizer, width: int) -> tuple[float, str]:
    if optimizer.family == "sgd":
        return SGD_LR, "default for SGD"
    return ADAM_LR_TIMES_WIDTH / width, f"default for Adam-like optimizers at width {width}"
