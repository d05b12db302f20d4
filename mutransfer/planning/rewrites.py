"""Ops that multiply by a number and add at once, as the product and the sum that they are: so each number is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "addmm": torch.mm,
    "baddbmm": torch.bmm,
    "addmv": torch.mv,
    "addcmul": torch.mul,
    "addcdiv": torch.div,
}
"""Op -> what it makes of its second and third operand, and adds to its first."""
_ALWAYS = ("addcmul", "addcdiv")
_NAMES = {*_PRODUCTS, "add", "sub", "rsub"}


def rewritten(packet: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Tensor] | None:
    """What the op does, in ops of one factor each; None for an op that needs no rewriting."""
    name = packet.rstrip("_")
    if name not in _NAMES or "out" in kwargs:
        return None
    alpha, beta = kwargs.get("alpha", kwargs.get("value", 1)), kwargs.get("beta", 1)
    if alpha == beta == 1 and name not in _ALWAYS:
        return None
    return lambda: _sum(name, args, alpha, beta, in_place=packet.endswith("_"))


def _sum(name: str, args: tuple[Any, ...], alpha: float, beta: float, *, in_place: bool) -> Tensor:
    first, *rest = args if name != "rsub" else (args[1], args[0])
    made = _PRODUCTS[name](*rest) if name in _PRODUCTS else rest[0]
    added = made if alpha == 1 else made * alpha
    total: Tensor = added  # where beta is 0 whatever the first operand holds, be it nan
    if in_place:
        kept = first if beta == 1 else first.mul_(beta)
        total = kept.copy_(added) if beta == 0 else kept.sub_(added) if name == "sub" else kept.add_(added)
    elif beta != 0:
        kept = first if beta == 1 else first * beta
        total = kept - added if name in ("sub", "rsub") else added + kept  # an attention's logits, then its mask
    return total
