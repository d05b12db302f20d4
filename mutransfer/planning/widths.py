"""Width discovery: which fields of a config make its model wider, proven by building it two and three times as wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from mutransfer.errors import MutransferError, ShapeError
from mutransfer.planning.fields import (
    PRIMARY,
    Field,
    HeadScaling,
    Kind,
    fields_of,
    primary_field,
    scaled_value,
    width_fields,
    with_values,
)
from mutransfer.planning.narrow import inner_config
from mutransfer.planning.sizes import Shapes, compare, shapes_of, without_memory

Build = Callable[[Any], nn.Module]
Run = Callable[[Any], object]
"""Runs the forward pass of a config's model; raises whatever it likes where it fails."""


@dataclass(frozen=True)
class Widths:
    """How a config's model grows.

    Attributes:
        fields: what is multiplied.
        mixed: parameters with a dimension a*k + b, b not 0.
        never: matrices of which no dimension grows.
    """

    fields: tuple[Field, ...]
    mixed: tuple[str, ...]
    never: tuple[str, ...]

    def at(self, config: Any, k: int) -> Any:
        """The config k times as wide."""
        return with_values(config, {field.path: scaled_value(field, k) for field in self.fields})

    def summary(self) -> dict[str, int]:
        return {"width_fields": len(self.fields), "mixed": len(self.mixed), "never_grow": len(self.never)}


def discover_widths(config: Any, build: Build, scale: HeadScaling = "heads", run: Run | None = None) -> Widths:
    """The fields that make a model wider, so that every size grows as a*k + b; nothing takes memory.

    Where a model multiplies its heads into its widths by itself, the heads are left alone; where it multiplies two
    widths, the one of them without which the fewest matrices never grow; where a factor multiplies all of them, that
    and the config's own width may be what grows.

    Args:
        config, build: of the model.
        scale: which of heads and their sizes follow.
        run: what the wider model must pass too, where several choices of fields build; where none does, it is the
            first of them.

    Raises:
        ShapeError: nothing grows, or not evenly; it carries the first failure.
    """
    fields = width_fields(config, scale)
    failures: list[Exception] = []
    proven: list[Widths] = []
    for chosen in _choices(config, fields):
        try:
            found = _proven(config, build, chosen)
            if run is None:
                return found
            proven.append(found)
            run(found.at(config, 2))
            return found
        except Exception as error:  # whatever a foreign constructor or forward pass raises
            failures.append(error)
    if proven:
        return proven[0]
    failure = failures[0]
    if isinstance(failure, MutransferError):
        fewer = list(_without_one(config, build, fields))
        if fewer:
            return min(fewer, key=lambda found: len(found.never))
        raise failure
    raise ShapeError(
        f"{type(config).__name__} cannot be built wider ({type(failure).__name__}: {failure}). "
        "Give factory=, a function from width to model."
    ) from failure


def _choices(config: Any, fields: Sequence[Field]) -> Iterator[Sequence[Field]]:
    """All; all but heads; a factor on all widths with the config's own width, instead of them."""
    yield fields
    yield [field for field in fields if field.kind not in (Kind.HEADS, Kind.HEAD_DIM)]
    factors = [field for field in fields_of(config) if field.kind is Kind.MULTIPLIER and isinstance(field.value, float)]
    owners = {field.owner for field in factors} - {field.owner for field in fields if field.kind is Kind.MULTIPLIER}
    if owners:
        own = {(*owner, primary_field(inner_config(config, owner))) for owner in owners}
        others = [field for field in fields if field.owner not in owners or field.path in own]
        yield [*others, *(field for field in factors if field.owner in owners)]


def _without_one(config: Any, build: Build, fields: Sequence[Field]) -> Iterator[Widths]:
    """What is proven with one width left as it is, a config's own last."""
    for left in sorted((field for field in fields if field.kind is Kind.WIDTH), key=lambda f: f.name in PRIMARY):
        with suppress(Exception):  # whatever a foreign constructor raises
            yield _proven(config, build, [field for field in fields if field is not left])


def _proven(config: Any, build: Build, fields: Sequence[Field]) -> Widths:
    at = Widths(tuple(fields), (), ()).at
    probes: list[Shapes] = [shapes_of(without_memory(lambda k=k: build(at(config, k)))) for k in (1, 2, 3)]  # type: ignore[misc]
    dims = compare(probes[0], probes[0], probes)
    if not any(dim.grows for row in dims.values() for dim in row):
        raise ShapeError(
            f"No field of {type(config).__name__} that is known as a width makes its model wider. "
            "Give factory=, a function from width to model."
        )
    mixed = tuple(name for name, row in dims.items() if any(dim.mixed for dim in row))
    never = tuple(name for name, row in dims.items() if len(row) > 1 and not any(dim.grows for dim in row))
    return Widths(tuple(fields), mixed, never)
