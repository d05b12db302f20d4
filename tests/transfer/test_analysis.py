from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from mutransfer.errors import ConfigError
from mutransfer.transfer import Point, analyze, extension_overrides, missing_values
from mutransfer.transfer.grid import exact


def parabola(
    name="mup", *, best=(-6, -6, -6), sizes=(32, 64, 128), lrs=range(-9, -2), seeds=(0, 1), noise=0.001, sharp=0.1
):
    """Exact parabolas with a little noise, `best[k]` at `sizes[k]`."""
    rng = np.random.default_rng(3)
    return [
        Point(name, size, 2.0**lr, seed, 2 + sharp * (lr - at) ** 2 + 0.1 * seed + rng.normal(0, noise))
        for size, at in zip(sizes, best, strict=True)
        for lr in lrs
        for seed in seeds
    ]


class TestVerdict:
    def test_an_optimum_that_stays_transfers(self):
        report = analyze(parabola())
        assert report.verdict == "transfers"
        assert report.exit_code == 0
        assert report["mup"].drift.low == 0
        assert report["mup"].drift.high < 0.1

    def test_a_planted_drift_of_one_octave_is_recovered_and_rejected(self):
        report = analyze(parabola(best=(-5, -6, -7), lrs=range(-9, -2)))
        found = report["mup"]
        assert report.verdict == "does not transfer"
        assert report.exit_code == 1
        assert found.slope.low <= -1 <= found.slope.high
        assert found.drift.value == pytest.approx(1, abs=0.02)
        assert found.regret.value == pytest.approx(0.1 * 2**2 / 2.05, rel=0.02)

    def test_a_small_drift_that_costs_much_does_not_transfer(self):
        """0.2 octaves per doubling is inside the drift's line, but this valley is sharp."""
        found = analyze(parabola(best=(-6, -6.2, -6.4), sharp=1.0))["mup"]
        assert found.drift.high < 0.25
        assert found.regret.low > 0.005
        assert found.verdict == "does not transfer"

    def test_flat_losses_are_undecided(self):
        report = analyze(parabola(sharp=0.0, noise=0.01))
        assert report.verdict == "undecided"
        assert report.exit_code == 3

    def test_one_seed_is_undecided_and_says_why(self):
        report = analyze(parabola(seeds=(0,)))
        found = report["mup"]
        assert report.verdict == "undecided"
        assert found.drift.value == pytest.approx(0, abs=0.02)
        assert (found.drift.low, found.drift.high, found.regret.low) == (None, None, None)
        assert "seed" in found.reasons[0]

    def test_the_subject_is_what_is_not_a_control(self):
        report = analyze([*parabola("mup"), *parabola("sp", best=(-5, -6, -7))])
        assert (report.verdict, report.subject) == ("transfers", ("mup",))
        assert report["sp"].verdict == "does not transfer"
        assert report["sp"].is_control

    def test_the_subject_can_be_named_and_of_several_the_worst_counts(self):
        points = [*parabola("mup"), *parabola("sp", best=(-5, -6, -7))]
        assert analyze(points, subject="sp").verdict == "does not transfer"
        assert analyze(points, subject=["mup", "sp"]).verdict == "does not transfer"

    def test_a_sweep_of_a_control_alone_is_about_that_control(self):
        assert analyze(parabola("sp")).subject == ("sp",)


class TestRaggedSweeps:
    def test_sizes_may_have_different_values(self):
        points = [p for p in parabola() if p.size != 128 or p.lr > 2**-8.5]
        assert analyze(points).verdict == "transfers"

    def test_a_missing_trial_does_not_move_the_curve(self):
        """Seeds differ by 0.1 everywhere: a plain mean over those present would dent the curve where one is missing."""
        points = [p for p in parabola() if (p.size, p.lr, p.seed) != (64, 2**-5, 1)]
        assert analyze(points)["mup"].optimum[1].log2.value == pytest.approx(-6, abs=0.02)

    def test_unpaired_seeds_are_said_and_widen_the_interval(self):
        paired = parabola()
        loose = [
            Point(p.parameterization, p.size, p.lr, p.seed + round(100 - 10 * math.log2(p.lr)), p.loss) for p in paired
        ]
        report = analyze(loose)
        assert any("seeds differ" in note for note in report.notes)
        assert report["mup"].drift.high > 2 * analyze(paired)["mup"].drift.high

    def test_a_diverged_trial_is_a_result(self):
        points = [
            Point(p.parameterization, p.size, p.lr, p.seed, math.inf if p.lr > 2**-4.5 else p.loss) for p in parabola()
        ]
        report = analyze(points)
        assert report["mup"].optimum[0].log2.value == pytest.approx(-6, abs=0.02)
        assert report.verdict == "transfers"

    def test_regret_where_training_diverges_fails(self):
        points = parabola(best=(-4, -6, -7.5))
        lost = [
            Point(p.parameterization, p.size, p.lr, p.seed, math.inf if p.size == 128 and p.lr > 2**-5.5 else p.loss)
            for p in points
        ]
        found = analyze(lost)["mup"]
        assert found.regret.value == math.inf
        assert found.verdict == "does not transfer"
        assert json.loads(json.dumps(analyze(lost).to_json()))["parameterizations"]["mup"]["regret"]["value"] is None


