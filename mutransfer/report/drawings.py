"""Every figure of a report, for the page and as PNG files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mutransfer.figures import exponents, losses, optimum
from mutransfer.figures.style import figure_size, png, svg
from mutransfer.report.words import axis_of, hyperparameter

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """An SVG with the name that its ids start with."""

    name: str
    svg: str

    @property
    def width(self) -> int:
        """In CSS pixels, at which its text has the size of the page's small print."""
        return round(figure_size(self.svg)[0] * 1.6)


def loss_drawings(report: Json, prefix: str) -> tuple[list[Drawing], bytes]:
    """One panel per parameterization on one scale, and all of them as one PNG."""
    panels = losses.panels_of(report)
    scale, what = losses.scale_of(panels), hyperparameter(report["x"])
    drawn = []
    for number, panel in enumerate(panels):
        name = f"{prefix}-{number}"
        figure = losses.loss_panel(panel, scale, what, report["axis"])
        drawn.append(
            Drawing(name, svg(figure, name, f"Held-out loss against {what} for {panel.title}, per {report['axis']}"))
        )
    return drawn, png(losses.loss_figure(panels, what, report["axis"]))


def optimum_drawing(report: Json, prefix: str) -> tuple[Drawing, bytes]:
    what = hyperparameter(report["x"])
    figure = optimum.optimum_figure(optimum.tracks_of(report), f"best {what}", report["axis"])
    return Drawing(prefix, svg(figure, prefix, f"The best {what} against {report['axis']}")), png(figure)


def check_drawings(check: Json, prefix: str) -> tuple[list[Drawing], bytes] | None:
    """Size at init and change, each alone, and both as one PNG; None where nothing was judged."""
    judged = exponents.exponents_of(check)
    if not judged:
        return None
    drawn = []
    for kind in exponents.KINDS:
        name = f"{prefix}-{kind}"
        figure = exponents.exponent_panel(judged, kind)
        drawn.append(Drawing(name, svg(figure, name, f"Exponent in {axis_of(check)} of every parameter: {kind}")))
    return drawn, png(exponents.exponent_figure(judged))
