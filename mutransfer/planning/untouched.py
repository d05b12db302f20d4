"""What reading a model leaves as it was: the random state, and where its tensors are."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Reading a model must not move the user's random state: torch's, Python's, nor NumPy's where it is in use."""
    numpy = sys.modules.get("numpy")
    own, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(own)
        if numpy:
            numpy.random.set_state(arrays)


@contextmanager
def in_place() -> Iterator[None]:
    """Tensors without values cannot be copied to another device: a constructor's `.to(device)` leaves them here."""
    move = nn.Module._apply

    def stay(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        try:
            return move(self, fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
        except (NotImplementedError, RuntimeError):
            return self

    nn.Module._apply = stay  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = move  # type: ignore[method-assign]


def seed_all(seed: int) -> None:
    """Seeds torch, Python, and NumPy where it is in use."""
    torch.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
