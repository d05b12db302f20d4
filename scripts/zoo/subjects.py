"""What is in the zoo: a name, and how it is made small and at any width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

WIDTH = 64
"""Of the small models that are built by hand here."""


@dataclass(frozen=True)
class Small:
    """A small model that can be made wider.

    Attributes:
        width: of the smallest.
        make: width, a multiple of the smallest -> a fresh model.
        inputs: seed -> what its forward pass takes.
        notes: columns that only its source knows.
    """

    width: int
    make: Callable[[int], nn.Module]
    inputs: Callable[[int], tuple[Any, ...] | dict[str, Any]]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """One line of the zoo.

    Attributes:
        name, source: unique together.
        small: makes it small; raises where it does not build.
    """

    name: str
    source: str
    small: Callable[[], Small]


class NotBuiltError(Exception):
    """A model that does not build for reasons of its own: its default config is incomplete, a library is missing."""


def subjects() -> Iterator[Subject]:
    """Everything, in a fixed order."""
    from zoo.from_timm import timm_subjects
    from zoo.from_torch import torch_subjects
    from zoo.from_transformers import transformers_subjects

    yield from torch_subjects()
    yield from timm_subjects()
    yield from transformers_subjects()


def images(batch: int, side: int, channels: int = 3) -> Callable[[int], tuple[Any, ...]]:
    """Seeded images."""

    def draw(seed: int) -> tuple[Any, ...]:
        return (torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed)),)

    return draw
