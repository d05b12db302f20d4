"""Lightning: a mixin that clips as planned and looks at the schedules."""

from __future__ import annotations

from typing import Any

from torch import nn

from mutransfer.convert import Plan
from mutransfer.convert.parameterize import MARK
from mutransfer.errors import ConfigError
from mutransfer.integrations.schedules import check_schedule


class PlannedModule:
    """Put it in front of LightningModule and set `self.plan`; make the optimizer from the plan.

    >>> # class Lit(PlannedModule, lightning.LightningModule):
    >>> #     def __init__(self):
    >>> #         super().__init__()
    >>> #         self.net = make(256)
    >>> #         self.plan = mt.parameterize(self.net, "mup", base=64, factory=make)
    >>> #     def configure_optimizers(self):
    >>> #         return self.plan.make_optimizer(self.net, lr=2**-8)
    """

    plan: Plan

    def configure_gradient_clipping(
        self: Any,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's hook: `Trainer(gradient_clip_val=)` clips as `plan.clip_grad_norm_` does."""
        value = self.trainer.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if not value:
            return
        if (gradient_clip_algorithm or "norm") != "norm":
            raise ConfigError(
                f"gradient_clip_algorithm={str(gradient_clip_algorithm)!r} clips every entry alike, which no form of a "
                "parameterization keeps. Use 'norm'."
            )
        self.plan.clip_grad_norm_(_planned_part(self), value)

    def on_train_start(self: Any) -> None:
        """Lightning's hook: raises ConfigError where a schedule would erase the ratios of the learning rates."""
        super().on_train_start()  # type: ignore[misc]
        for config in self.trainer.lr_scheduler_configs:
            check_schedule(config.scheduler)
        for optimizer in self.trainer.optimizers:
            check_schedule(optimizer)


def _planned_part(module: nn.Module) -> nn.Module:
    """The outermost module inside that was parameterized."""
    for part in module.modules():
        if MARK in vars(part):
            return part
    raise ConfigError(f"No part of {type(module).__name__} is parameterized. Call mutransfer.parameterize in __init__.")
