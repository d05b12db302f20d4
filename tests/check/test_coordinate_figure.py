from __future__ import annotations

from typing import Any

import pytest

from mutransfer.errors import RunError
from mutransfer.figures.coordinates import coordinate_figure, curves_of, save_coordinates


def slope(name: str, what: str, kind: str, sizes: list[float], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "what": what,
        "kind": kind,
        "sizes": sizes,
        "role": None,
        "law": None,
        "status": "inside",
    } | more


@pytest.fixture
def check() -> dict[str, Any]:
    """The content of check.json: one weight grows, the readout shrinks as its law says."""
    judged = {"role": "hidden", "law": 0.0}
    return {
        "verdict": "fail",
        "parameterization": "sp",
        "optimizer": "adamw",
        "lr": 2**-8,
        "margin": 0.25,
        "widths": [64, 128, 256],
        "slopes": [
            slope("block.up", "parameter", "change", [-3.0, -2.0, -1.0], **judged | {"status": "outside"}),
            slope("block.up", "parameter", "init", [0.0, 0.0, 0.0], **judged),
            slope("readout", "parameter", "init", [1.0, 0.5, 0.0], role="output", law=-0.5),
            slope("(model)", "module", "init", [0.0, 0.1, 0.0]),
            slope("block", "stream", "change", [-5.0, -4.0, -3.0]),
        ],
    }


def test_curves_are_octaves_off_the_law(check):
    readout = next(curve for curve in curves_of(check, "init", judged=True) if curve.name == "readout")
    assert readout.heights == pytest.approx((0.0, 0.0, 0.0))
    (grown,) = curves_of(check, "change", judged=True)
    assert (grown.heights, grown.group, grown.outside) == ((0.0, 1.0, 2.0), "hidden", True)


def test_activations_are_drawn_apart_and_judged_by_nothing(check):
    assert [(c.name, c.group) for c in curves_of(check, "init", judged=False)] == [("(model)", "model")]
    assert [(c.name, c.outside) for c in curves_of(check, "change", judged=False)] == [("block", False)]


def test_the_figure_names_what_lies_outside_and_shows_the_widths(check):
    figure = coordinate_figure(check)
    assert len(figure.axes) == 4
    words = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert words == ["hidden", "output", "block.up", "model output", "residual stream"]
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["64", "128", "256"]
    assert "fail" in figure.get_suptitle()


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_saved_in_the_format_of_the_suffix(check, tmp_path, suffix):
    path = save_coordinates(check, tmp_path / "new" / f"check{suffix}")
    assert path.stat().st_size > 1000


def test_paths_that_cannot_be_drawn_into(check, tmp_path):
    with pytest.raises(RunError, match=r"\.png, \.svg, \.pdf"):
        save_coordinates(check, tmp_path / "check.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"):
        save_coordinates(check, tmp_path / "file" / "check.png")
