"""Transfer over depth: the axis is found, base trials are shared where both sizes are the base's, and the target's
numbers are those of the plan."""

from __future__ import annotations

import math

import pytest

import mutransfer as mt
from mutransfer.errors import ConfigError
from mutransfer.train.models import build_model
from mutransfer.transfer import analyze_records, points_from_records, transfer_hyperparameters
from mutransfer.transfer.direction import direction

DEPTHS = (2, 4, 8, 16)
MODEL = {"name": "gpt", "head_dim": 16, "vocab_size": 32, "seq_len": 8}


def sweep(trial, name="completep", depths=DEPTHS, drift=0.0, width=32, widths=None, lrs=range(-9, -3), **more):
    """Best at 2^-6 at depth 2, and `drift` octaves further per doubling; tables with depth rules have a base_depth."""
    deep = {"base_depth": 2} if mt.PARAMETERIZATIONS[name].depth else {}
    return [
        trial(name, w, lr, seed, loss(depth, w, lr, seed, drift), depth=depth, **(deep | more))
        for w in widths or (width,)
        for depth in depths
        for lr in lrs
        for seed in (0, 1)
    ]


def loss(depth, width, lr, seed, drift):
    best = -6 + drift * math.log2(depth / 2)
    size = math.log2(depth * width)
    return 3 - 0.1 * size + 0.05 * (lr - best) ** 2 + 0.01 * seed + 0.001 * ((lr * 7 + seed) % 3)


def test_a_sweep_over_depth_is_judged_over_depth(trial):
    report = analyze_records([*sweep(trial), *sweep(trial, "mup", drift=-0.7)])
    assert report.axis == "depth"
    assert (report["completep"].verdict, report["mup"].verdict) == ("transfers", "does not transfer")
    assert report["mup"].slope.value == pytest.approx(-0.7, abs=0.05)
    assert [best.size for best in report["completep"].optimum] == list(DEPTHS)
    assert str(report).startswith("completep, mup: does not transfer over depth")
    assert report.to_json()["axis"] == "depth"


def test_a_sweep_over_width_is_still_judged_over_width(trial):
    report = analyze_records(sweep(trial, depths=(2,), widths=(32, 64, 128)))
    assert (report.axis, report.verdict) == ("width", "transfers")


class TestTheDirection:
    def test_where_both_were_swept_it_must_be_said(self, trial):
        both = sweep(trial, depths=(2, 4), widths=(32, 64))
        with pytest.raises(ConfigError, match=r"vary in width and in depth: .* axis=width or axis=depth"):
            analyze_records(both)
        assert analyze_records(both, axis="depth")["completep"].optimum[-1].size == 4
        assert analyze_records(both, axis="width")["completep"].optimum[-1].size == 64

    def test_single_trials_of_another_size_do_not_hide_what_was_swept(self, trial):
        stray = sweep(trial, depths=(4,), width=64, lrs=(-6,))
        assert direction([*sweep(trial), *stray]) == "depth"
        assert direction([*sweep(trial, depths=(2,), widths=(32, 64)), *stray]) == "width"

    def test_one_size_is_a_width(self, trial):
        assert direction(sweep(trial, depths=(2,))) == "width"


class TestBaseTrialsAreShared:
    @pytest.mark.parametrize("name", ["completep", "mup", "depth-mup"])
    def test_where_width_and_depth_are_the_bases(self, trial, name):
        every = ("completep", "mup", "depth-mup")
        deeper = [record for other in every for record in sweep(trial, other, depths=(4, 8))]
        points = points_from_records([*sweep(trial, name, depths=(2,)), *deeper], axis="depth")
        for other in every:
            assert {p.size for p in points if p.parameterization == other} == {2, 4, 8}

    def test_not_at_another_depth_nor_of_another_base_nor_at_another_width(self, trial):
        deeper = sweep(trial, depths=(4, 8))
        for alone in (
            sweep(trial, "mup", depths=(3,)),
            sweep(trial, "depth-mup", depths=(3,)),
            sweep(trial, "mup", depths=(2,), width=64),
            sweep(trial, "depth-mup", depths=(2,), base_depth=4),
        ):
            points = points_from_records([*alone, *deeper], axis="depth")
            assert {p.size for p in points if p.parameterization == "completep"} == {4, 8}
        shared = points_from_records([*sweep(trial, "mup", depths=(2,)), *deeper], axis="depth")
        assert {p.size for p in shared if p.parameterization == "completep"} == {2, 4, 8}

    def test_among_tables_of_widths_only_at_every_depth(self, trial):
        wide = sweep(trial, "sp", depths=(8,), widths=(64, 128))
        points = points_from_records([*sweep(trial, "mup", depths=(8,)), *wide])
        assert {p.size for p in points if p.parameterization == "sp"} == {32, 64, 128}

    def test_not_with_a_multiplier_that_the_other_table_does_not_have(self, trial):
        records = [*sweep(trial, depths=(2,), residual_mult=2.0), *sweep(trial, "mup", depths=(4, 8))]
        points = points_from_records(records, axis="depth")
        assert {p.size for p in points if p.parameterization == "mup"} == {4, 8}


