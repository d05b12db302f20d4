"""What is in the zoo: a name, and how it is made small and at any width and depth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from mutransfer.planning.depths import with_lists
from mutransfer.planning.fields import Kind, Path, depth_fields, mapped, with_values
from mutransfer.planning.resize import resized
from mutransfer.planning.widths import Widths
from zoo.layer_sizes import divisor_of, times

WIDTH, DEPTH = 64, 2
"""Of the small models that are built by hand here."""


@dataclass(frozen=True)
class Small:
    """A small model that can be made wider, and mostly deeper.

    Attributes:
        width: of the smallest.
        make: width, a multiple of the smallest -> a fresh model.
        inputs: seed -> what the smallest's forward pass takes.
        notes: columns that only its source knows.
        deep: width and depth -> a fresh model; None where it has no number of layers.
        depth: of the shallowest.
        at_width: width and seed -> what a model of that width takes; None where that is what the smallest does.
    """

    width: int
    make: Callable[[int], nn.Module]
    inputs: Callable[[int], tuple[Any, ...] | dict[str, Any]]
    notes: dict[str, Any] = field(default_factory=dict)
    deep: Callable[[int, int], nn.Module] | None = None
    depth: int = 1
    at_width: Callable[[int, int], tuple[Any, ...] | dict[str, Any]] | None = None

    def inputs_at(self, width: int, seed: int = 0) -> tuple[Any, ...] | dict[str, Any]:
        """What a model of some width takes."""
        return self.inputs(seed) if self.at_width is None else self.at_width(width, seed)


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


@dataclass(frozen=True)
class Wider:
    """How a config's model is made wider.

    Attributes:
        at: config and factor -> its config.
        build: that config and the factor -> the model.
        notes: columns that say by what.
    """

    at: Callable[[Any, int], Any]
    build: Callable[[Any, int], nn.Module]
    notes: dict[str, Any]


def by_fields(widths: Widths, build: Callable[[Any], nn.Module]) -> Wider:
    """By the fields of the config that are widths."""
    return Wider(widths.at, lambda config, k: build(config), {"wider_by": "fields", **widths.summary()})


def by_layers(
    config: Any, build: Callable[[Any], nn.Module], run: Callable[[nn.Module], object], kept: Collection[int] = ()
) -> Wider:
    """By the sizes of its layers, see `layers_times`; the config is what it was. Raises ShapeError where it does not
    run then."""
    divisor = divisor_of(lambda: build(config), run, kept)

    def wider(config: Any, k: int) -> nn.Module:
        return times(Fraction(k, divisor), kept, lambda: build(config))

    return Wider(lambda config, k: config, wider, {"wider_by": "layers", "layers_over": divisor})


@dataclass(frozen=True)
class Deeper:
    """Makes a small config's model at any width, and with its numbers of layers multiplied; 1 leaves them as they are.

    Attributes:
        config, width: of the small model.
        wider: how it is made wider.
        kept: the numbers of layers that are not multiplied.
    """

    config: Any
    width: int
    wider: Wider
    kept: frozenset[Path] = frozenset()

    @property
    def counts(self) -> frozenset[Path]:
        """The config's numbers of layers."""
        return frozenset(f.path for f in depth_fields(self.config) if f.kind is Kind.DEPTH)

    def __call__(self, width: int, times: int) -> nn.Module:
        k = width // self.width
        return self.wider.build(times_as_deep(self.wider.at(self.config, k), times, self.kept), k)


def from_config(config: Any, width: int, wider: Wider) -> tuple[Callable[[int], nn.Module], Deeper | None]:
    """How a small config's model is made at any width, and at any width and depth."""

    def make(width_now: int) -> nn.Module:
        k = width_now // width
        return wider.build(wider.at(config, k), k)

    deeper = Deeper(config, width, wider)
    return make, deeper if deeper.counts else None


def times_as_deep(config: Any, times: int, kept: Collection[Path] = ()) -> Any:
    """Every number of layers multiplied but some, every list with an entry per layer as long, and what the config's own
    constructor derives from these; where it does not take a config that was made small, that stays."""
    counts = [f for f in depth_fields(config) if f.kind is Kind.DEPTH and f.path not in kept]
    changes = with_lists(config, {f.path: mapped(f.value, lambda n: n * times) for f in counts})
    with suppress(Exception):  # whatever a foreign config raises in its checks
        return resized(config, changes)
    return with_values(config, changes)


def images(batch: int, side: int, channels: int = 3) -> Callable[[int], tuple[Any, ...]]:
    """Seeded images."""

    def draw(seed: int) -> tuple[Any, ...]:
        return (torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed)),)

    return draw
