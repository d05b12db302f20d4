"""The look of every figure, and figures as SVG and PNG; no pyplot, so no global state."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK, FAINT, GRID = "#1c2128", "#6b7280", "#d9dde3"
RAMP = ("#7cc4dd", "#3f9fca", "#2f74b5", "#3a4b9a", "#2d2470", "#150f3d")
RAMP_DARK = ("#23607d", "#2f86b0", "#4fabd6", "#86c9ea", "#bfe3f5", "#f1fafe")
CATEGORIES = ("#0072b2", "#d55e00", "#009e73", "#9c4f84", "#8a6d00", "#56707f")
CATEGORIES_DARK = ("#56b4e9", "#ff8c4a", "#2fd6a6", "#e29ccb", "#e2c044", "#a9bcc7")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
"""A second way to tell lines apart, for those who cannot by colour."""

_RC = {
    "font.size": 10.0,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "mutransfer",
    "svg.fonttype": "path",
}

LONGEST_TICK = 5
"""Characters: longer labels would touch."""


@dataclass(frozen=True)
class Margins:
    """Around every row of axes, in inches: fixed, so that panels of one figure align with those drawn alone."""

    left: float = 0.68
    right: float = 0.14
    top: float = 0.36
    bottom: float = 1.02


def new_figure(
    width: float, height: float, columns: int = 1, *, margins: Margins = Margins(), share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` axes side by side, in inches; `share`: one scale for all."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), facecolor="none")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, columns, squeeze=False, sharex=share, sharey=share)[0]
    figure.subplots_adjust(
        left=margins.left / width,
        right=1 - margins.right / width,
        top=1 - margins.top / height,
        bottom=margins.bottom / height,
        wspace=0.08,
    )
    for one in axes:
        one.set_facecolor("none")
        one.grid(True, color=GRID, linewidth=0.7)
        one.set_axisbelow(True)
    return figure, list(axes)


def legend_below(axes: Axes, title: str, *, columns: int) -> None:
    """At the figure's lower edge, below the axes, where it cannot hide a point."""
    figure, box = axes.get_figure(root=True), axes.get_position()
    assert figure is not None
    legend = axes.legend(
        title=title,
        loc="lower center",
        bbox_to_anchor=((box.x0 + box.x1) / 2, 0.0),
        bbox_transform=figure.transFigure,
        ncols=columns,
        frameon=False,
        fontsize=9.0,
        labelcolor=INK,
        columnspacing=1.3,
        handlelength=1.8,
    )
    legend.get_title().set(fontsize=9.0, color=INK)


def heading(axes: Axes, text: str) -> None:
    axes.set_title(plain(text), color=INK, loc="left", fontsize=11.0, fontweight="bold")


def ramp(count: int) -> list[str]:
    """A sequential ramp, light to dark, over the sizes."""
    if count == 1:
        return [RAMP[2]]
    if count <= len(RAMP):
        last = len(RAMP) - 1
        return [RAMP[round(k * last / (count - 1))] for k in range(count)]
    return [_between(k / (count - 1)) for k in range(count)]


def _between(share: float) -> str:
    at = share * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    ends = [[int(RAMP[low + k][i : i + 2], 16) for i in (1, 3, 5)] for k in (0, 1)]
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def octaves(axes: Axes, axis: str, low: float, high: float, *, as_power: bool = True) -> None:
    """Whole octaves as ticks on an axis that holds log2 of a value: 2^-6, or the value itself where all are short."""
    step = max(1, math.ceil((high - low) / 9))
    ticks = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, step))
    as_power = as_power or any(len(f"{2.0**tick:g}") > LONGEST_TICK for tick in ticks)
    side = axes.xaxis if axis == "x" else axes.yaxis
    side.set_major_locator(FixedLocator(ticks))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda at, _: f"$2^{{{at:g}}}$" if as_power else f"{2.0**at:g}"))


def plain(text: str) -> str:
    """A user's string as it stands: no formula, no line break, no invisible character, not endless."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return (shown if len(shown) <= 48 else shown[:45] + "...").replace("$", r"\$")


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """On white; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure, name: str, description: str) -> str:
    """To put into a page: no fixed size, ids that no other figure has, colours that follow the page's theme.

    Args:
        figure: drawn by this package.
        name: prefix of its ids: letters, digits, dashes.
        description: for those who hear the page instead of seeing it.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    return _head(_themed(text), description)


def _head(text: str, description: str) -> str:
    width, height = figure_size(text)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def figure_size(text: str) -> tuple[float, float]:
    """Of an SVG, in its own units."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None
    return float(box[1]), float(box[2])


def _themed(text: str) -> str:
    """Known colours become CSS variables that fall back to themselves."""
    for colour in (INK, FAINT, GRID, *RAMP, *CATEGORIES):
        text = text.replace(colour, f"var(--c{colour[1:]}, {colour})")
    return text


def dark_variables() -> str:
    """The CSS declarations that turn `svg`'s colours for a dark page."""
    pairs: Sequence[tuple[str, str]] = (
        (INK, "#e6e9ee"),
        (FAINT, "#9aa4b2"),
        (GRID, "#343b45"),
        *zip(RAMP, RAMP_DARK, strict=True),
        *zip(CATEGORIES, CATEGORIES_DARK, strict=True),
    )
    return "".join(f"--c{light[1:]}:{dark};" for light, dark in pairs)
