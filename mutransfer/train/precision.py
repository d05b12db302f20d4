"""Precision policies: what a forward and backward pass runs in. Weights and optimizer state stay fp32."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mutransfer.errors import ConfigError, nearest


@dataclass(frozen=True)
class Precision:
    """A policy; a new one (fp8, say) is one more entry of `PRECISIONS`.

    Attributes:
        name: in configs.
        autocast: the dtype that torch.autocast lowers matrix products to; None for no autocast.
    """

    name: str
    autocast: torch.dtype | None = None

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """What a forward pass runs inside."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("fp32"),
    "bf16": Precision("bf16", torch.bfloat16),
}


def find_precision(name: str) -> Precision:
    """Raises ConfigError for an unknown name."""
    if name not in PRECISIONS:
        raise ConfigError(f"There is no precision {name!r}.{nearest(name, PRECISIONS)}")
    return PRECISIONS[name]
