"""Doors: a plan's groups, its clipping and a guard on schedules, in the training loops of others.

`plan_trainer` (transformers), `plan_accelerator` (accelerate), `PlannedModule` (Lightning), `join_parts` (loops over a
list of model parts, as torchtitan's), and what they are made of: `plan_optimizer`, `list_groups`, `check_schedule`.
"""

from mutransfer.integrations.accelerator import plan_accelerator
from mutransfer.integrations.lightning import PlannedModule
from mutransfer.integrations.optimizer import list_groups, plan_optimizer
from mutransfer.integrations.parts import join_parts
from mutransfer.integrations.schedules import check_schedule
from mutransfer.integrations.trainer import plan_trainer

__all__ = [
    "PlannedModule",
    "check_schedule",
    "join_parts",
    "list_groups",
    "plan_accelerator",
    "plan_optimizer",
    "plan_trainer",
]
