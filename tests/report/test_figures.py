from __future__ import annotations

import copy
import itertools
import math
import sys

import pytest

from mutransfer.figures import exponents, losses, optimum
from mutransfer.figures.style import CATEGORIES, CATEGORIES_DARK, RAMP, RAMP_DARK, new_figure, octaves, png, ramp, svg


@pytest.fixture(scope="module")
def content(report):
    return report.to_json()


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_numbers_behind_the_loss_figure(content):
    sp, mup = losses.panels_of(content)
    assert (sp.name, sp.title, mup.name) == ("sp", "sp (control)", "mup")
    largest = sp.lines[-1]
    assert largest.size == 128
    assert largest.x == tuple(float(k) for k in range(-11, -2))
    assert math.isinf(largest.mean[-1])
    assert math.isinf(largest.seeds[-1][1])
    low, best, high = mup.lines[0].best
    assert low <= best <= high
    assert best == pytest.approx(-6, abs=0.1)


def test_all_panels_share_one_scale(content):
    panels = losses.panels_of(content)
    scale = losses.scale_of(panels)
    drawn = [losses.loss_panel(panel, scale, "learning rate", "width").axes[0] for panel in panels]
    assert drawn[0].get_xlim() == drawn[1].get_xlim() == scale.x
    assert drawn[0].get_ylim() == drawn[1].get_ylim() == scale.y


def test_ticks_are_powers_of_two(content):
    axes = losses.loss_figure(losses.panels_of(content), "learning rate", "width").axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[0] == "$2^{-11}$"


def test_the_legend_names_every_size(content):
    axes = losses.loss_figure(losses.panels_of(content), "learning rate", "width").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["32", "64", "128"]


def test_one_lost_trial_does_not_flatten_the_scale(content):
    wild = copy.deepcopy(content)
    wild["parameterizations"]["sp"]["curves"]["128"]["mean"][-2] = 1e6
    assert losses.scale_of(losses.panels_of(wild)).y[1] < 4


def test_the_numbers_behind_the_optimum_figure(content):
    mup, sp = optimum.tracks_of(content)
    assert mup.slope == pytest.approx(0, abs=0.05)
    assert sp.slope == pytest.approx(-1, abs=0.05)
    assert sp.label.startswith("sp: -")
    assert all(low <= best <= high for low, best, high in zip(sp.low, sp.best, sp.high, strict=True))


def test_exponents_are_those_that_are_judged(check):
    found = exponents.exponents_of({"slopes": [*check["slopes"], {"name": "stream", "what": "stream", "law": None}]})
    assert len(found) == 6
    assert max(found, key=lambda e: e.distance).name == "blocks.0.mlp.up.weight"
    assert len(exponents.exponent_figure(found).axes) == 2


def test_the_same_numbers_give_the_same_bytes(content):
    def draw():
        return losses.loss_figure(losses.panels_of(content), "learning rate", "width")

    assert svg(draw(), "a", "b") == svg(draw(), "a", "b")
    assert png(draw()) == png(draw())


def test_svgs_of_one_page_share_no_ids(content):
    figure = optimum.optimum_figure(optimum.tracks_of(content), "best", "width")
    text = svg(figure, "first", 'a "quoted" <description>')
    assert text.startswith('<svg role="img" aria-label="a &quot;quoted&quot; &lt;description>"')
    assert text.count('id="') == text.count('id="first-')
    assert "<!--" not in text
    assert "<metadata" not in text


def test_an_optimum_at_the_end_of_its_grid_is_drawn_as_a_bound_and_not_as_a_star(content):
    edge = copy.deepcopy(content)
    edge["parameterizations"]["mup"]["optimum"]["32"]["bound"] = ">="

    def markers(report):
        panel = losses.panels_of(report)[1]
        axes = losses.loss_panel(panel, losses.scale_of([panel]), "learning rate", "width").axes[0]
        return [line.get_marker() for line in axes.lines]

    assert (markers(content).count("*"), markers(content).count(">")) == (3, 0)
    assert (markers(edge).count("*"), markers(edge).count(">")) == (2, 1)
    axes = optimum.optimum_figure(optimum.tracks_of(edge), "best", "width").axes[0]
    assert [line.get_marker() for line in axes.lines].count("^") == 1


@pytest.mark.parametrize("grid", [(-45, 12), (-20, 4), (0, 30), (-9, -4), (-3, 3), (-120, -2)])
@pytest.mark.parametrize("power", [True, False])
def test_tick_labels_never_touch(grid, power):
    figure, (axes,) = new_figure(4.2, 4.1)
    axes.set_xlim(*grid)
    octaves(axes, "x", *grid, as_power=power)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(boxes) >= 4
    assert all(left.x1 + 2 < right.x0 for left, right in itertools.pairwise(boxes))


def test_short_values_are_written_out():
    _, (axes,) = new_figure(4.2, 4.1)
    octaves(axes, "x", 5, 8, as_power=False)
    assert [axes.xaxis.get_major_formatter()(at, 0) for at in axes.get_xticks()] == ["32", "64", "128", "256"]


def test_no_pyplot():
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("colours", [RAMP, RAMP_DARK])
def test_the_ramp_is_told_apart_by_lightness_alone(colours):
    steps = [luminance(colour) for colour in colours]
    assert steps == sorted(steps, reverse=steps[0] > steps[-1])
    assert len(set(ramp(4))) == 4
    assert len(set(ramp(9))) == 9


def test_categories_are_readable_on_their_ground():
    assert all((1.05) / (luminance(c) + 0.05) > 3 for c in CATEGORIES)
    assert all((luminance(c) + 0.05) / (luminance("#171b21") + 0.05) > 4.5 for c in CATEGORIES_DARK)


def test_the_bars_lie_around_the_mean_also_where_a_seed_was_not_run_everywhere():
    """Seed 2 is above the others and was run at one value: the mean has its level taken out, and so have the bars."""
    curve = {
        "lr": [0.25, 0.5],
        "mean": [2.1 + 0.1 / 3, 2.0 + 0.1 / 3],
        "losses": {"0": [2.1, 2.0], "1": [2.1, 2.0], "2": [None, 2.1]},
        "diverged": {seed: [False, False] for seed in "012"},
    }
    optimum = {"log2": {"value": -1.0, "low": -1.1, "high": -0.9}, "loss": 2.0}
    line = losses._line("32", curve, optimum)
    for mean, seeds in zip(line.mean, line.seeds, strict=True):
        assert min(seeds) - 1e-9 <= mean <= max(seeds) + 1e-9
