"""Single blocks that are unlike their neighbours, which the mean over a stack hides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mutransfer.check.axes import MARGIN, Axis, Kind, Pool, Runs
from mutransfer.check.shadow import Key, Use
from mutransfer.check.slopes import log_sizes_of
from mutransfer.check.statistics import Array, intervals

NEIGHBOURS = 2
"""Blocks on either side that one is compared with: what drifts slowly along a stack is right."""
FEWEST = 4
"""Blocks of a stack in which one can be told from the others."""


@dataclass(frozen=True)
class OddBlock:
    """A block's parameter whose size is off its neighbours' by more than half of what an exponent wrong by 1/2 does.

    Attributes:
        name: of the parameter.
        kind: "init" or "change".
        octaves: above the median of the blocks around it, itself among them.
        allowed: the line.
    """

    name: str
    kind: Kind
    octaves: float
    allowed: float


def odd_blocks(runs: Runs, axis: Axis) -> list[OddBlock]:
    """Those of the largest size whose interval lies wholly beyond the line, the farthest first."""
    largest = max(runs)
    allowed = MARGIN * math.log2(largest / min(runs))
    found = []
    kinds: tuple[Kind, ...] = ("change",) if axis.kept else ("init", "change")
    pool = Pool.of(runs, axis)
    judged = pool.claims(runs)
    for kind in kinds:
        read = (log_sizes_of(run) for run in runs[largest])
        offs = _offs([{u: s for (k, u), s in of.items() if k == kind and pool.key(u) in judged} for of in read], axis)
        for name, interval in zip(offs, intervals(list(offs.values()), family=max(len(offs), 1)), strict=True):
            if max(interval.lowest, -interval.highest) > allowed:
                found.append(OddBlock(name, kind, interval.value, allowed))
    return sorted(found, key=lambda odd: -abs(odd.octaves))


def _offs(runs: Sequence[Mapping[Use, float]], axis: Axis) -> dict[str, Array]:
    """Parameter -> per seed, its size above the median of its window; of templates with blocks enough."""
    stacks: dict[Key, list[Use]] = {}
    for use in runs[0]:
        stacks.setdefault((axis.pooled(use.parameter), use.index), []).append(use)
    found = {}
    for uses in stacks.values():
        by_seed = [{use.key: size for use, size in run.items()} for run in runs]
        sizes = np.array([[seed.get(use.key, -math.inf) for seed in by_seed] for use in uses])
        if len(uses) < FEWEST or not np.isfinite(sizes).all():
            continue
        for number, use in enumerate(uses):
            first = min(max(number - NEIGHBOURS, 0), max(len(uses) - 2 * NEIGHBOURS - 1, 0))
            window = sizes[first : first + 2 * NEIGHBOURS + 1]
            found[use.parameter] = sizes[number] - np.median(window, axis=0)
    return found
