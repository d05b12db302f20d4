"""What a check varies, width or depth: which tensors are pooled, and what every one of them is held to."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, Protocol

from mutransfer.check.runs import Run
from mutransfer.check.shadow import Key, Use
from mutransfer.planning.templates import Templates
from mutransfer.rules.depth import DepthLaw, Place
from mutransfer.rules.table import Law, Role

AxisName = Literal["width", "depth"]
Kind = Literal["init", "change"]
Runs = Mapping[int, Sequence[Run]]
"""Size -> one run per seed, the same number everywhere."""

MARGIN = 0.25
"""Every exponent of every rule is a multiple of 1/2: half the way to the nearest wrong one."""


@dataclass(frozen=True)
class Claim:
    """What is claimed of one pooled use.

    Attributes:
        group: the row of the table: a role in a width check, a place in a depth check.
        init: the exponent at init, or the ends of a range of them; None where the values are not the table's.
        change: the exponent of its change.
        at_most: no more is claimed of the change than that, and nothing of the init.
        met: the exponents, at init and after training, of the activation that it is multiplied with where that shrinks,
            and 0 where it keeps its size or grows.
    """

    group: Role | Place
    init: tuple[float, float] | None
    change: float
    at_most: bool = False
    met: tuple[float, float] = (0.0, 0.0)

    def exponent(self, kind: Kind, measured: float) -> float | None:
        """Where a range is claimed, the exponent in it that is nearest to the measured one; None for no claim.

        Behind the results of a readout in the middle of a model (a bottleneck of fixed size) activations begin at
        n^-1/2 and grow with training to the size of 1. What meets them begins as small, and changes by anything from
        that to its law. Their own size is no fault of what meets them.
        """
        at_init, trained = self.met
        if kind == "change":
            lowest = -math.inf if self.at_most else self.change + trained
            return min(max(measured, lowest), self.change)
        return self.init and min(max(measured, self.init[0] + at_init), self.init[1] + at_init)

    def as_sum(self) -> Claim:
        """Of a use in which weights are summed over the size before anything meets them, such as DoRA's norm of a row.

        No activation is aligned with their changes there, so the exponent may be lower, but the norm of a row W_0 + D
        is off |W_0| by no more than |D|, and every rule keeps |D| / |W_0| from growing. With D = B A, n entries a row,
        W_0 and A of size n^-1/2, B of size 1, and the rules' changes dB ~ 1 and dA ~ 1/n: W_0 . (dB A) ~ n^-1/2 and
        W_0 . (B dA) ~ n^-1 beside |W_0| ~ 1. Measured on DoRA: -0.5 and -1.0.
        """
        return replace(self, init=None, at_most=True)


class Axis(Protocol):
    """A size that varies, all others being held."""

    @property
    def name(self) -> AxisName: ...

    @property
    def kept(self) -> bool:
        """Whether the values are the user's own (init="keep"), of which no table claims anything."""
        ...

    def pooled(self, path: str) -> str:
        """The name under which a parameter or module is measured together with others of its kind."""
        ...

    def claim(self, small: Use, large: Use, *, tied: bool) -> Claim:
        """What is claimed of a use, as it is at the smallest and at the largest size.

        `tied`: of a later use of a tensor that rows are looked up in.
        """
        ...


@dataclass(frozen=True)
class WidthAxis:
    """Every parameter stands for itself and is held to its role's exponents.

    Attributes:
        law: of the table.
        roles: glob over parameter names -> role, where the user knows better than the shapes.
        kept: see `Axis`.
    """

    law: Law
    roles: Mapping[str, str]
    kept: bool = False
    name: AxisName = field(default="width", init=False)

    def pooled(self, path: str) -> str:
        return path

    def claim(self, small: Use, large: Use, *, tied: bool) -> Claim:
        """A tied readout meets its own rows in the residual stream: the logit of the token that was read keeps its
        size, the others are noise. Their mix at init has an exponent anywhere from the readout's to the embedding's."""
        role = self._role(small, large)
        init = self.law.init[role]
        highest = max(init, self.law.init[Role.INPUT]) if tied and role is Role.OUTPUT else init
        return Claim(role, None if self.kept else (init, highest), self.law.change[role])

    def _role(self, small: Use, large: Use) -> Role:
        """From what grows between the two widths; the user's word wins. A vector of fixed length that multiplies the
        rows of a matrix, as AdaLoRA's E, grows only as it is broadcast."""
        for pattern, role in self.roles.items():
            if fnmatchcase(small.parameter, pattern):
                return Role(role)
        if large.entries == small.entries:
            return Role.SCALAR
        if large.fan_in > small.fan_in:
            return Role.HIDDEN if large.fan_out > small.fan_out else Role.OUTPUT
        if large.fan_out > small.fan_out:
            return Role.INPUT if large.fan_in > 1 or large.lookup else Role.VECTOR
        return Role.SCALAR


