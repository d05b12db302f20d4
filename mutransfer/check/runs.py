"""One short training run of one size and seed, measured at init and after its last step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from mutransfer.check.batches import Loss, described
from mutransfer.check.draws import CommonDraws
from mutransfer.check.few import FewPositions, Limits, limits_between
from mutransfer.check.flow import rms
from mutransfer.check.measure import InRows, Snapshot, measure
from mutransfer.errors import ConfigError
from mutransfer.train.precision import Precision, find_precision

FP32 = find_precision("fp32")
NO_GRADIENT = 1e-6
"""A gradient this much smaller than the model's typical one is zero by symmetry and rounding."""
NOTHING = 1e-12
"""And one this much smaller than the largest is no typical one: a layer scale of 1e-6 is far from it."""


@dataclass(frozen=True)
class Settings:
    """What an optimizer's groups say of one parameter; eps is None where the optimizer has none."""

    lr: float
    eps: float | None
    weight_decay: float


@dataclass(frozen=True)
class Subject:
    """What is checked: how a model of one size, its width or its depth, is made ready to train.

    Attributes:
        name: of the parameterization.
        make: size -> the model and its optimizer.
        carried: size -> (parameter -> the factor that it carries for another tensor, where that is not 1).
        in_rows: size -> (parameter -> the factor that some of its rows have in the forward pass for a softmax scale).
        settings: sizes -> what the optimizer would be given at each, with weight decay.
    """

    name: str
    make: Callable[[int], tuple[nn.Module, Optimizer]]
    carried: Callable[[int], Mapping[str, float]]
    in_rows: Callable[[int], InRows]
    settings: Callable[[Iterable[int]], Mapping[int, Mapping[str, Settings]]]


@dataclass(frozen=True)
class Training:
    """How every run trains.

    Attributes:
        steps: optimizer steps, after the last of which it is measured.
        batch: (model, size, seed) -> the batch that the run repeats.
        loss: (model, batch) -> scalar.
        precision: of the training steps; measurements are in float32.
        limits: see `FewPositions`, the same for all runs of a check.
    """

    steps: int
    batch: Callable[[nn.Module, int, int], Any]
    loss: Loss
    precision: Precision
    limits: Limits = field(default_factory=dict)

    def between(self, subject: Subject, small: int, large: int) -> Training:
        """With the limits for a subject's widths."""
        fan_ins = []
        for size in (small, large):
            with torch.random.fork_rng(), torch.no_grad():
                fresh = _Fresh.of(subject, size, 0, self)
                with fresh.few:
                    self.loss(fresh.model, fresh.batch)
                fan_ins.append(fresh.few.fan_ins)
        return replace(self, limits=limits_between(*fan_ins))


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        init, last: at init, and after the last step.
        without_gradient: parameters whose gradient is zero by symmetry.
        frozen: parameters that are not trained.
        trained: the others, those whose gradient is not zero.
        carried, in_rows: see `Subject`.
        batch: the shapes that it trained on.
        model: the name of its class.
    """

    init: Snapshot
    last: Snapshot
    without_gradient: frozenset[str]
    frozen: frozenset[str]
    trained: frozenset[str]
    carried: Mapping[str, float]
    in_rows: InRows
    batch: str
    model: str


class LossNotFiniteError(Exception):
    """A loss that is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True)
class _Fresh:
    """What trains: a model, its optimizer, the batch that it repeats, the positions that its weights learn from, and
    what some rows of them carry, see `Subject`."""

    model: nn.Module
    optimizer: Optimizer
    batch: Any
    few: FewPositions
    in_rows: InRows

    @classmethod
    def of(cls, subject: Subject, size: int, seed: int, training: Training) -> Self:
        in_rows = subject.in_rows(size)  # first, since a plan has draws of its own
        with CommonDraws(seed):
            model, optimizer = subject.make(size)
        torch.manual_seed(seed)
        _refuse_rounded(model)
        _still(model)
        return cls(model, optimizer, training.batch(model, size, seed), FewPositions(model, training.limits), in_rows)

    def measured(self, training: Training, *before: Any) -> Snapshot:
        """See `measure`."""
        return measure(self.model, lambda m: training.loss(m, self.batch), *before, in_rows=self.in_rows, few=self.few)


def run(subject: Subject, size: int, seed: int, training: Training) -> Run:
    """Trains one fresh model for a few steps; the caller's random state is untouched.

    Raises:
        LossNotFiniteError: a loss that is not finite.
    """
    with torch.random.fork_rng(), torch.enable_grad():
        fresh = _Fresh.of(subject, size, seed, training)
        model = fresh.model
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        init = fresh.measured(training)
        gradients = dict.fromkeys(start, 0.0)
        for step in range(1, training.steps + 1):
            for name, ratio in _step(fresh, training, step).items():
                gradients[name] = max(gradients[name], ratio)
        last = fresh.measured(training, start, init)
        frozen = frozenset(name for name, p in model.named_parameters() if not p.requires_grad)
        still = frozenset(name for name, ratio in gradients.items() if ratio < NO_GRADIENT) - frozen
        trained = frozenset(start) - still - frozen
        init = replace(init, outputs={})  # only needed for the changes since
        factors = subject.carried(size), fresh.in_rows
        return Run(init, last, still, frozen, trained, *factors, described(fresh.batch), type(model).__name__)


def at_init(subject: Subject, size: int, seed: int, training: Training) -> Snapshot:
    """The first forward pass of a run."""
    with torch.random.fork_rng():
        return _Fresh.of(subject, size, seed, training).measured(training)


def _refuse_rounded(model: nn.Module) -> None:
    """Changes of weights that are held in half precision are lost to rounding."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"{name!r} is held in {str(parameter.dtype).removeprefix('torch.')}, in which the changes of a few "
                "steps are lost to rounding. Build the model in float32; precision='bf16' computes in bfloat16."
            )


def _still(model: nn.Module) -> None:
    """No dropout; BatchNorm by the batch's own statistics, as in training."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()


def _step(fresh: _Fresh, training: Training, step: int) -> dict[str, float]:
    """One update; returns the sizes of the gradients in float32, where symmetric ones can be told from rounding."""
    _backward(fresh, training, step, FP32)
    sizes = _gradient_sizes(fresh.model)
    if training.precision != FP32:
        _backward(fresh, training, step, training.precision)
    fresh.optimizer.step()
    return sizes


def _backward(fresh: _Fresh, training: Training, step: int, precision: Precision) -> None:
    fresh.optimizer.zero_grad(set_to_none=True)
    with fresh.few:
        with precision.context(next(fresh.model.parameters()).device):
            loss = training.loss(fresh.model, fresh.batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ConfigError("loss= must return one scalar tensor that depends on the model's parameters.")
        if not math.isfinite(loss.item()):
            raise LossNotFiniteError(step)
        loss.backward()


def _gradient_sizes(model: nn.Module) -> dict[str, float]:
    """RMS of each gradient over the median of those that are any: half of a model may be a tower without one."""
    sizes = {n: rms(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    least = NOTHING * max(sizes.values(), default=0.0)
    some = sorted(size for size in sizes.values() if size > least)
    typical = some[len(some) // 2] if some else 0.0
    return {name: size / typical if typical else 0.0 for name, size in sizes.items()}
