from __future__ import annotations

import dataclasses
import math

import pytest

from mutransfer.errors import ConfigError, RunError
from mutransfer.transfer import analyze_records, points_from_records, transfer_hyperparameters
from mutransfer.transfer.points import select


def valley(width, log2_lr, *, best=-6.0, seed=0):
    return 3 - 0.1 * math.log2(width) + 0.05 * (log2_lr - best) ** 2 + 0.01 * seed + 0.001 * ((log2_lr * 7 + seed) % 3)


def sweep(trial, name="mup", widths=(32, 64, 128), best=lambda width: -6.0, seeds=(0, 1), **more):
    return [
        trial(name, width, lr, seed, valley(width, lr, best=best(width), seed=seed), **more)
        for width in widths
        for lr in range(-9, -2)
        for seed in seeds
    ]


def test_a_record_is_a_point(trial):
    (point,) = points_from_records([trial("mup", 64, -6, 1, 2.5)])
    assert (point.parameterization, point.size, point.lr, point.seed, point.loss) == ("mup", 64, 2**-6, 1, 2.5)


def test_a_diverged_trial_is_an_infinite_loss_and_a_failed_one_is_left_out(trial):
    records = [
        trial("mup", 64, -6),
        trial("mup", 64, -2, loss=None, status="diverged"),
        trial("mup", 64, -5, status="failed"),
    ]
    selection = select(records)
    assert sorted(point.loss for point in selection.points) == [2.0, math.inf]
    assert "1 failed" in selection.notes[0]


def test_base_trials_count_for_every_parameterization(trial):
    records = [
        *sweep(trial, "mup"),
        *sweep(trial, "sp", widths=(64, 128), best=lambda width: -6 - math.log2(width / 32)),
    ]
    points = points_from_records(records)
    at_base = {(p.parameterization, p.lr, p.seed): p.loss for p in points if p.size == 32}
    assert at_base["sp", 2**-6, 0] == at_base["mup", 2**-6, 0]
    report = analyze_records(records)
    assert (report["mup"].verdict, report["sp"].verdict) == ("transfers", "does not transfer")


def test_a_trial_away_from_the_base_is_shared_with_none(trial):
    points = points_from_records([trial("mup", 64, -6), trial("sp", 128, -6)])
    assert {(p.parameterization, p.size) for p in points} == {("mup", 64), ("sp", 128)}


def test_of_several_settings_the_best_at_the_smallest_size_is_kept(trial):
    worse = [
        trial(
            r.config["parameterization"]["name"],
            r.config["model"]["width"],
            math.log2(r.config["optimizer"]["lr"]),
            r.config["seed"],
            r.val_loss + 0.2,
            lr_input=1.0,
        )
        for r in sweep(trial)
    ]
    selection = select([*worse, *sweep(trial)])
    assert selection.settings["mup"]["hp.lr.input"] == 8.0
    assert len(selection.points) == len(sweep(trial))
    assert "hp.lr.input=8.0" in selection.notes[0]


def test_fields_that_follow_the_width_do_not_split_the_sweep(trial):
    """The number of heads grows with the width at a fixed head_dim."""
    assert {point.size for point in points_from_records(sweep(trial))} == {32, 64, 128}


def test_a_swept_hyperparameter_is_analyzed_too(trial):
    swept = [
        trial("mup", width, -6, seed, valley(width, -6, seed=seed) + 0.02 * (math.log2(value) - 3) ** 2, lr_input=value)
        for width in (32, 128)
        for value in (1.0, 2.0, 4.0, 16.0)
        for seed in (0, 1)
    ]
    report = analyze_records([*sweep(trial), *swept])
    own = report.hyperparameters["hp.lr.input"]
    assert report.verdict == own.verdict == "transfers"
    assert own["mup"].optimum[0].lr.value == pytest.approx(8, rel=0.05)
    assert report.to_json()["hyperparameters"]["hp.lr.input"]["verdict"] == "transfers"


def test_where_one_learning_rate_was_tried_the_swept_hyperparameter_is_the_valley(trial):
    records = [
        trial("mup", width, -6, seed, 2.0 + 0.02 * (math.log2(value) - 3) ** 2 + 0.001 * seed, lr_input=value)
        for width in (32, 64, 128)
        for value in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
        for seed in (0, 1)
    ]
    report = analyze_records(records)
    assert (report.verdict, report.x, report.hyperparameters) == ("transfers", "hp.lr.input", {})
    assert report["mup"].optimum[-1].lr.value == pytest.approx(8, rel=0.02)
    assert "128: 8" in str(report)
    found = transfer_hyperparameters(report, {"width": 1024})
    assert (found["optimizer.lr"], found["hp.lr.input"]) == (2**-6, pytest.approx(8, rel=0.02))
    assert "best at width 128" in str(found)
    few = [record for record in records if record.config["hp"]["lr"]["input"] > 8]
    with pytest.raises(ConfigError, match=r"too few values of optimizer\.lr"):
        analyze_records(few)


@pytest.mark.parametrize(
    "change", [{"environment": []}, {"config": []}, {"cpu_seconds": "many"}, {"config": {"seed": "x"}}]
)
def test_a_damaged_record_is_named(trial, change):
    whole = trial("mup", 64, -6)
    change = {"config": {**whole.config, **change["config"]}} if isinstance(change.get("config"), dict) else change
    with pytest.raises(RunError, match=r"The record of trial mup-64--6-0- is damaged"):
        analyze_records([dataclasses.replace(whole, **change)])


def test_trials_on_different_corpora_are_not_compared(trial):
    with pytest.raises(RunError, match="2 different corpora"):
        points_from_records([trial("mup", 64, -6), trial("mup", 64, -7, sha="other")])


def test_no_finished_trial(trial):
    with pytest.raises(RunError, match="no finished trial"):
        points_from_records([trial("mup", 64, -6, status="failed")])


def test_a_config_without_the_axis(trial):
    with pytest.raises(ConfigError, match=r"no data\.batch_size"):
        points_from_records([trial("mup", 64, -6)], axis="batch")