@dataclass(frozen=True)
class DepthAxis:
    """Parameters are pooled by template over the blocks of their stack, and held to their place's exponents.

    Attributes:
        law: of the depth table.
        templates: how names are read.
        places: template -> place; one that is missing is outside.
        kept: see `Axis`.
    """

    law: DepthLaw
    templates: Templates
    places: Mapping[str, Place]
    kept: bool = False
    name: AxisName = field(default="depth", init=False)

    def pooled(self, path: str) -> str:
        module, mark, number = path.partition("#")  # a module that adds several times has the number behind it
        return self.templates.of(module) + mark + number

    def claim(self, small: Use, large: Use, *, tied: bool) -> Claim:
        place = self.places.get(self.pooled(small.parameter), Place.OUTSIDE)
        init = self.law.init[place]
        return Claim(place, None if self.kept else (init, init), self.law.change[place])


@dataclass(frozen=True)
class Pool:
    """How the uses of a check's runs are put together.

    Attributes:
        axis: what varies.
        shared: parameters that are used more often at some sizes than at others, once per block: all their uses are
            pooled too.
    """

    axis: Axis
    shared: Container[str]

    @classmethod
    def of(cls, runs: Runs, axis: Axis) -> Pool:
        one, other = (_counts(runs[size][0]) for size in (min(runs), max(runs)))
        return cls(axis, {name for name in one if one[name] != other.get(name, one[name])})

    def key(self, use: Use) -> Key:
        return self.axis.pooled(use.parameter), 0 if use.parameter in self.shared else use.index

    def firsts(self, runs: Sequence[Run]) -> dict[Key, Use]:
        """Of each pooled use the first in execution order; an expert may have no token in the first run."""
        found: dict[Key, Use] = {}
        for run in runs:
            for use in run.init.uses:
                found.setdefault(self.key(use), use)
        return found

    def claims(self, runs: Runs) -> dict[Key, Claim]:
        """Of every pooled use that the smallest and the largest size have."""
        small, large = (self.firsts(runs[size]) for size in (min(runs), max(runs)))
        looked_up = {name for (name, _), use in small.items() if use.lookup}
        claims = {
            key: self.axis.claim(use, large[key], tied=key[0] in looked_up)
            for key, use in small.items()
            if key in large
        }
        sums = {key: claim.as_sum() for key, claim in claims.items() if large[key].summed > small[key].summed}
        claims |= sums
        return claims if self.axis.name == "depth" else self._of_what_they_meet(claims, runs)

    def _of_what_they_meet(self, claims: Mapping[Key, Claim], runs: Runs) -> dict[Key, Claim]:
        small, large, octaves = runs[min(runs)], runs[max(runs)], math.log2(max(runs) / min(runs))
        init = self._met(small, "init"), self._met(large, "init")
        last = self._met(small, "last"), self._met(large, "last")
        met = {key: (_shrinks(key, *init, octaves), _shrinks(key, *last, octaves)) for key in claims}
        return {key: replace(claim, met=met[key]) for key, claim in claims.items()}

    def _met(self, runs: Sequence[Run], when: Literal["init", "last"]) -> dict[Key, float]:
        """Of every pooled use the mean log2 RMS of what it is multiplied with; a factor in that which is the use's own,
        carried by a norm's gain in front of a tied readout, is divided out."""
        found: dict[Key, list[float]] = {}
        for run in runs:
            for use in (run.init if when == "init" else run.last).uses:
                if use.met:
                    size = use.met / run.carried.get(use.made_by, 1.0)
                    found.setdefault(self.key(use), []).append(math.log2(size))
        return {key: sum(sizes) / len(sizes) for key, sizes in found.items()}


def _shrinks(key: Key, small: Mapping[Key, float], large: Mapping[Key, float], octaves: float) -> float:
    """An exponent below zero, to a tenth, which is far finer than the margin."""
    if key not in small or key not in large:
        return 0.0
    return min(0.0, round((large[key] - small[key]) / octaves, 1))


def _counts(run: Run) -> dict[str, int]:
    counts: dict[str, int] = {}
    for use in run.init.uses:
        counts[use.parameter] = counts.get(use.parameter, 0) + 1
    return counts
