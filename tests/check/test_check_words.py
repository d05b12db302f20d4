"""What a check says of itself."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

import mutransfer as mt
from mutransfer.check.slopes import Listed, Slope


@cache
def passed():
    def make(width):
        return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 16))

    vectors = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    return mt.coord_check(make, widths=[16, 32, 64], seeds=2, steps=1, example_inputs=vectors)


def slope(name: str, reach: float) -> Slope:
    return Slope(name, "parameter", "change", 0.0, -reach, reach, -reach, reach, (), 0, law=0.0)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("a", "the interval of a straddles the line after 2 seeds"),
        ("abc", "3 intervals, that of a among them, straddle the line after 2 seeds"),
    ],
)
def test_an_undecided_check_says_what_was_tried_and_what_to_do(names, said):
    slopes = tuple(slope(name, 0.4) for name in names)
    report = dataclasses.replace(passed(), verdict="undecided", doubt="", seeds=2, slopes=slopes)
    assert report.reason == f"{said}: give more of them, or a larger range of widths"


@pytest.mark.parametrize(("names", "said"), [("a", "the one interval lies"), ("ab", "all 2 intervals lie")])
def test_a_check_that_passes_counts_its_intervals(names, said):
    report = dataclasses.replace(passed(), verdict="pass", slopes=tuple(slope(name, 0.1) for name in names))
    assert report.reason == f"{said} inside the law +-0.25"


def test_what_is_not_judged_has_one_line_a_reason():
    listed = [Listed(name, "frozen") for name in "abcde"] + [Listed("f", "the loss does not use it")]
    lines = str(dataclasses.replace(passed(), listed=tuple(listed))).splitlines()
    assert "not judged: a, b, c and 2 more: frozen" in lines
    assert "not judged: f: the loss does not use it" in lines


def test_the_plans_notes_are_said_once_in_text_json_and_html():
    report = dataclasses.replace(passed(), notes=("a <sum> over the width",))
    assert str(report).count("note: a <sum> over the width") == 1
    assert report.to_json()["notes"] == ["a <sum> over the width"]
    assert report._repr_html_().count("<li>a &lt;sum&gt; over the width</li>") == 1