class TestTheTarget:
    @pytest.mark.parametrize("name", ["completep", "depth-mup"])
    def test_the_numbers_are_those_of_the_plan(self, trial, name):
        found = transfer_hyperparameters(sweep(trial, name, residual_mult=2.0), {"depth": 32, "width": 128})
        roles = {one.key.removeprefix("lr of "): one for one in found.roles}
        made = _plan(name, 128, 32, {"residual_mult": 2.0, "lr.input": 8.0})
        lr = found["optimizer.lr"]
        for key, parameter in {
            "input, outside": "embedding.weight",
            "hidden, inner": "blocks.0.feed_forward.up.weight",
            "hidden, terminal": "blocks.0.feed_forward.down.weight",
            "vector, inner": "blocks.0.feed_forward_norm.weight",
            "vector, outside": "norm.weight",
            "output, outside": "readout.weight",
        }.items():
            line, of_base = made[parameter], _plan(name, 32, 2, {})[parameter]
            assert roles[key].value == pytest.approx(lr * line.lr, rel=1e-12), key
            if "vector" not in key:  # gains are constants, not drawn
                assert roles[key].init == pytest.approx(line.init_std / of_base.init_std, rel=1e-12), key
            assert roles[key].multiplier == pytest.approx(line.multiplier, rel=1e-12), key

    def test_of_a_depth_is_exact(self, trial):
        """CompleteP, Table 1 of arXiv:2505.01618, at 16 times the base's depth and 4 times its width."""
        found = transfer_hyperparameters(analyze_records(sweep(trial)), {"model.depth": 32, "model.width": 128})
        assert found["optimizer.lr"] == pytest.approx(2**-6, rel=0.02)
        assert "best at depth 16" in str(found)
        assert found["lr of hidden, inner"] == found["lr of hidden, terminal"] == found["optimizer.lr"] / 4
        terminal = next(one for one in found.roles if one.key == "lr of hidden, terminal")
        assert (terminal.multiplier, terminal.init) == (1 / 16, 1 / 2)
        assert "model.depth=32" in found.override
        assert "base=32 base_depth=2 parameterization=completep" in found.override
        assert found.cautions == ()

    def test_at_the_bases_depth_roles_have_no_places(self, trial):
        found = transfer_hyperparameters(sweep(trial, depths=(2,)), {"width": 128})
        assert "lr of hidden" in {one.key for one in found.roles}

    def test_one_tuned_depth_is_enough_where_the_table_has_a_rule(self, trial):
        found = transfer_hyperparameters(sweep(trial, depths=(2,)), {"depth": 32})
        assert found["optimizer.lr"] == pytest.approx(2**-6, rel=0.02)
        with pytest.raises(
            ConfigError,
            match=r"mup has no rule for depth \(m_L = 16\); .* or sweep under depth-mup or completep",
        ):
            transfer_hyperparameters(sweep(trial, "mup", depths=(2,)), {"depth": 32})

    def test_where_only_the_sweep_speaks_for_it_there_is_a_caution(self, trial):
        found = transfer_hyperparameters(sweep(trial, "mup"), {"depth": 32})
        assert found.cautions == ("mup has no rule for depth: beyond 16 the sweep alone speaks for it",)

    def test_the_branches_multiplier_goes_along(self, trial):
        found = transfer_hyperparameters(sweep(trial, residual_mult=2.0), {"depth": 32})
        assert found["hp.residual_mult"] == 2
        assert "hp.residual_mult=2" in found.override

    def test_a_size_that_followed_the_swept_one_must_be_said(self, trial):
        together = [r for n in (1, 2, 4) for r in sweep(trial, depths=(2 * n,), width=32 * n)]
        report = analyze_records(together, axis="width")
        with pytest.raises(ConfigError, match=r"model\.depth followed the width in the sweep: give the target's too"):
            transfer_hyperparameters(report, {"width": 512})
        assert transfer_hyperparameters(report, {"width": 512, "depth": 32})["optimizer.lr"]


def _plan(name, width, depth, hyperparameters):
    def make(width, depth):
        return build_model({**MODEL, "width": width, "depth": depth})

    sizes = {"base": 32, "base_depth": 2, "factory": make}
    return mt.plan(make(width, depth), name, **sizes, form="explicit", hyperparameters=hyperparameters)


def test_a_swept_multiplier_of_the_branches_is_analyzed_too(trial):
    records = [
        trial("completep", 32, -6, seed, 2 + 0.02 * (math.log2(value) - 1) ** 2 + 0.001 * seed, depth=depth,
              base_depth=2, residual_mult=value)
        for depth in DEPTHS for value in (0.5, 1.0, 2.0, 4.0, 8.0) for seed in (0, 1)
    ]  # fmt: skip
    report = analyze_records(records)
    assert (report.axis, report.x, report.verdict) == ("depth", "hp.residual_mult", "transfers")
    assert transfer_hyperparameters(report, {"depth": 64})["hp.residual_mult"] == pytest.approx(2, rel=0.02)
