"""The coordinate check against width or depth: own contributions as distance from their law, below them activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mutransfer.errors import RunError
from mutransfer.figures.style import CATEGORIES, FAINT, GRID, INK, MARKERS, heading, plain

HEADINGS = {
    ("init", True): "own contribution at init",
    ("change", True): "change of own contribution",
    ("init", False): "activation at init",
    ("change", False): "change of activation",
}
KINDS = ("init", "change")
GROUPS = {
    "width": ("input", "hidden", "output", "vector", "scalar"),
    "depth": ("outside", "inner", "terminal", "stream norm"),
}
SITES = {"model": "model output", "module": "module output", "stream": "residual stream", "logits": "attention logits"}
NAMED = 4
"""Lines outside the law that are named in the legend."""
FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        name, group: what it is, and the row of the table or kind of site that gives its colour.
        heights: octaves above its size at the smallest width or depth, less what the law says.
        outside: whether its exponent is wholly outside the law.
    """

    name: str
    group: str
    heights: tuple[float, ...]
    outside: bool


def curves_of(check: Mapping[str, Any], kind: str, *, judged: bool) -> list[Curve]:
    """The lines of one panel, from the content of check.json.

    Args:
        check: what `CoordReport.to_json` gives.
        kind: "init" or "change".
        judged: parameters, as distance from their law; else activations.
    """
    x = [math.log2(size) for size in sizes_of(check)]
    curves = []
    for slope in check["slopes"]:
        kept = judged and slope["law"] is None  # values that are the user's own follow no law
        if slope["kind"] != kind or (slope["what"] == "parameter") != judged or kept:
            continue
        law, sizes = slope["law"] or 0.0, slope["sizes"]
        heights = tuple(size - sizes[0] - law * (at - x[0]) for size, at in zip(sizes, x, strict=True))
        outside = judged and slope["status"] == "outside"
        curves.append(Curve(slope["name"], _group(slope), heights, outside))
    return curves


def _group(slope: Mapping[str, Any]) -> str:
    if slope["what"] == "parameter":
        return str(slope.get("place") or slope["role"])
    return "model" if slope["name"] == "(model)" else str(slope["what"])


def axis_of(check: Mapping[str, Any]) -> str:
    """What varies: "width" or "depth"."""
    return str(check.get("axis", "width"))


def sizes_of(check: Mapping[str, Any]) -> Sequence[int]:
    sizes: Sequence[int] = check[f"{axis_of(check)}s"]
    return sizes


def coordinate_figure(check: Mapping[str, Any]) -> Figure:
    """Two rows of two panels; a flat line follows the law, and what leaves the wedge does not."""
    figure = Figure(figsize=(9.6, 7.6), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    title = f"{check['parameterization']} with {check['optimizer']}, lr {check['lr']:.4g}: {check['verdict']}"
    figure.suptitle(plain(title), x=0.08, ha="left", color=INK, fontsize=12, fontweight="bold")
    for row, judged in enumerate((True, False)):
        panels = [curves_of(check, kind, judged=judged) for kind in KINDS]
        named = _named([curve for curves in panels for curve in curves])
        for one, kind, curves in zip(axes[row], KINDS, panels, strict=True):
            _draw(one, sizes_of(check), curves, named, check["margin"] if judged else None)
            heading(one, HEADINGS[kind, judged])
        axes[row][0].set_ylabel("octaves off the law" if judged else "octaves", color=INK)
        _legend(axes[row][1], [curve for curves in panels for curve in curves], named)
    for one in axes[1]:
        one.set_xlabel(axis_of(check), color=INK)
    figure.subplots_adjust(left=0.08, right=0.73, top=0.89, bottom=0.08, hspace=0.24, wspace=0.08)
    return figure


def _draw(axes: Axes, sizes: Sequence[int], curves: Sequence[Curve], named: list[str], margin: float | None) -> None:
    x = [math.log2(size) for size in sizes]
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if margin is not None:
        edge = [margin * (at - x[0]) for at in x]
        axes.fill_between(x, [-at for at in edge], edge, color=FAINT, alpha=0.18, linewidth=0)
    for curve in curves:
        strong = curve.outside and curve.name in named
        marker = MARKERS[named.index(curve.name)] if strong else None
        axes.plot(
            x,
            curve.heights,
            color=_colour(curve.group),
            linewidth=2.2 if strong else 1.0,
            alpha=1.0 if strong or not named else 0.45,
            marker=marker,
            markersize=5,
        )
    axes.xaxis.set_major_locator(FixedLocator(x))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{2**at:.0f}"))


def _named(curves: Sequence[Curve]) -> list[str]:
    """The lines that end farthest from the law, of those outside it."""
    outside = sorted((c for c in curves if c.outside), key=lambda c: -abs(c.heights[-1]))
    return list(dict.fromkeys(curve.name for curve in outside))[:NAMED]


def _colour(group: str) -> str:
    known = next((groups for groups in (*GROUPS.values(), tuple(SITES)) if group in groups), ())
    return CATEGORIES[known.index(group)]


def _legend(axes: Axes, curves: Sequence[Curve], named: list[str]) -> None:
    """Beside the panels: the groups by colour, then the named lines by marker."""
    groups = {curve.name: curve.group for curve in curves}
    shown = [group for group in (*GROUPS["width"], *GROUPS["depth"], *SITES) if group in groups.values()]
    handles = [Line2D([], [], color=_colour(g), linewidth=2, label=SITES.get(g, g)) for g in shown]
    for name, marker in zip(named, MARKERS, strict=False):
        colour = _colour(groups[name])
        handles.append(Line2D([], [], color=colour, linewidth=2, marker=marker, label=_short(name)))
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        title="marked: outside the law" if named else None,
    )


def _short(name: str) -> str:
    return plain(name if len(name) <= 30 else "..." + name[-27:])


def save_coordinates(check: Mapping[str, Any], path: str | Path) -> Path:
    """Draws into a .png, .svg or .pdf file; missing folders are made.

    Raises:
        RunError: another suffix, or a path that cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise RunError(
            f"plot={str(path)!r} has no format that can be drawn. Give a path that ends in {', '.join(FORMATS)}."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        coordinate_figure(check).savefig(path, dpi=150, facecolor="white")
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror}. Free some space or choose another folder.") from None
    return path
