"""The coordinate check: does every parameter's own contribution follow the law of its parameterization?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mutransfer.check.batches import Given, Loss, batch_of, default_loss
from mutransfer.check.report import Control, CoordReport
from mutransfer.check.runs import LossNotFiniteError, Run, Subject, Training, run
from mutransfer.check.slopes import Listed, Runs, Slope, activation_slopes, parameter_slopes
from mutransfer.check.subjects import Build, MakeOptimizer, control, converted, handwritten
from mutransfer.check.verdict import Softmax, Verdict, culprits, implied, judge, read_softmax
from mutransfer.errors import ConfigError
from mutransfer.planning.data import Form
from mutransfer.rules.optimizers import Optimizer, find_optimizer
from mutransfer.rules.table import Parameterization, find_table
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.train.precision import find_precision

ADAM_LR = 2**-8
SGD_LR = 2**-6
"""Small enough that the softmax does not saturate: a rule wrong by 1/2 shows as 0.45 to 0.5 on a decoder and a ResNet,
and at 2^-3 (2^-4 for the ResNet) as 0.3. Float32 measures a change 2^6 times smaller as well."""
MORE_SEEDS = 4
"""An undecided check goes on up to this many times the seeds that it was given."""
CONTROL_SEEDS = 3
"""The control's exponents are off by 1/2 and more: few seeds show it."""


def coord_check(
    build: Build,
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
        build: width -> fresh model, on any device.
        widths: at least 3, far larger than the number of tokens per step.
        parameterization: a name in `mutransfer.PARAMETERIZATIONS`, or a `Parameterization` of your own.
        optimizer: a name in `mutransfer.OPTIMIZERS`.
        lr: at the base; by default 2^-8 for Adam-like optimizers, 2^-6 for SGD.
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
    sizes = _checked(widths, steps, seeds, lr)
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
    check = _Check(table, sizes, training, roles or {}, rate, progress)
    if make_optimizer is None:
        subject = converted(build, table, rate, options)
    else:
        subject = handwritten(build, make_optimizer, table.name)
    runs, judged = check.until_decided(subject, seeds)
    against = None
    if judged.verdict == "pass" and not table.is_control:
        plain = control(build, rate, options, is_converted=make_optimizer is None)
        against = check.control(plain, min(seeds, CONTROL_SEEDS))
    report = CoordReport(
        verdict="undecided" if against is not None and against.verdict == "pass" else judged.verdict,
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
    )
    if plot is not None:
        report.plot(plot)
    return report


@dataclass(frozen=True)
class _Judged:
    slopes: list[Slope]
    listed: list[Listed]
    softmax: list[Softmax]
    verdict: Verdict


@dataclass(frozen=True)
class _Check:
    """One grid of widths and seeds, trained and judged by one law."""

    table: Parameterization
    widths: tuple[int, ...]
    training: Training
    roles: Mapping[str, str]
    lr: float
    progress: Callable[[int, int], None] | None

    def until_decided(self, subject: Subject, seeds: int) -> tuple[Runs, _Judged]:
        """Doubles the seeds until the verdict and its cause are decided, or the cap is reached."""
        runs: dict[int, list[Run]] = {width: [] for width in self.widths}
        wanted = seeds
        while True:
            self._extend(runs, subject, wanted)
            judged = self._judge(runs)
            if _is_decided(judged) or wanted >= MORE_SEEDS * seeds:
                return runs, judged
            wanted = min(2 * wanted, MORE_SEEDS * seeds)

    def control(self, subject: Subject, seeds: int) -> Control:
        """How what must not pass does; a control that diverges does not pass."""
        runs: dict[int, list[Run]] = {width: [] for width in self.widths}
        try:
            self._extend(runs, subject, seeds)
        except DivergenceError as error:
            return Control(subject.name, "fail", str(error))
        judged = self._judge(runs)
        worst = max(judged.slopes, key=lambda slope: abs(slope.off))
        return Control(subject.name, judged.verdict, f"{worst.name}: {worst.kind} {worst.value:+.2f}")

    def _extend(self, runs: dict[int, list[Run]], subject: Subject, seeds: int) -> None:
        planned = len(self.widths) * seeds
        for seed in range(len(runs[self.widths[0]]), seeds):
            for width in self.widths:
                try:
                    runs[width].append(run(subject, width, seed, self.training))
                except LossNotFiniteError as error:
                    raise DivergenceError(
                        f"{subject.name!r} diverged: its loss is not finite at step {error.step} of width {width}, "
                        f"seed {seed}, with lr {self.lr:g}. Give a smaller lr=."
                    ) from None
                if self.progress is not None:
                    self.progress(sum(len(done) for done in runs.values()), planned)

    def _judge(self, runs: Runs) -> _Judged:
        slopes, listed = parameter_slopes(runs, self.table.law, self.roles)
        softmax = read_softmax(runs, self.table.attention)
        return _Judged(slopes, listed, softmax, judge(slopes, softmax))


def _is_decided(judged: _Judged) -> bool:
    """A failure's cause is only known once it is known whether sizes at init are right: they count first."""
    inits = {slope.status for slope in judged.slopes if slope.kind == "init"}
    cause_open = judged.verdict == "fail" and "outside" not in inits and "undecided" in inits
    return judged.verdict != "undecided" and not cause_open


class DivergenceError(ConfigError):
    """An lr at which the training diverges."""


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
