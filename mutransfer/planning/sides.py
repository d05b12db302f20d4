"""Base, model and a deeper one side by side: as wholes, and in each part that the inputs of the whole do not reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import nn

from mutransfer.planning.branches import Branch, find_branches, key_of, repeating
from mutransfer.planning.ops import Trace
from mutransfer.planning.parts import Alone, around, reached_by, trace_alone
from mutransfer.planning.rebuild import Build
from mutransfer.planning.templates import Templates

Key = tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """One model, or a part of it that is run alone (`Alone`), evaluated: its trace and its residual branches.

    Attributes:
        inputs: that it was traced on.
        build: makes the whole model with values, where this one is on meta.
    """

    model: nn.Module
    trace: Trace
    branches: tuple[Branch, ...]
    inputs: Any = None
    build: Build | None = None

    @classmethod
    def of(cls, model: nn.Module, traced: Trace, inputs: Any = None, build: Build | None = None) -> Self:
        return cls(model, traced, find_branches(traced), inputs, build)

    def alone(self, path: str, inputs: Any = None) -> Self | None:
        """A part by itself; None where it takes no inputs that can be guessed, or holds a parameter that is another
        part's as well."""
        part = Alone(self.model, path)
        found = trace_alone(part, self.build, inputs)
        own = {name for name in self.trace.uses if name.startswith(f"{path}.")}
        if found is None or found[1].uses.keys() != own:
            return None
        taken, traced = found
        return type(self).of(part, traced, taken, self.build)

    def without(self, paths: Iterable[str]) -> Self:
        """Less the parameters of some parts."""
        prefixes = tuple(f"{path}." for path in paths)
        uses = {name: found for name, found in self.trace.uses.items() if not name.startswith(prefixes)}
        return replace(self, trace=replace(self.trace, uses=uses))


@dataclass(frozen=True)
class Sides:
    """What is compared.

    Attributes:
        deeper: than the base; None where base and model are of two depths themselves.
        path: of the part that these are; "" for the whole.
    """

    base: Side
    own: Side
    deeper: Side | None = None
    path: str = ""

    def repeating_keys(self, templates: Templates) -> set[Key]:
        """Of the branches whose number grows from the shallower to the deeper of two, whichever that is."""
        one, other = self.base.branches, (self.deeper or self.own).branches
        growing = (*repeating(one, other, templates), *repeating(other, one, templates))
        return {key_of(branch, templates) for branch in growing}

    def alone(self, path: str) -> Self | None:
        """A part of each; None where one of them cannot be run alone."""
        base = self.base.alone(path)
        own = None if base is None else self.own.alone(path, base.inputs)
        deeper = None if base is None or self.deeper is None else self.deeper.alone(path, base.inputs)
        if base is None or own is None or (self.deeper is not None and deeper is None):
            return None
        return type(self)(base, own, deeper, path)

    def without(self, paths: Iterable[str]) -> Self:
        paths = list(paths)
        deeper = None if self.deeper is None else self.deeper.without(paths)
        return replace(self, base=self.base.without(paths), own=self.own.without(paths), deeper=deeper)


def apart(whole: Sides, templates: Templates) -> tuple[Sides, ...]:
    """The whole less its towers, and every tower by itself: the largest parts that hold blocks which the inputs do not
    reach (a vision tower, given text alone), and that reach these when they are run alone.

    A part of a block is none: what it gives is added to a stream outside of it.
    """
    towers: list[Sides] = []
    reached = {*reached_by(whole.base.trace), *reached_by(whole.own.trace)}
    tried: set[str] = set()
    for name in whole.base.trace.uses:
        for path in () if templates.stack(name) is None else around(name, reached):
            if path in tried or templates.of(path) != path:
                continue
            tried.add(path)
            tower = whole.alone(path)
            if tower is not None and name in reached_by(tower.base.trace):
                towers.append(tower)
                reached |= tower.base.trace.uses.keys()
                break
    return whole.without(tower.path for tower in towers), *towers
