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
        schedule: cosine; wsd (constant, then linear over the last `decay`); constant.
        warmup, decay: fractions of the steps.
        final_lr: factor that is reached at the end, by cosine and wsd.
    """

    steps: int
    schedule: str = "cosine"
    warmup: float = 0.1
    decay: float = 0.2
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        check_whole("train", self, "steps")
        check_fraction("train", self, "warmup", "decay", "final_lr")
        check_choice("train", self, "schedule", SCHEDULES)
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
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
        if self.schedule == "cosine":
            progress = (step - warm) / max(1, self.steps - warm)
            return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        if self.schedule == "wsd":
            left = (self.steps - step) / max(1, round(self.decay * self.steps))
            return self.final_lr + (1 - self.final_lr) * max(0.0, min(1.0, left))
        return 1.0


def base_lrs(optimizer: Optimizer) -> list[float]:
    """Each group's own lr before any schedule, remembered in the group as torch's schedulers do."""
    return [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]


def set_lrs(optimizer: Optimizer, base: list[float], factor: float) -> None:
    for group, lr in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = lr * factor
