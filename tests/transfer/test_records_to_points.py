from __future__ import annotations

import dataclasses
import math

import pytest

from mutransfer.errors import ConfigError, RunError
from mutransfer.transfer import analyze_records, extension_overrides, points_from_records, transfer_hyperparameters
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


def without(records, *cells):
    """The records without those of these (width, log2 lr, seed), and the removed ones."""
    removed = [
        r
        for r in records
        if (r.config["model"]["width"], math.log2(r.config["optimizer"]["lr"]), r.config["seed"]) in cells
    ]
    return [r for r in records if r not in removed], removed


def failed(records):
    return [dataclasses.replace(r, status="failed", val_loss=None) for r in records]


class TestTrialsWithoutAResult:
    def test_an_unfinished_one_on_a_curve_leaves_the_verdict_undecided(self, trial):
        kept, removed = without(sweep(trial), (64, -9, 1))
        assert analyze_records(kept).verdict == "transfers"
        report = analyze_records(kept, unfinished=[r.config for r in removed])
        assert (report.verdict, report.exit_code) == ("undecided", 3)
        assert "mup: 1 trial is unfinished" in str(report).splitlines()[0]
        assert str(report).count("unfinished") == 1
        assert report.extend == []  # the same sweep ends it: no new seeds are asked for

    def test_so_it_does_where_the_finished_ones_speak_against_transfer(self, trial):
        records = sweep(trial, best=lambda width: -5 - math.log2(width / 32))
        assert analyze_records(records).verdict == "does not transfer"
        assert analyze_records(records, unfinished=[trial("mup", 256, -6).config]).verdict == "undecided"

    def test_one_of_another_setting_or_of_a_control_does_not(self, trial):
        records = [*sweep(trial), *sweep(trial, "sp", widths=(64, 128))]
        other = [trial("mup", 64, -6, 7, lr_input=1.0).config, trial("sp", 64, -6, 7).config]
        report = analyze_records(records, unfinished=other)
        assert report.verdict == report["mup"].verdict == "transfers"
        assert report["sp"].verdict == "undecided"

    def test_at_the_base_one_belongs_to_every_parameterization(self, trial):
        records = [*sweep(trial), *sweep(trial, "sp", widths=(64, 128))]
        assert analyze_records(records, unfinished=[trial("sp", 32, -6, 7).config])["mup"].verdict == "undecided"

    def test_a_subject_that_has_not_begun_is_missed(self, trial):
        unbegun = [trial("mup", 64, -6).config]
        controls = sweep(trial, "sp", widths=(64, 128))
        report = analyze_records(controls, unfinished=unbegun)
        assert (report.verdict, report.subject) == ("undecided", ("sp",))
        assert "no trial of mup has a result yet" in str(report).splitlines()[0]
        assert analyze_records(controls, subject="sp", unfinished=unbegun).verdict == "transfers"

    def test_a_failed_value_beside_the_best_one_may_hide_it(self, trial):
        kept, removed = without(sweep(trial), (64, -6, 0), (64, -6, 1))
        report = analyze_records([*kept, *failed(removed)])
        assert report.verdict == "undecided"
        assert "failed at size 64 may hide the best value" in str(report).splitlines()[0]
        assert extension_overrides(report) == [
            "parameterization=mup model.width=64 optimizer.lr=2**-6 seed=0,1 engine.retry_failed=true"
        ]

    def test_one_whose_value_has_another_seed_or_lies_up_the_valley_may_not(self, trial):
        kept, removed = without(sweep(trial), (64, -6, 0), (64, -9, 0), (64, -9, 1), (128, -4, 0), (128, -4, 1))
        assert analyze_records([*kept, *failed(removed)]).verdict == "transfers"

    def test_a_size_of_which_all_failed_is_missed(self, trial):
        lost = failed(trial("mup", 256, lr, seed) for lr in (-7, -6, -5) for seed in (0, 1))
        report = analyze_records([*sweep(trial), *lost])
        assert report.verdict == "undecided"
        assert report.to_json()["open"] == "mup: trials that failed at size 256 may hide the best value: run them again"
        assert extension_overrides(report) == [
            "parameterization=mup model.width=256 optimizer.lr=2**-7,2**-6,2**-5 seed=0,1 engine.retry_failed=true"
        ]

    def test_lines_that_add_values_or_seeds_retry_those_that_failed_among_them(self, trial):
        edge = [r for r in sweep(trial) if r.config["optimizer"]["lr"] > 2**-6.5]
        alone = sweep(trial, seeds=(0,))
        for records, other in ((edge, trial("mup", 64, -7)), (alone, trial("mup", 64, -7, 1))):
            plain = extension_overrides(analyze_records(records))
            again = extension_overrides(analyze_records([*records, *failed([other])]))
            assert again == [f"{x} engine.retry_failed=true" if "width=64" in x else x for x in plain]
            assert again != plain


@pytest.mark.parametrize("failed", [False, True], ids=["its other seed is bad", "its other seed has failed"])
def test_one_lucky_trial_does_not_choose_a_setting(trial, failed):
    """The mean over seeds at every value but the lucky one's is 0.1 lower at the other setting."""
    good, lucky = sweep(trial, lr_input=4.0), sweep(trial, lr_input=8.0)
    lucky = [dataclasses.replace(one, val_loss=one.val_loss + 0.1) for one in lucky]
    at = {one.config["seed"]: k for k, one in enumerate(lucky) if _is_at(one, 32, 2**-5)}
    lucky[at[0]] = dataclasses.replace(lucky[at[0]], val_loss=2.0)
    lucky[at[1]] = dataclasses.replace(lucky[at[1]], val_loss=None if failed else 3.5)
    if failed:
        lucky[at[1]] = dataclasses.replace(lucky[at[1]], status="failed")
    assert min(one.val_loss for one in lucky if one.val_loss) < min(one.val_loss for one in good if _is_at(one, 32))
    assert select([*good, *lucky]).settings["mup"]["hp.lr.input"] == 4.0


def _is_at(one, width, lr=None):
    return one.config["model"]["width"] == width and lr in (None, one.config["optimizer"]["lr"])


def test_settings_are_compared_at_a_size_that_both_have(trial):
    """The setting that begins at a wider model has lower losses there, and is worse at the only common size."""
    best = {(1.0, 32): 2.6, (1.0, 64): 2.3, (2.0, 64): 2.45, (2.0, 128): 2.15}
    records = [
        trial("mup", width, k, seed, loss=loss + 0.1 * (k + 6) ** 2, output_mult=mult)
        for (mult, width), loss in best.items()
        for k in range(-8, -3)
        for seed in (0, 1)
    ]
    assert {point.size for point in points_from_records(records)} == {32, 64}


def test_a_sweep_whose_other_sizes_all_failed_says_so(trial):
    records = [
        trial("mup", width, k, seed, loss=2 + 0.1 * (k + 6) ** 2, status="done" if width == 32 else "failed")
        for width in (32, 64, 128)
        for k in range(-8, -3)
        for seed in (0, 1)
    ]
    with pytest.raises(RunError, match="mup: all 20 trials at size 64, 128 failed"):
        analyze_records(records)
