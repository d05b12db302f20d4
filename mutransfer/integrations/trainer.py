"""transformers.Trainer and its subclasses: planned groups, planned clipping, and a look at the schedule."""

from __future__ import annotations

import logging
from typing import Any

from mutransfer.convert import Plan
from mutransfer.errors import ConfigError
from mutransfer.integrations.accelerator import plan_accelerator
from mutransfer.integrations.optimizer import list_groups, plan_optimizer
from mutransfer.integrations.schedules import check_schedule

log = logging.getLogger("mutransfer")


def plan_trainer(trainer: Any, plan: Plan) -> None:
    """Lets a Trainer train a planned model: call it between the Trainer's construction and `train()`.

    Its optimizer is made as always (`args.optim`, no-decay lists, a subclass's own groups) and its groups are then
    split as planned; `args.max_grad_norm` clips as `plan.clip_grad_norm_` does; a schedule that would erase the ratios
    is refused when training begins. The groups are logged ("mutransfer", level INFO).

    Args:
        trainer: a `transformers.Trainer`, of a subclass or not, whose model is parameterized.
        plan: the model's.

    Raises:
        ConfigError: no Trainer, DeepSpeed, or (as training begins) a schedule that sets one lr for all groups.
    """
    if not hasattr(trainer, "create_optimizer") or not hasattr(trainer, "add_callback"):
        raise ConfigError(f"{type(trainer).__name__} is no transformers.Trainer. Give the Trainer, built.")
    if getattr(trainer, "is_deepspeed_enabled", False):
        raise ConfigError("DeepSpeed makes its own optimizer and clips by itself. Train with FSDP2 or DDP.")
    if trainer.optimizer is not None:
        check_schedule(trainer.optimizer)
    create = trainer.create_optimizer

    def create_optimizer(model: Any = None) -> Any:
        """The Trainer's own, then split; one that was given is the user's."""
        made_here = trainer.optimizer is None
        optimizer = create() if model is None else create(model)
        if made_here:
            plan_optimizer(optimizer, plan, trainer.model if model is None else model)
        return optimizer

    trainer.create_optimizer = create_optimizer
    trainer.add_callback(_guard(trainer, plan))


def _guard(trainer: Any, plan: Plan) -> Any:
    from transformers import TrainerCallback

    class PlanGuard(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Once wrapping, sharding and the schedule are done with."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
            check_schedule(objects["lr_scheduler"])
            plan_accelerator(trainer.accelerator, plan, trainer.model_wrapped)
            log.info("planned groups:\n%s", list_groups(objects["optimizer"].param_groups))

    return PlanGuard()