class TestOpenEnds:
    def test_an_optimum_at_the_edge_names_the_values_to_add(self):
        report = analyze(parabola(best=(-6, -6, -8.6)))
        assert report.verdict == "undecided"
        assert missing_values(report) == {"mup": {128: (2**-11, 2**-10)}}
        assert extension_overrides(report) == [
            "parameterization=mup model.width=128 optimizer.lr=2**-11,2**-10 seed=0,1"
        ]
        assert "128" in report["mup"].reasons[0]

    def test_the_upper_edge_too(self):
        assert missing_values(analyze(parabola(best=(-6, -6, -3.4)))) == {"mup": {128: (2**-2, 2**-1)}}

    def test_an_optimum_at_an_end_of_the_grid_is_a_bound(self):
        low, high = (analyze(parabola(best=(-6, -6, at)))["mup"].optimum for at in (-8.6, -3.4))
        assert [best.bound for best in (*low, *high)] == ["", "", "<=", "", "", ">="]
        shown = str(analyze(parabola(best=(-6, -6, -8.6))))
        assert "64: 2^-6.00, 128: <=2^-" in shown
        assert (
            json.loads(json.dumps(analyze(parabola()).to_json()))["parameterizations"]["mup"]["optimum"]["64"]["bound"]
            == ""
        )

    def test_what_rests_on_an_optimum_at_an_end_of_the_grid_is_not_known_and_says_why(self):
        """Had it been read off the fit, every size's best value would be the grid's first one: no drift, no regret."""
        report = analyze(parabola(best=(-12, -12.5, -13)))
        found = json.loads(json.dumps(report.to_json()))["parameterizations"]["mup"]
        for part in ("slope", "drift", "regret", "curvature_slope"):
            assert (found[part]["value"], found[part]["low"], found[part]["high"]) == (None, None, None)
            assert "not between tried ones" in found[part]["reason"]
        assert "unknown" in str(report)

    def test_an_optimum_in_the_middle_that_is_open_leaves_the_regret_known(self):
        found = analyze([p for p in parabola() if p.size != 64 or p.lr > 2**-6.5])["mup"]
        assert found.slope.value is None
        assert found.regret.high < 0.005

    def test_a_bound_is_the_last_tried_value(self):
        found = analyze(parabola(best=(-6, -6, -8.6)))["mup"].optimum[-1]
        assert (found.bound, found.lr.value, found.lr.low) == ("<=", 2**-9, None)
        assert "end of the tried values" in found.lr.reason

    def test_the_loss_gap_of_an_open_optimum_is_not_known(self):
        report = analyze([*parabola(), *parabola("sp", best=(-6, -7, -8.8))])
        assert report["sp"].loss_gap.value is None
        assert report["sp"].loss_gap.reason == "sp: the best value at size 128 is not between tried ones"

    def test_noise_asks_for_as_many_new_seeds_again(self):
        noisy = parabola(sharp=0.01, noise=0.03)
        ragged = [p for p in noisy if p.size != 32 or p.lr > 2**-8.5]
        lrs = [f"2**{k}" for k in range(-9, -2)]
        report = analyze(ragged)
        assert report.verdict == "undecided"
        assert not missing_values(report)
        assert extension_overrides(report) == [
            f"parameterization=mup model.width=32 optimizer.lr={','.join(lrs[1:])} seed=2,3",
            f"parameterization=mup model.width=64,128 optimizer.lr={','.join(lrs)} seed=2,3",
        ]

    def test_a_coarse_grid_asks_for_values_between_before_seeds(self):
        """Two octaves apart beside a wall, where the grid lies leaves a drift of 0.2 open, and no seed would tell."""
        bests = (-6.5, -6.7, -6.9)
        walled = [
            dataclasses.replace(p, loss=p.loss + 0.6 * max(0.0, math.log2(p.lr) - at - 1))
            for size, at in zip((32, 64, 128), bests, strict=True)
            for p in parabola(best=bests, lrs=range(-11, 0, 2), sharp=0.03)
            if p.size == size
        ]
        report = analyze(walled)
        assert report.verdict == "undecided"
        assert "add values between those tried" in report["mup"].reasons[0]
        assert extension_overrides(report) == [
            "parameterization=mup model.width=32,64,128 optimizer.lr=2**-8,2**-6 seed=0,1"
        ]

    def test_an_interior_optimum_asks_for_nothing(self):
        assert extension_overrides(analyze(parabola())) == []

    def test_a_cliff_right_beside_the_best_value_asks_for_one_between(self):
        points = [
            Point(p.parameterization, p.size, p.lr, p.seed, math.inf if p.lr > 2**-5.5 else p.loss)
            for p in parabola(best=(-5.4,) * 3)
        ]
        assert missing_values(analyze(points))["mup"][32] == (0.0221,)  # 2^-5.5

    def test_regret_never_reads_outside_the_tried_values(self):
        """The largest size was tried around its own optimum only: what the smallest one's costs is not known."""
        points = [p for p in parabola(best=(-4.4, -6, -8), lrs=range(-11, -2)) if p.size != 128 or p.lr < 2**-5.5]
        found = analyze(points)["mup"]
        assert found.regret.value is None
        assert "not tried" in found.regret.reason
        assert missing_values(analyze(points))["mup"][128] == (2**-5, 2**-4)
        assert found.verdict == "does not transfer"  # the drift alone says so


