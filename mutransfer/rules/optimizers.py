"""Optimizer families as data: what a learning rate, eps and weight decay mean when a weight is rescaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mutransfer.errors import RuleError, nearest

Decay = Literal["decoupled", "l2", "none"]


@dataclass(frozen=True)
class Optimizer:
    """One optimizer as a table sees it.

    Attributes:
        name: the registry name.
        family: the column of the tables that it reads.
        homogeneity: p, where the update is homogeneous of degree p in the gradient (SGD 1, Adam 0).
            Source: Yang & Hu et al. 2022 (arXiv:2203.03466), Lemma J.1, generalized.
        decay: "decoupled" (W -= lr * wd * W, AdamW), "l2" (wd * W is added to the gradient), or
            "none": a positive weight decay is refused, since no width law is known.
        has_eps: whether an eps is added to the root of the second moment.
    """

    name: str
    family: str
    homogeneity: float
    decay: Decay
    has_eps: bool

    def lr_under(self, t: float) -> float:
        """The factor on lr that keeps training identical when the stored weight is multiplied by t."""
        return float(t ** (1 + self.homogeneity))

    def eps_under(self, t: float) -> float:
        """The factor on eps (added after the root): the stored weight's gradient is divided by t."""
        return t**-1

    def decay_under(self, t: float) -> float:
        """The factor on weight decay: lr * decay is kept if decoupled, L2 in the gradient folds with t^-2."""
        return t**-2 if self.decay == "l2" else 1 / self.lr_under(t)


OPTIMIZERS: Mapping[str, Optimizer] = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("sgd", family="sgd", homogeneity=1, decay="l2", has_eps=False),
        Optimizer("adam", family="adam", homogeneity=0, decay="none", has_eps=True),
        Optimizer("adamw", family="adam", homogeneity=0, decay="decoupled", has_eps=True),
        Optimizer("adam-l2", family="adam-l2", homogeneity=0, decay="l2", has_eps=True),
    )
}


def find_optimizer(name: str) -> Optimizer:
    """Raises RuleError for an optimizer without a rule: it must not silently train as another one."""
    if isinstance(name, str) and name in OPTIMIZERS:
        return OPTIMIZERS[name]
    called = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
    raise RuleError(f"There is no rule for optimizer {called!r}; give a name.{nearest(called.lower(), OPTIMIZERS)}")
