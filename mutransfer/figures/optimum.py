"""The best value against size, per parameterization, with the line whose slope is the drift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mutransfer.figures.style import CATEGORIES, MARKERS, Margins, legend_below, new_figure, octaves, plain

BEYOND = 0.35
"""Octaves that an arrow reaches from an optimum at the end of its grid."""


@dataclass(frozen=True)
class Track:
    """One parameterization: log2 sizes, log2 optima with their ends, and what the legend says.

    `bounds` are "<=" or ">=" where an optimum is only known to lie there or beyond; there is no slope then.
    """

    name: str
    sizes: tuple[float, ...]
    best: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    slope: float | None
    label: str
    bounds: tuple[str, ...] = ()


def tracks_of(report: Mapping[str, Any]) -> list[Track]:
    """The numbers behind the figure, from the content of transfer.json."""
    return [_track(name, one) for name, one in report["parameterizations"].items()]


def _track(name: str, one: Mapping[str, Any]) -> Track:
    log2 = [best["log2"] for best in one["optimum"].values()]
    best = tuple(float(part["value"]) for part in log2)
    low = tuple(b if part["low"] is None else float(part["low"]) for b, part in zip(best, log2, strict=True))
    high = tuple(b if part["high"] is None else float(part["high"]) for b, part in zip(best, log2, strict=True))
    slope = None if one["slope"]["value"] is None else float(one["slope"]["value"])
    bounds = tuple(best.get("bound", "") for best in one["optimum"].values())
    sizes = tuple(math.log2(float(size)) for size in one["optimum"])
    return Track(name, sizes, best, low, high, slope, f"{name}: {_spread(one['slope'])}", bounds)


def _spread(slope: Mapping[str, Any]) -> str:
    if slope["value"] is None:
        return "unknown"
    spread = "" if slope["low"] is None else f" [{slope['low']:+.2f}, {slope['high']:+.2f}]"
    return f"{slope['value']:+.2f}{spread}"


def optimum_figure(tracks: list[Track], y_label: str, x_label: str) -> Figure:
    """A flat line transfers; the legend says the slope in octaves per doubling."""
    margins = Margins(top=0.14, bottom=0.82 + 0.2 * len(tracks))
    figure, (axes,) = new_figure(4.9, 3.5 + 0.2 * len(tracks), margins=margins)
    shift = 0.04 * (len(tracks) - 1)
    for k, track in enumerate(tracks):
        _draw(axes, track, CATEGORIES[k % len(CATEGORIES)], MARKERS[k % len(MARKERS)], 0.08 * k - shift)
    every = [value for track in tracks for value in (*track.low, *track.high)]
    sizes = [size for track in tracks for size in track.sizes]
    low, high = min(every) - 0.5, max(every) + 0.5
    axes.set_ylim(low, high)
    octaves(axes, "x", min(sizes), max(sizes), as_power=False)
    octaves(axes, "y", low, high, as_power=max(every) < 1)
    axes.set_xlabel(plain(x_label))
    axes.set_ylabel(plain(y_label))
    legend_below(axes, "slope, octaves per doubling", columns=1)
    return figure


def _draw(axes: Axes, track: Track, colour: str, marker: str, shift: float) -> None:
    if track.slope is not None:
        centre = sum(track.sizes) / len(track.sizes)
        level = sum(track.best) / len(track.best)
        line = [level + track.slope * (size - centre) for size in track.sizes]
        axes.plot(track.sizes, line, color=colour, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
    spread = [
        [b - end for b, end in zip(track.best, track.low, strict=True)],
        [end - b for b, end in zip(track.best, track.high, strict=True)],
    ]
    moved = [size + shift for size in track.sizes]
    style: dict[str, Any] = {"marker": marker, "markersize": 6.5, "linestyle": "", "capsize": 3, "linewidth": 1.6}
    axes.errorbar(moved, track.best, yerr=spread, color=colour, label=plain(track.label), zorder=4, **style)
    for size, best, bound in zip(moved, track.best, track.bounds, strict=False):
        if bound:
            arrow = {"<=": "v", ">=": "^"}[bound]
            at = best + {"<=": -BEYOND, ">=": BEYOND}[bound]
            axes.plot([size, size], [best, at], color=colour, linewidth=1.6, zorder=3)
            axes.plot([size], [at], color=colour, marker=arrow, markersize=8, markerfacecolor="none", zorder=4)