class TestGridsThatAreNotAlike:
    def test_where_the_best_value_alone_has_one_seed_the_noise_is_that_of_the_nearest_values(self):
        """Three octaves apart: none lies within two of the best one."""
        points = [p for p in parabola(lrs=range(-12, 1, 3)) if p.lr != 2**-6 or p.seed == 0]
        found = analyze(points)["mup"]
        assert math.isfinite(found.slope.high)
        assert all(-12 <= best.log2.low <= best.log2.high <= 0 for best in found.optimum)

    def test_one_size_with_values_further_apart_is_noted(self):
        points = [p for p in parabola(lrs=range(-10, -1)) if p.size != 32 or math.log2(p.lr) % 2 == 0]
        assert any("size 32 lie further apart than elsewhere" in note for note in analyze(points).notes)
        assert not any("further apart" in note for note in analyze(parabola(lrs=range(-10, -1, 2))).notes)


class TestScatter:
    BEST = (-6, -7.4, -6, -7.4, -6)  # by symmetry a level line

    def scattered(self, best=BEST, **more):
        return analyze(parabola(best=best, sizes=(16, 32, 64, 128, 256), lrs=range(-11, -2), **more))

    def test_optima_that_leap_around_a_level_line_are_undecided(self):
        found = self.scattered()["mup"]
        assert found.verdict == "undecided"
        assert found.drift.high < 0.25  # the line alone says nothing of it
        assert len(found.reasons) == 4
        assert found.reasons[0].startswith("from size 16 to 32 the best value moves by at least 1.3")

    def test_optima_on_a_line_are_not(self):
        assert self.scattered(best=(-6,) * 5).verdict == "transfers"
        slow = self.scattered(best=(-6, -6.1, -6.2, -6.3, -6.4), sharp=0.01)["mup"]
        assert not any("moves by at least" in reason for reason in slow.reasons)

    def test_a_verdict_that_says_it_has_no_need_of_them(self):
        found = self.scattered(best=(-5, -6, -7, -8, -9))["mup"]
        assert found.verdict == "does not transfer"
        assert not any("moves by at least" in reason for reason in found.reasons)


