"""Learning-rate schedules as a pure function of the step, so that per-group ratios always survive."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer

from mutransfer.errors import ConfigError
from mutransfer.train.settings import check_choice, check_fraction, check_whole

SCHEDULES = ("cosine", "wsd", "constant")


@dataclass(frozen=True)
class Schedule:
    """Linear warmup, then one of three shapes.

    Attributes:
        steps: of the whole run.
        kind: cosine; wsd (constant, then linear over the last `decay`); constant.
        warmup, decay: fractions of the steps.
        final: factor that is reached at the end, by cosine and wsd.
    """

    steps: int
    kind: str = "cosine"
    warmup: float = 0.1
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        check_whole("train", self, "steps")
        check_fraction("train", self, "warmup", "decay", "final")
        if self.kind not in SCHEDULES:
            check_choice("train", _Named(self.kind), "schedule", SCHEDULES)
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise ConfigError(
                f"train.warmup={self.warmup} and train.decay={self.decay} leave no steps between them: "
                "together they must be at most 1."
            )

    def __call__(self, step: int) -> float:
        """The factor on every group's base lr at a step, counted from 0; it is 1 at the peak.

        >>> [Schedule(4, "cosine", warmup=0.0)(step) for step in (0, 2)]
        [1.0, 0.5]
        """
        warm = round(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        if self.kind == "cosine":
            progress = (step - warm) / max(1, self.steps - warm)
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        if self.kind == "wsd":
            left = (self.steps - step) / max(1, round(self.decay * self.steps))
            return self.final + (1 - self.final) * max(0.0, min(1.0, left))
        return 1.0


@dataclass(frozen=True)
class _Named:
    schedule: str


def base_lrs(optimizer: Optimizer) -> list[float]:
    """Each group's own lr before any schedule, remembered in the group as torch's schedulers do."""
    return [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]


def set_lrs(optimizer: Optimizer, base: list[float], factor: float) -> None:
    for group, lr in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = lr * factor
