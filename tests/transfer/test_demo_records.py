"""The demo's published numbers are those of its published trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutransfer.records import read_json
from mutransfer.transfer import analyze_records

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "width_transfer.json"


@pytest.fixture(scope="module")
def demo():
    content = read_json(RESULTS)
    records = [trial | {"environment": content["environment"]} for trial in content["trials"]]
    return analyze_records(records).to_json(), content["transfer"]


def test_the_published_verdicts_and_estimates_follow_from_the_trials(demo):
    found, published = demo
    for name, one in found["parameterizations"].items():
        said = published["parameterizations"][name]
        assert said["verdict"] == one["verdict"]
        for key in ("slope", "drift", "regret", "curvature_slope", "loss_gap"):
            assert said[key]["value"] == pytest.approx(one[key]["value"], rel=1e-6), (name, key)
        for size, curvature in one["curvature"].items():
            assert said["curvature"][size]["value"] == pytest.approx(curvature["value"], rel=1e-6)


def test_every_published_estimate_lies_within_its_own_interval(demo):
    found, published = demo
    for one in (one for report in (found, published) for one in report["parameterizations"].values()):
        parts = [one[key] for key in ("slope", "drift", "regret", "curvature_slope", "loss_gap")]
        for part in (*parts, *one["optimum"].values(), *one["curvature"].values()):
            assert part["low"] <= part["value"] <= part["high"]