class TestBeside:
    def test_curvature_is_what_an_octave_costs(self):
        found = analyze(parabola())["mup"]
        assert found.optimum[0].curvature.value == pytest.approx(0.1 / 2.05, rel=0.02)
        assert found.curvature_slope.low <= 0 <= found.curvature_slope.high

    def test_loss_gap_is_to_the_best_parameterization_at_the_largest_size(self):
        worse = [Point("sp", p.size, p.lr, p.seed, p.loss * 1.1) for p in parabola()]
        report = analyze([*parabola(), *worse])
        assert report["sp"].loss_gap.value == pytest.approx(0.1, rel=1e-3)
        assert report["mup"].loss_gap.value == 0

    def test_a_gap_between_different_seeds_has_an_interval_that_holds_their_spread(self):
        """Seeds scatter by 0.1 of 2: paired, that cancels; unpaired, a gap of 2 % cannot be told from none."""
        paired = [Point("sp", p.size, p.lr, p.seed, p.loss * 1.02) for p in parabola()]
        others = [Point(p.parameterization, p.size, p.lr, p.seed + 10, p.loss) for p in paired]
        alike, loose = (analyze([*parabola(), *sp])["sp"].loss_gap for sp in (paired, others))
        assert 0.01 < alike.low < alike.value < alike.high < 0.03
        assert loose.low < 0 < loose.value < 0.05 < loose.high
        report = analyze([*parabola(), *others])
        assert any(note.startswith("sp: loss gap: the seeds are not those of mup") for note in report.notes)

    def test_the_unpaired_interval_covers_the_truth(self):
        """Both tables have the same optimum; only luck of their own seeds tells them apart."""
        rng = np.random.default_rng(5)
        covered = 0
        for _ in range(60):
            points = []
            for name, seeds in (("mup", (0, 1, 2)), ("sp", (3, 4, 5))):
                luck = dict(zip(seeds, rng.normal(0, 0.05, 3), strict=True))
                plain = parabola(name, seeds=seeds, sizes=(32, 64), best=(-6, -6), lrs=range(-8, -3))
                points += [
                    Point(name, p.size, p.lr, p.seed, p.loss - 0.1 * p.seed + luck[p.seed] + rng.normal(0, 0.002))
                    for p in plain
                ]
            gap = max((analyze(points, draws=200)[name].loss_gap for name in ("mup", "sp")), key=lambda g: g.value)
            covered += gap.low <= 0 <= gap.high
        assert covered / 60 >= 0.8

    def test_one_seed_on_either_side_leaves_the_gap_without_an_interval_and_says_why(self):
        alone = [Point("sp", p.size, p.lr, 7, p.loss) for p in parabola(seeds=(0,))]
        report = analyze([*parabola(), *alone], subject="mup")
        names = [one.name for one in report.parameterizations.values() if one.loss_gap.value]
        assert all("one seed" in report[name].loss_gap.reason for name in names)
        assert len(names) == 1

    def test_a_limit_needs_six_sizes(self):
        assert "at least 6" in analyze(parabola())["mup"].asymptotic_penalty.reason

    def test_the_limit_gap_is_recovered_from_six(self):
        sizes = tuple(32 * 2**k for k in range(6))

        def falling(name, limit):
            flat = parabola(name, best=(-6,) * 6, sizes=sizes, noise=1e-5)
            return [Point(name, p.size, p.lr, p.seed, p.loss - 2 + limit + (32 / p.size) ** 0.5) for p in flat]

        report = analyze([*falling("mup", 2.0), *falling("sp", 2.2)])
        assert report["sp"].asymptotic_penalty.value == pytest.approx(0.2 / 2.05, rel=0.05)
        assert report["mup"].asymptotic_penalty.value == 0

    def test_any_hyperparameter_may_be_on_the_x_axis(self):
        points = [Point(p.parameterization, p.size, p.lr * 2**9, p.seed, p.loss) for p in parabola()]
        report = analyze(points, x="hp.lr.input")
        assert report["mup"].optimum[0].lr.value == pytest.approx(8, rel=0.02)
        assert "hp.lr.input" in str(report)

    def test_the_same_points_give_the_same_numbers(self):
        assert analyze(parabola()).to_json() == analyze(parabola()).to_json()


class TestJson:
    def test_the_schema(self):
        content = json.loads(json.dumps(analyze([*parabola(), *parabola("sp", best=(-5, -6, -7))]).to_json()))
        assert (content["verdict"], content["subject"], content["level"]) == ("transfers", "mup", 0.9)
        one = content["parameterizations"]["sp"]
        assert one["verdict"] == "does not transfer"
        for part in (one["slope"], one["drift"], one["regret"], *one["optimum"].values()):
            assert part["low"] <= part["value"] <= part["high"]
        assert list(one["optimum"]) == ["32", "64", "128"]

    def test_a_notebook_shows_it_and_escapes_names(self):
        shown = analyze(parabola("<script>alert(1)</script>"))._repr_html_()
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown

    def test_the_terminal_shows_verdict_and_intervals(self):
        shown = str(analyze(parabola()))
        assert shown.startswith("mup: transfers over width")
        assert "2^-6.00" in shown


