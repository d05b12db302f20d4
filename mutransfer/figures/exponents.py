"""The coordinate check's exponents, one row per parameter, with the band that its law allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mutransfer.figures.style import CATEGORIES, FAINT, Margins, heading, new_figure, plain

MARGIN = 0.25
KINDS = ("init", "change")
SHOWN = 40
"""Rows at most: those farthest from their law."""
ROOM = Margins(left=2.5, bottom=0.52)


@dataclass(frozen=True)
class Exponent:
    name: str
    kind: str
    value: float
    low: float
    high: float
    law: float
    axis: str = "width"

    @property
    def distance(self) -> float:
        return abs(self.value - self.law)


def exponents_of(check: Mapping[str, Any]) -> list[Exponent]:
    """The judged exponents, from the content of check.json."""
    judged = [s for s in check["slopes"] if s.get("what", "parameter") == "parameter" and s.get("law") is not None]
    axis = str(check.get("axis", "width"))
    return [Exponent(str(s["name"]), str(s["kind"]), *_numbers(s), axis) for s in judged]


def _numbers(slope: Mapping[str, Any]) -> tuple[float, float, float, float]:
    return float(slope["value"]), float(slope["low"]), float(slope["high"]), float(slope["law"])


def exponent_panel(exponents: Sequence[Exponent], kind: str) -> Figure:
    """One kind alone, on the scale of both: a page puts them side by side or below each other."""
    rows = _rows(exponents)
    figure, (axes,) = new_figure(5.4, 0.95 + 0.24 * len(rows), margins=ROOM)
    _draw(axes, exponents, kind, rows)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows], fontsize=8)
    return figure


def exponent_figure(exponents: Sequence[Exponent]) -> Figure:
    """Both kinds side by side; intervals inside the band pass."""
    rows = _rows(exponents)
    figure, all_axes = new_figure(8.4, 0.95 + 0.24 * len(rows), len(KINDS), margins=ROOM)
    for axes, kind in zip(all_axes, KINDS, strict=True):
        _draw(axes, exponents, kind, rows)
    all_axes[0].set_yticks(range(len(rows)), [_short(name) for name in rows], fontsize=8)
    all_axes[1].set_yticks(range(len(rows)), [""] * len(rows))
    return figure


def _rows(exponents: Sequence[Exponent]) -> list[str]:
    """Bottom to top: execution order reads downwards. Of many parameters those farthest from their law."""
    names = list(dict.fromkeys(e.name for e in exponents))
    farthest = {n: max(e.distance for e in exponents if e.name == n) for n in names}
    kept = set(sorted(names, key=lambda n: -farthest[n])[:SHOWN])
    return [name for name in names if name in kept][::-1]


def _draw(axes: Axes, exponents: Sequence[Exponent], kind: str, rows: Sequence[str]) -> None:
    for one in (e for e in exponents if e.kind == kind and e.name in rows):
        at = rows.index(one.name)
        inside = one.law - MARGIN <= one.low and one.high <= one.law + MARGIN
        colour, marker = (CATEGORIES[0], "o") if inside else (CATEGORIES[1], "s")
        axes.barh(at, 2 * MARGIN, left=one.law - MARGIN, height=0.8, color=FAINT, alpha=0.18, zorder=1)
        axes.hlines(at, one.low, one.high, color=colour, linewidth=1.6, zorder=3)
        axes.plot([one.value], [at], marker=marker, color=colour, markersize=4.5, zorder=4)
    ends = [end for e in exponents for end in (e.low, e.high, e.law - MARGIN, e.law + MARGIN)]
    axes.set_xlim(min(ends) - 0.1, max(ends) + 0.1)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(f"exponent in {exponents[0].axis}")
    heading(axes, "size at init" if kind == "init" else "change while training")


def _short(name: str) -> str:
    return plain(name if len(name) <= 36 else "..." + name[-33:])
