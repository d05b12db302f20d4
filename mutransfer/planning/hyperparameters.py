"""muP's own hyperparameters: multipliers, init stds and learning rates per role, tuned on the proxy."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mutransfer.errors import ConfigError, RoleError, nearest
from mutransfer.rules.table import Role

MULTIPLIERS = ("output_mult", "attn_mult", "embedding_mult", "residual_mult")
INIT_ROLES = (Role.INPUT, Role.HIDDEN, Role.OUTPUT)


@dataclass(frozen=True)
class Hyperparameters:
    """Each is a factor and 1 by default.

    Attributes:
        output_mult: on the logits.
        attn_mult: on the softmax scale.
        embedding_mult: on what role input contributes.
        residual_mult: on every residual branch that repeats with depth; tables with depth rules only.
        init_std: role -> factor on the std of drawn tensors.
        lr: role or glob over parameter names -> factor on the learning rate; all that match multiply.
    """

    output_mult: float = 1.0
    attn_mult: float = 1.0
    embedding_mult: float = 1.0
    residual_mult: float = 1.0
    init_std: Mapping[Role, float] = field(default_factory=dict)
    lr: Mapping[str, float] = field(default_factory=dict)

    def lr_of(self, name: str, role: Role) -> float:
        matching = (f for key, f in self.lr.items() if key == role or fnmatch.fnmatchcase(name, key))
        return math.prod(matching, start=1.0)

    def set_values(self) -> dict[str, float]:
        """Those that are not 1, under the names they are given by."""
        flat = {name: getattr(self, name) for name in MULTIPLIERS}
        flat |= {f"init_std.{role}": value for role, value in self.init_std.items()}
        flat |= {f"lr.{key}": value for key, value in self.lr.items()}
        return {name: value for name, value in flat.items() if value != 1.0}


def parse_hyperparameters(given: Mapping[str, Any] | None) -> Hyperparameters:
    """Reads `{"output_mult": 2, "lr.input": 8, "init_std": {"hidden": 0.5}}`; dotted or nested.

    Raises:
        ConfigError: an unknown name, or a value that is not a positive number.
    """
    flat = _flatten(given or {})
    multipliers: dict[str, float] = {}
    init_std: dict[Role, float] = {}
    lr: dict[str, float] = {}
    for name, value in flat.items():
        _positive(name, value)
        head, _, tail = name.partition(".")
        if head in MULTIPLIERS and not tail:
            multipliers[head] = float(value)
        elif head == "init_std":
            init_std |= dict.fromkeys(_init_roles(tail), float(value))
        elif head == "lr" and tail:
            lr[tail] = float(value)
        else:
            known = [*MULTIPLIERS, *(f"init_std.{r}" for r in INIT_ROLES), *(f"lr.{r}" for r in Role)]
            raise ConfigError(f"There is no hyperparameter {name!r}.{nearest(name, known)}")
    return Hyperparameters(**multipliers, init_std=init_std, lr=lr)


def check_patterns(hyperparameters: Hyperparameters, names: Mapping[str, object]) -> None:
    """Raises RoleError for an lr pattern that is no role and matches no parameter."""
    for key in hyperparameters.lr:
        if key not in set(Role) and not any(fnmatch.fnmatchcase(name, key) for name in names):
            known = [*(role.value for role in Role), *names]
            raise RoleError(f"Learning rate pattern {key!r} matched no parameter.{nearest(key, known)}")


def _flatten(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"Hyperparameter {name} = {value!r} must be a positive number; 1 leaves it alone.")


def _init_roles(tail: str) -> tuple[Role, ...]:
    if not tail:
        return INIT_ROLES
    if tail in INIT_ROLES:
        return (Role(tail),)
    raise ConfigError(f"There is no init_std for {tail!r}.{nearest(tail, [r.value for r in INIT_ROLES])}")
