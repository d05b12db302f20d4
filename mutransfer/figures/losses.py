"""Loss against a hyperparameter, one line per size, each optimum marked: the figure that the claim is about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mutransfer.figures.style import (
    FAINT,
    INK,
    MARKERS,
    Margins,
    heading,
    legend_below,
    new_figure,
    octaves,
    plain,
    ramp,
)

COLUMNS = 5
HEADROOM = 0.4
"""The scale ends this far above the lowest loss, relative: beyond it trials only show that they are lost."""


@dataclass(frozen=True)
class Line:
    """One size: log2 values, mean losses (inf: diverged), the seeds' losses at each value (their own
    level taken out), and the optimum.

    `bound` is "<=" or ">=" where that is only known to lie there or beyond.
    """

    size: float
    x: tuple[float, ...]
    mean: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]
    best: tuple[float, float, float] | None
    best_loss: float
    bound: str = ""


@dataclass(frozen=True)
class Panel:
    name: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Scale:
    """One scale for all panels: log2 of the value, and loss."""

    x: tuple[float, float]
    y: tuple[float, float]


def panels_of(report: Mapping[str, Any]) -> list[Panel]:
    """The numbers behind the figure, from the content of transfer.json; the controls come first."""
    entries = sorted(report["parameterizations"].items(), key=lambda item: not item[1].get("control"))
    return [Panel(name, name + (" (control)" if one.get("control") else ""), _lines(one)) for name, one in entries]


def _lines(one: Mapping[str, Any]) -> tuple[Line, ...]:
    return tuple(_line(size, curve, one["optimum"][size]) for size, curve in one["curves"].items())


def _line(size: str, curve: Mapping[str, Any], optimum: Mapping[str, Any]) -> Line:
    x = tuple(math.log2(value) for value in curve["lr"])
    mean = tuple(math.inf if value is None else float(value) for value in curve["mean"])
    rows = [_row(row, curve["diverged"][seed], mean) for seed, row in curve["losses"].items()]
    seeds = tuple(tuple(v for v in column if v is not None) for column in zip(*rows, strict=True))
    middle = optimum["log2"]["value"]
    ends = (optimum["log2"][end] for end in ("low", "high"))
    low, high = (middle if end is None else end for end in ends)
    return Line(float(size), x, mean, seeds, (low, middle, high), float(optimum["loss"]), optimum.get("bound", ""))


def _row(losses: Sequence[float | None], diverged: Sequence[bool], mean: Sequence[float]) -> list[float | None]:
    """One seed's losses, None where it was not run, without what the seed adds to all of them: as the mean has it,
    which is over seeds that were not all run everywhere."""
    pairs = zip(losses, diverged, mean, strict=True)
    off = [value - at for value, lost, at in pairs if value is not None and not lost and math.isfinite(at)]
    shift = sum(off) / len(off) if off else 0.0
    return [
        math.inf if lost else None if value is None else value - shift
        for value, lost in zip(losses, diverged, strict=True)
    ]


def scale_of(panels: Sequence[Panel]) -> Scale:
    lines = [line for panel in panels for line in panel.lines]
    x = [value for line in lines for value in line.x]
    finite = [
        value for line in lines for value in (*line.mean, *(v for s in line.seeds for v in s)) if math.isfinite(value)
    ]
    low = min(finite)
    span = min(max(finite) - low, HEADROOM * abs(low)) or 1.0
    return Scale((min(x) - 0.35, max(x) + 0.35), (low - 0.05 * span, low + 1.06 * span))


def loss_panel(panel: Panel, scale: Scale, x_label: str, size_label: str) -> Figure:
    """One parameterization alone, on the scale of all: a page puts them side by side or below each other."""
    figure, (axes,) = new_figure(4.2, 4.1, margins=_margins(panel.lines))
    _draw(axes, panel, scale, x_label, size_label)
    axes.set_ylabel("held-out loss (nats)")
    return figure


def loss_figure(panels: Sequence[Panel], x_label: str, size_label: str) -> Figure:
    """All parameterizations side by side on one scale."""
    margins = _margins(max((panel.lines for panel in panels), key=len))
    figure, all_axes = new_figure(3.9 * len(panels) + 0.8, 4.2, len(panels), margins=margins, share=True)
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw(axes, panel, scale_of(panels), x_label, size_label)
    all_axes[0].set_ylabel("held-out loss (nats)")
    return figure


def _margins(lines: Sequence[Line]) -> Margins:
    """Room for the legend's rows."""
    return Margins(bottom=0.82 + 0.2 * math.ceil(len(lines) / COLUMNS))


def _draw(axes: Axes, panel: Panel, scale: Scale, x_label: str, size_label: str) -> None:
    for line, colour, marker in zip(panel.lines, ramp(len(panel.lines)), _markers(panel.lines), strict=True):
        _draw_line(axes, line, colour, marker, scale.y[1], f"{line.size:g}")
    axes.set_xlim(*scale.x)
    axes.set_ylim(*scale.y)
    octaves(axes, "x", *scale.x, as_power=scale.x[1] < 1)
    axes.set_xlabel(plain(x_label))
    heading(axes, panel.title)
    legend_below(axes, plain(size_label), columns=min(COLUMNS, len(panel.lines)))


def _markers(lines: Sequence[Line]) -> list[str]:
    return [MARKERS[k % len(MARKERS)] for k in range(len(lines))]


def _draw_line(axes: Axes, line: Line, colour: str, marker: str, top: float, label: str) -> None:
    known = [(x, y) for x, y in zip(line.x, line.mean, strict=True) if math.isfinite(y)]
    axes.plot(
        *zip(*known, strict=True), color=colour, marker=marker, markersize=4.5, linewidth=1.8, label=label, zorder=3
    )
    for x, seeds in zip(line.x, line.seeds, strict=True):
        inside = [value for value in seeds if math.isfinite(value)]
        if len(inside) > 1:
            axes.vlines(x, min(inside), max(inside), color=colour, linewidth=4, alpha=0.35, zorder=2)
        if len(inside) < len(seeds):
            axes.plot([x], [top], color=colour, marker="x", markersize=7, markeredgewidth=2, clip_on=False, zorder=5)
    lost = [x for x, y in known if y > top]
    axes.plot(lost, [top] * len(lost), color=colour, marker=6, markersize=6, linestyle="", clip_on=False, zorder=5)
    if line.best is not None and line.bound:
        _draw_bound(axes, line.best[1], line.best_loss, line.bound, colour)
    elif line.best is not None:
        _draw_best(axes, line.best, line.best_loss, colour)


def _draw_best(axes: Axes, best: tuple[float, float, float], loss: float, colour: str) -> None:
    low, middle, high = best
    axes.hlines(loss, low, high, color=INK, linewidth=1.6, zorder=6)
    axes.plot(
        [middle], [loss], marker="*", markersize=13, color=colour, markeredgecolor=INK, markeredgewidth=0.9, zorder=7
    )
    axes.axvline(middle, color=FAINT, linewidth=0.6, alpha=0.5, linestyle=(0, (2, 3)), zorder=1)


def _draw_bound(axes: Axes, at: float, loss: float, bound: str, colour: str) -> None:
    """A hollow triangle that points to where the optimum may lie."""
    marker = {"<=": "<", ">=": ">"}[bound]
    style: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.8}
    axes.plot([at], [loss], marker=marker, markersize=12, linestyle="", clip_on=False, zorder=7, **style)
