"""The same draws at every size.

What a seed shows at one size is compared with what it shows at another. A tensor that has the same shape at both, such
as the first bias of a readout or a mix of four heads, then holds the same values, and what it happens to be does not
look like an exponent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_STRIDE = 1_000_003
"""Draws of one seed: more than any model has. Seed and number share the 32 bits that torch's generator takes."""


class CommonDraws(TorchDispatchMode):
    """While it is entered, the n-th draw is a function of the seed and of n, however much was drawn before.

    Args:
        seed: of a run.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._next = seed * _STRIDE

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            _reseed(self._next % 2**32)
            self._next += 1
        return func(*args, **(kwargs or {}))


def _reseed(seed: int) -> None:
    """As `torch.manual_seed`, which takes milliseconds to say where a device that is not in use was seeded."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