class TestBadInput:
    @pytest.mark.parametrize(
        ("points", "message"),
        [
            ([], "no points"),
            ([p for p in parabola() if p.lr < 2**-7.5], "too few values of optimizer.lr .*2 at size 32"),
            ([p for p in parabola() if p.size == 32], "size 32 only; transfer needs at least 2 sizes"),
            ([Point("mup", 32, 0.0, 0, 2.0)], "positive value"),
            ([Point("mup", 32, 2**-6, 0, math.nan)], "has no loss"),
            ([Point("mup", 32, 2**-6, 0, -1.2)], "a loss that is not above 0, and regret is relative to the loss"),
            ([*parabola(), Point("ntk", 128, 2**-6, 0, 2.0)], "To judge what was swept: subject=mup"),
            ([*parabola(), Point("mup", 32, 2**-6, 0, 9.0)], "keep one setting"),
        ],
    )
    def test_one_sentence(self, points, message):
        with pytest.raises(ConfigError, match=message):
            analyze(points)

    def test_an_unknown_subject_names_the_nearest(self):
        with pytest.raises(ConfigError, match="Did you mean 'mup'"):
            analyze(parabola(), subject="mupp")

    def test_an_unknown_axis(self):
        with pytest.raises(ConfigError, match="Did you mean 'width'"):
            analyze(parabola(), axis="widht")

    @pytest.mark.parametrize("options", [{"level": 1.0}, {"draws": 10}])
    def test_options_out_of_range(self, options):
        with pytest.raises(ConfigError):
            analyze(parabola(), **options)

    @pytest.mark.parametrize("sizes", [(32, 64, 128), (64, 128)])
    def test_where_all_diverged_one_sentence_asks_for_smaller_values(self, sizes):
        diverged = [dataclasses.replace(p, loss=math.inf) if p.size in sizes else p for p in parabola()]
        with pytest.raises(ConfigError) as caught:
            analyze(diverged)
        named = ", ".join(map(str, sizes))
        assert str(caught.value) == (
            f"mup diverged at every value of optimizer.lr at size {named}: add smaller ones, such as "
            "optimizer.lr=2**-12,2**-11,2**-10."
        )

    def test_a_size_at_which_all_diverged_leaves_the_verdict_undecided_and_asks_for_smaller_values(self):
        diverged = [dataclasses.replace(p, loss=math.inf) if p.size == 128 else p for p in parabola()]
        report = analyze(diverged)
        assert report.verdict == "undecided"
        assert "of the 7 values at size 128 0 converged" in report["mup"].reasons[0]
        assert extension_overrides(report) == [
            "parameterization=mup model.width=128 optimizer.lr=2**-12,2**-11,2**-10 seed=0,1"
        ]
        few = [p for p in parabola() if p.size != 128 or p.lr == 2**-6]
        assert analyze(few).verdict == "transfers"  # one value at 128 that did not diverge was no sweep of it

    def test_where_some_converged_only_what_is_missing_is_asked_for(self):
        """Between the best of those that converged and the wall."""
        fine = [p for p in parabola() if p.size != 128 or -8 < math.log2(p.lr) < -4]
        near = analyze([dataclasses.replace(p, loss=math.inf) if (p.size, p.lr) == (128, 2**-5) else p for p in fine])
        assert near.verdict == "undecided"
        assert "of the 3 values at size 128 2 converged" in near["mup"].reasons[0]
        assert near["mup"].missing == {128: (0.0221,)}  # 2**-5.5
        few = [p for p in parabola(lrs=range(-12, -1)) if p.size != 128 or math.log2(p.lr) in (-12, -6, -2)]
        wide = analyze([dataclasses.replace(p, loss=math.inf) if (p.size, p.lr) == (128, 2**-2) else p for p in few])
        assert wide["mup"].missing == {128: (2**-4,)}

    def test_a_control_that_diverged_everywhere_is_left_out_with_the_same_advice(self):
        report = analyze([*parabola(), *[dataclasses.replace(p, loss=math.inf) for p in parabola("sp")]])
        assert report.verdict == "transfers"
        assert any("sp: left out, since sp diverged at every value" in note for note in report.notes)

    def test_a_control_with_too_few_trials_is_left_out_and_said(self):
        report = analyze([*parabola(), *[p for p in parabola("sp") if p.size == 32]])
        assert list(report.parameterizations) == ["mup"]
        assert any(note.startswith("sp: left out") for note in report.notes)


def test_the_analysis_imports_no_torch():
    code = "import sys, mutransfer.transfer; assert not {'torch', 'scipy', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "text"), [(2**-6, "2**-6"), (8.0, "8"), (0.1, "0.1"), (-2.0, "-2"), (1e300, "1e+300"), (3e-5, "3e-05")]
)
def test_a_value_is_written_as_it_is_read_back_and_no_longer_than_need_be(value, text):
    assert exact(value) == text
