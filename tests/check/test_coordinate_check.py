from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn
from toy_models import Decoder

import mutransfer as mt
from mutransfer.check import runs
from mutransfer.check.report import CoordReport, standing
from mutransfer.check.settings import Setting
from mutransfer.check.slopes import Slope
from mutransfer.check.verdict import Findings, culprits, implied
from mutransfer.errors import ConfigError, RuleError
from mutransfer.rules.optimizers import OPTIMIZERS
from mutransfer.rules.scale import m_in, m_out
from mutransfer.rules.table import Role

TABLES = ("mup", "mup-table3", "mup-table9")
OPTIMIZER_NAMES = ("adamw", "sgd")
DRAWN = (Role.INPUT, Role.HIDDEN, Role.OUTPUT, Role.VECTOR)
CELLS = ("init_std", "multiplier", "lr")
WIDTHS = (64, 128, 256, 512)


def mlp_check(models, table, optimizer="adamw", **options) -> CoordReport:
    """One step is enough for the law of an MLP."""
    options = {"widths": WIDTHS, "seeds": 4, "steps": 1, "example_inputs": models.vectors} | options
    return mt.coord_check(models.mlp, parameterization=table, optimizer=optimizer, **options)


def blamed_role(report: CoordReport) -> Role | None:
    name = report.culprits[0].name
    return next(slope.role for slope in report.judged if slope.name == name)


class TestLawOfEachTable:
    @pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
    @pytest.mark.parametrize("table", TABLES)
    def test_right_tables_pass_and_the_control_does_not(self, models, table, optimizer):
        report = mlp_check(models, table, optimizer)
        assert (report.verdict, report.control.verdict, report.culprits) == ("pass", "fail", ())
        assert report.slope("4.weight", "init").value == pytest.approx(-0.5, abs=0.25)

    @pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
    @pytest.mark.parametrize("table", ["sp", "ntk"])
    def test_tables_whose_optimum_moves_fail(self, models, table, optimizer):
        report = mlp_check(models, table, optimizer)
        assert report.verdict == "fail"
        assert {culprit.kind for culprit in report.culprits} == {"change"}

    @pytest.mark.parametrize("power", [0.5, -0.5])
    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize("role", DRAWN)
    @pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
    @pytest.mark.parametrize("table", ["mup", *(pytest.param(name, marks=pytest.mark.slow) for name in TABLES[1:])])
    def test_one_corrupted_cell_fails_and_is_named(self, models, corrupted, table, optimizer, role, cell, power):
        wrong = corrupted(mt.PARAMETERIZATIONS[table], role, cell, power, optimizer)
        report = mlp_check(models, wrong, optimizer)
        assert (report.verdict, blamed_role(report)) == ("fail", role)
        assert report.culprits[0].kind == ("change" if cell == "lr" else "init")

    @pytest.mark.parametrize("cell", CELLS)
    @pytest.mark.parametrize(
        ("role", "ratio"),
        [
            (Role.INPUT, m_in),  # an input's fan-in does not grow
            (Role.OUTPUT, m_out),  # a readout's fan-out does not grow
            (Role.VECTOR, m_in),  # a bias contracts nothing
            (Role.SCALAR, m_in * m_out),  # an output bias has no size that grows
        ],
    )
    def test_equivalent_mutants_change_nothing(self, models, corrupted, role, cell, ratio):
        same = corrupted(mt.PARAMETERIZATIONS["mup"], role, cell, 0.5, ratio=ratio)
        plans = [
            mt.plan(models.mlp(128), t, base=64, factory=models.mlp, example_inputs=models.vectors)
            for t in (same, mt.PARAMETERIZATIONS["mup"])
        ]
        assert plans[0].params == plans[1].params

    def test_explicit_form_passes_as_the_folded_one(self, models):
        folded, explicit = (mlp_check(models, "mup", form=form) for form in ("folded", "explicit"))
        assert explicit.verdict == "pass"
        for one, other in zip(folded.judged, explicit.judged, strict=True):
            assert one.name == other.name
            assert one.value == pytest.approx(other.value, abs=1e-3)


class TestEpsAndDecay:
    """They show in no slope; the optimizer's groups at two widths say them exactly."""

    @pytest.mark.parametrize(
        ("cell", "kind", "optimizer"),
        [("eps", "eps", "adamw"), ("weight_decay", "decay", "adamw"), ("weight_decay", "decay", "sgd")],
    )
    @pytest.mark.parametrize("role", [Role.INPUT, Role.HIDDEN, Role.OUTPUT])
    def test_a_wrong_cell_is_named(self, models, role, cell, kind, optimizer):
        factor = {Role.INPUT: m_out, Role.HIDDEN: m_in, Role.OUTPUT: m_in}[role] ** 0.5
        family = OPTIMIZERS[optimizer].family
        wrong = mt.PARAMETERIZATIONS["mup"].with_cell(role, cell, lambda right: right * factor, family=family)
        report = mlp_check(models, wrong, optimizer)
        assert (report.verdict, report.culprits[0].kind, blamed_role(report)) == ("fail", kind, role)

    @pytest.mark.parametrize("table", [*TABLES, "mean-field", "ntk-stable"])
    def test_right_tables_hold_exactly(self, models, table):
        report = mlp_check(models, table, seeds=2)
        assert {setting.kind for setting in report.groups} == {"eps", "decay"}
        assert all(setting.holds for setting in report.groups)

    def test_a_recurrent_matrix_is_held_to_what_it_contracts(self):
        """The state that it meets first is zeros."""

        class Recurrent(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.embed, self.read = torch.nn.Embedding(32, width), torch.nn.Linear(width, 32)
                self.core = torch.nn.LSTM(width, width, batch_first=True)

            def forward(self, ids):
                return self.read(self.core(self.embed(ids))[0])

        ids = torch.arange(1, 6)[None]
        report = mt.coord_check(Recurrent, widths=(32, 64, 128), seeds=2, steps=2, example_inputs=ids)
        assert {s.group for s in report.groups if s.name == "core.weight_hh_l0"} == {"hidden"}
        assert all(setting.holds for setting in report.groups)

    @pytest.mark.parametrize(("wrong", "verdict"), [("2.weight", "fail"), (None, "pass")])
    def test_one_wrong_eps_in_hand_written_code_is_named(self, models, wrong, verdict):
        """Though every eps is the optimizer's default at the base."""

        def by_hand(width):
            model = models.mlp(width)
            mt.plan(model, "mup", base=WIDTHS[0], factory=models.mlp, example_inputs=models.vectors).apply(model)
            return model

        def optimizer(model, width):
            planned = models.mlp(width)
            plan = mt.plan(planned, "mup", base=WIDTHS[0], factory=models.mlp, example_inputs=models.vectors)
            groups = [
                {"params": [p], "lr": 2**-8 * plan[n].lr, "eps": 1e-8 * (1.0 if n == wrong else plan[n].eps)}
                for n, p in model.named_parameters()
            ]
            return torch.optim.AdamW(groups, weight_decay=0.0)

        report = mt.coord_check(
            by_hand, widths=WIDTHS, seeds=4, steps=1, example_inputs=models.vectors, make_optimizer=optimizer
        )
        assert report.verdict == verdict
        assert [c.name for c in report.culprits] == ([wrong] if wrong else [])


def decoder_check(models, table, optimizer="adamw", **settings) -> CoordReport:
    return mt.coord_check(
        lambda width: models.gpt(width, **settings),
        widths=(64, 128, 256),
        parameterization=table,
        optimizer=optimizer,
        seeds=6,
    )


class TestDecoder:
    def test_mup_passes_with_biases_and_a_tied_readout(self, models):
        report = decoder_check(models, "mup", bias=True, tied=True, depth=1)
        assert report.verdict == "pass"
        assert report.slope("embedding.weight", "init").law == 0.0
        readout = report.slope("embedding.weight (use 2)", "init")
        assert -0.5 <= readout.law <= 0.0
        assert (readout.role, readout.value) == (Role.OUTPUT, pytest.approx(-0.5, abs=0.25))
        assert report.slope("norm.weight", "init").value == pytest.approx(
            0.0, abs=0.1
        )  # what it carries is divided out
        assert [item.parameter for item in report.listed] == ["blocks.0.attention.k.bias"]
        assert "perhaps by symmetry" in report.listed[0].why

    def test_sgd_passes_in_the_explicit_form_of_table_9(self, models):
        assert decoder_check(models, "mup-table9", "sgd", depth=1).verdict == "pass"

    def test_sp_fails_by_all_that_contracts_the_width(self, models):
        """To first order hidden weights and readout are off alike: lr * fan-in."""
        report = decoder_check(models, "sp", depth=1)
        assert report.verdict == "fail"
        assert blamed_role(report) in (Role.HIDDEN, Role.OUTPUT)
        assert report.slope("blocks.0.attention.q.weight").value > 0.7
        assert report.slope("readout.weight").value > 0.7

    @pytest.mark.parametrize(("role", "cell", "power"), [(Role.INPUT, "lr", -0.5), (Role.OUTPUT, "multiplier", 0.5)])
    def test_a_corrupted_cell_is_named(self, models, corrupted, role, cell, power):
        report = decoder_check(models, corrupted(mt.PARAMETERIZATIONS["mup"], role, cell, power), depth=1)
        assert (report.verdict, blamed_role(report)) == ("fail", role)


class TestTiedReadout:
    """Its own token meets its own row, so at init anything from the readout's exponent to the embedding's is right."""

    @staticmethod
    def check(table) -> CoordReport:
        build = lambda width: Decoder(width, tied=True)  # noqa: E731
        return mt.coord_check(build, widths=(64, 128, 256), parameterization=table, seeds=6)

    def test_passes_where_the_stream_is_mostly_the_embedding(self):
        report = self.check("mup")
        assert report.verdict == "pass"
        assert -0.4 < report.slope("embed.weight (use 2)", "init").value < 0.0

    @pytest.mark.parametrize("power", [0.5, pytest.param(-0.5, marks=pytest.mark.slow)])
    def test_a_wrong_multiplier_is_seen(self, power):
        wrong = dataclasses.replace(mt.PARAMETERIZATIONS["mup"], gauge={Role.OUTPUT: m_in ** (power - 1)})
        report = self.check(wrong)
        assert (report.verdict, report.culprits[0].name) == ("fail", "embed.weight (use 2)")


class TestResNet:
    @pytest.mark.parametrize(
        ("table", "verdict"), [("mup", "pass"), pytest.param("sp", "fail", marks=pytest.mark.slow)]
    )
    def test_sgd(self, models, table, verdict):
        report = mt.coord_check(models.resnet, widths=(32, 64, 128), parameterization=table, optimizer="sgd", seeds=8)
        assert report.verdict == verdict


@pytest.mark.slow
class TestWholeGrid:
    """Decoder and ResNet at full size: every table passes, every corrupted cell fails and is named."""

    SIZES = {"gpt": (64, 128, 256, 512), "resnet": (32, 64, 128, 256)}  # noqa: RUF012

    def check(self, models, model, table, optimizer):
        return mt.coord_check(
            getattr(models, model), widths=self.SIZES[model], parameterization=table, optimizer=optimizer
        )

    @pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
    @pytest.mark.parametrize("model", ["gpt", "resnet"])
    @pytest.mark.parametrize(
        ("table", "verdict"), [*((table, "pass") for table in TABLES), ("sp", "fail"), ("ntk", "fail")]
    )
    def test_verdicts(self, models, model, table, optimizer, verdict):
        assert self.check(models, model, table, optimizer).verdict == verdict

    @pytest.mark.parametrize("power", [0.5, -0.5])
    @pytest.mark.parametrize(
        ("role", "cell"), [*itertools.product((Role.INPUT, Role.HIDDEN, Role.OUTPUT), CELLS), (Role.VECTOR, "lr")]
    )
    @pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
    @pytest.mark.parametrize("model", ["gpt", "resnet"])
    @pytest.mark.parametrize("table", TABLES)
    def test_corrupted_cells(self, models, corrupted, table, model, optimizer, role, cell, power):
        wrong = corrupted(mt.PARAMETERIZATIONS[table], role, cell, power, optimizer)
        report = self.check(models, model, wrong, optimizer)
        assert (report.verdict, blamed_role(report)) == ("fail", role)


def slope(name: str, kind: str, value: float, order: int, *, law: float = 0.0, half: float = 0.1) -> Slope:
    numbers = value, *(value - half, value + half) * 2
    return Slope(name, "parameter", kind, *numbers, (0.0, 1.0), order, Role.HIDDEN, law, name)


def test_where_the_control_passes_too_nothing_is_decided(models, monkeypatch):
    """A check that cannot see a wrong rule says so instead of passing the right one."""
    blind = dataclasses.replace(mt.PARAMETERIZATIONS["mup"], name="sp")
    monkeypatch.setattr("mutransfer.check.setups.PARAMETERIZATIONS", {"sp": blind})
    report = mlp_check(models, "mup")
    assert (report.verdict, report.control.verdict, report.exit_code) == ("undecided", "pass", 3)
    assert "passes too" in report.reason


class TwoLayersMultiplied(torch.nn.Module):
    """muP and SP are one here, so nothing can be told, however the control's noise falls."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, width), torch.nn.Linear(4, width)

    def forward(self, x):
        return (self.a(x) * self.b(x)).sum(-1)


def test_where_the_control_does_not_fail_nothing_is_decided():
    report = mt.coord_check(TwoLayersMultiplied, widths=WIDTHS, lr=2**-10)
    assert report.verdict == "undecided"
    assert report.control.verdict != "fail"
    assert "cannot tell right from wrong here" in report.reason


class TestVerdictAndCulprit:
    def test_pass_needs_every_interval_inside_and_fail_one_wholly_outside(self):
        good, open_, bad = (slope("w", "change", value, 0) for value in (0.1, 0.2, 0.4))
        assert Findings([good, good]).verdict == "pass"
        assert Findings([good, open_]).verdict == "undecided"
        assert Findings([good, open_, bad]).verdict == "fail"
        assert Findings([slope("w", "init", 0.0, 0, law=-0.5)]).verdict == "fail"  # shrinking too little counts as well
        assert Findings([]).verdict == "undecided"

    def test_a_wrong_init_is_the_cause_of_larger_changes(self):
        found = culprits(Findings([slope("late", "change", 1.5, 9), slope("early", "init", 0.5, 1)]))
        assert [culprit.name for culprit in found] == ["early", "late"]

    def test_of_inits_equally_far_the_first_in_execution_order_is_the_cause(self):
        found = culprits(Findings([slope("third", "init", 0.55, 3), slope("second", "init", 0.5, 2)]))
        assert found[0].name == "second"
        found = culprits(Findings([slope("third", "init", 1.0, 3), slope("second", "init", 0.5, 2)]))
        assert found[0].name == "third"

    def test_behind_the_cause_the_farthest_comes_first_and_is_told_as_a_fault_of_its_own(self):
        """Biases as torch draws them shrink by 1/2; an lr that is wrong by a whole power is no consequence of that."""
        biases = [slope(f"bias{k}", "init", -0.5, k) for k in range(6)]
        found = culprits(Findings([*biases, slope("weight", "change", 1.0, 9)]))
        assert [culprit.name for culprit in found[:3]] == ["bias0", "weight", "bias1"]
        assert [standing(culprit, found[0]) for culprit in found[:3]] == [
            "culprit", "wrong too, and farther off", "perhaps its consequence",
        ]  # fmt: skip

    @pytest.mark.parametrize(("cause", "told"), [("init", "wrong too"), ("change", "perhaps its consequence")])
    def test_what_the_groups_say_follows_from_a_wrong_lr_alone(self, cause, told):
        decay = Setting("weight", "weight", "hidden", "decay", 8.0, 1.0)
        first, last = culprits(Findings([slope("embed", cause, 0.5, 1)], settings=[decay]))
        assert (last.kind, standing(last, first)) == ("decay", told)

    def test_with_clean_inits_the_farthest_change_is_the_cause(self):
        found = culprits(Findings([slope("near", "change", -0.4, 1), slope("far", "change", -0.6, 5)]))
        assert [culprit.name for culprit in found] == ["far", "near"]
        assert "learning rate" in found[0].look_at
        assert "shrinks" in found[0].look_at

    @pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
    @pytest.mark.parametrize("table", [*TABLES, "mean-field", "ntk-stable"])
    def test_cells_imply_the_typed_law_for_information(self, table, optimizer):
        table = mt.PARAMETERIZATIONS[table]
        by_cells = implied(table, OPTIMIZERS[optimizer])
        assert by_cells == {r: {"init": table.law.init[r], "change": table.law.change[r]} for r in Role}

    def test_cells_of_sp_do_not(self):
        assert implied(mt.PARAMETERIZATIONS["sp"], OPTIMIZERS["adamw"])["hidden"]["change"] == 1.0


class GrowingHeads(nn.Module):
    """Attention whose head_dim grows; `scale` is the softmax scale, hidden from every attribute search if None."""

    def __init__(self, width: int, exponent: float | None) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(32, width), nn.Linear(width, 32, bias=False)
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.exponent = exponent

    def forward(self, ids):
        x = self.embed(ids)
        q, k = self.q(x), self.k(x)
        scale = None if self.exponent is None else q.shape[-1] ** self.exponent
        return self.out(x + nn.functional.scaled_dot_product_attention(q, k, x, scale=scale))


class TestSoftmaxScale:
    @staticmethod
    def optimizer(model: nn.Module, width: int) -> torch.optim.Optimizer:
        """Hand-written muP (Table 3) for Adam."""
        hidden = [model.q.weight, model.k.weight, model.out.weight]
        with torch.no_grad():
            model.out.weight.mul_((32 / width) ** 0.5)
        groups = [{"params": [model.embed.weight]}, {"params": hidden, "lr": 2**-8 * 32 / width}]
        return torch.optim.Adam(groups, lr=2**-8)

    @pytest.mark.parametrize(("exponent", "verdict"), [(-1.0, "pass"), (-0.5, "fail")])
    def test_hand_written_code_is_checked_as_it_is(self, exponent, verdict):
        report = mt.coord_check(
            lambda width: GrowingHeads(width, exponent), widths=(64, 128, 256), make_optimizer=self.optimizer
        )
        assert report.verdict == verdict
        assert report.softmax[0].measured == pytest.approx(4.0**exponent)
        if verdict == "fail":  # own contributions do not show it
            assert (report.culprits[0].kind, len(report.culprits)) == ("softmax", 1)
        else:
            assert report.control.name == "one lr for all"

    def test_a_scale_that_the_queries_carry_counts(self):
        build = lambda width: GrowingHeads(width, None)  # noqa: E731
        report = mt.coord_check(build, widths=(64, 128, 256), scale="head_dim", form="folded")
        assert report.verdict == "pass"
        assert report.softmax[0].measured == pytest.approx(report.softmax[0].expected) == 0.25

    def test_where_it_cannot_be_read_nothing_is_decided(self, models):
        report = mlp_check(models, "mup", scale="head_dim")
        assert report.verdict == "undecided"
        assert "no softmax scale" in report.reason


class TestInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"widths": (64, 128)}, "at least 3"),
            ({"seeds": 1}, "seeds at least 2"),
            ({"steps": 0}, "must be positive"),
            ({"lr": -1.0}, "not a positive number"),
            ({"lr": float("nan")}, "not a positive number"),
            ({"batches": []}, "batches= is empty"),
            ({"batches": [torch.zeros(2, 8)]}, "must be"),
            ({"loss": lambda model, batch: torch.zeros(())}, "depends on the model"),
            ({"precision": "fp12"}, "no precision"),
            ({"make_optimizer": lambda model, width: None}, "NoneType"),
        ],
    )
    def test_bad_input_is_one_clear_sentence(self, models, options, message):
        with pytest.raises(ConfigError, match=message):
            mlp_check(models, "mup", **options)

    def test_unknown_names(self, models):
        with pytest.raises(RuleError, match="'mup'"):
            mlp_check(models, "mupp")
        with pytest.raises(RuleError, match="adamw"):
            mlp_check(models, "mup", "adamww")

    def test_an_lr_that_diverges_says_so(self, models):
        with pytest.raises(ConfigError, match=r"not finite at step \d of width \d+.*smaller lr="):
            mlp_check(models, "mup", "sgd", lr=1e30, steps=4)

    def test_the_lr_of_hand_written_code_is_its_own(self, models):
        def own(lr):
            return lambda model, width: torch.optim.AdamW(model.parameters(), lr=lr * 64 / width)

        report = mlp_check(models, "mup", make_optimizer=own(2**-8), widths=(64, 128, 256), seeds=2)
        assert (report.lr, report.lr_from) == (2**-8, "make_optimizer's largest at width 64")
        with pytest.raises(ConfigError, match="learning rates of make_optimizer, such as 1e"):
            mlp_check(models, "mup", make_optimizer=own(1e30), steps=4)
        with pytest.raises(ConfigError, match="make_optimizer= makes optimizers with their own: give one"):
            mlp_check(models, "mup", make_optimizer=own(2**-8), lr=2**-9)

    def test_own_batches_and_loss_are_used(self, models):
        seen = []

        def loss(model, batch):
            seen.append(batch["x"].sum().item())
            return model(batch["x"]).square().mean()

        def batches(seed):
            return {"x": torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))}

        report = mlp_check(models, "mup", batches=batches, loss=loss, seeds=2)
        assert len(set(seen)) == report.seeds
        assert report.batch == "(8, 8) float32"

    def test_targets_in_the_batches_are_used(self, models):
        classes = [(models.vectors, torch.arange(8)), (models.vectors, torch.arange(8, 16))]
        numbers = [(models.vectors, torch.randn(8, 16))]
        for given in (classes, numbers):
            assert mlp_check(models, "mup", batches=given).verdict == "pass"

    def test_bf16_steps(self, models):
        assert mlp_check(models, "sp", precision="bf16").verdict == "fail"

    def test_frozen_and_unused_parameters_are_listed(self, models):
        def build(width):
            model = models.mlp(width)
            model[0].weight.requires_grad_(False)
            model.register_parameter("spare", nn.Parameter(torch.ones(3)))
            return model

        report = mt.coord_check(
            build, widths=WIDTHS, steps=1, example_inputs=models.vectors, roles={"spare": "scalar"}, seeds=4
        )
        assert {item.parameter: item.why for item in report.listed} == {
            "0.weight": "frozen",
            "spare": "the loss does not use it",
        }

    def test_the_caller_s_random_state_is_left_alone(self, models):
        state = torch.get_rng_state()
        mlp_check(models, "sp", seeds=2)
        assert torch.equal(torch.get_rng_state(), state)

    def test_progress_is_reported(self, models):
        seen = []
        report = mlp_check(models, "sp", seeds=2, progress=lambda done, planned: seen.append((done, planned)))
        assert seen[-1] == (4 * report.seeds, 4 * report.seeds)


class TestReport:
    @pytest.fixture(scope="class")
    def failed(self, models) -> CoordReport:
        return mlp_check(models, "sp", seeds=4)

    def test_exit_codes(self, failed):
        codes = {v: dataclasses.replace(failed, verdict=v).exit_code for v in ("pass", "fail", "undecided")}
        assert codes == {"pass": 0, "fail": 1, "undecided": 3}

    def test_text_leads_with_the_verdict_and_names_the_culprit(self, failed):
        text = str(failed)
        assert text.startswith("coordinate check: FAIL")
        assert f"culprit: {failed.culprits[0].name}" in text
        assert "cells imply" in text

    def test_a_check_that_sees_partial_alignment_alone_does_not_pass(self):
        """Of a product by a function of one's own no position is left out."""

        class Own(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):
                ctx.save_for_backward(x, w)
                return x @ w

            @staticmethod
            def backward(ctx, signal):
                x, w = ctx.saved_tensors
                return signal @ w.T, x.T @ signal

        class Model(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.embed, self.norm = torch.nn.Linear(64, width), torch.nn.LayerNorm(width)
                self.head = torch.nn.Parameter(torch.randn(width, 16))

            def forward(self, x):
                return Own.apply(self.norm(torch.tanh(self.embed(x))), self.head)

        def batch(seed):
            generator = torch.Generator().manual_seed(seed)
            return torch.randn(96, 64, generator=generator), torch.randint(16, (96,), generator=generator)

        report = mt.coord_check(Model, widths=[64, 128, 256], batches=batch)
        assert report.verdict == "undecided"
        assert report.doubt.startswith("head learns from all 96 positions")
        assert "96 positions a step" in str(report)

    def test_json_is_complete_and_can_be_read(self, failed, tmp_path):
        saved = json.loads(failed.save(tmp_path / "check.json").read_text())
        assert saved["verdict"] == "fail"
        assert {slope["what"] for slope in saved["slopes"]} == {"parameter", "module"}
        judged = [slope for slope in saved["slopes"] if slope["law"] is not None]
        assert len(judged) == len(failed.judged) == 12
        assert all(slope["low"] <= slope["value"] <= slope["high"] for slope in judged)

    def test_html_escapes_the_user_s_names(self, failed):
        slopes = tuple(dataclasses.replace(s, name="<script>") for s in failed.slopes)
        page = dataclasses.replace(failed, slopes=slopes)._repr_html_()
        assert "<script>" not in page
        assert "&lt;script&gt;" in page

    def test_slopes_by_name(self, failed):
        assert failed.slope("2.weight").value > 0.7
        with pytest.raises(KeyError, match="spare"):
            failed.slope("spare")


def test_a_trained_parameter_whose_contribution_was_not_seen_leaves_the_check_undecided(models, monkeypatch):
    measured = runs.measure

    everything = mlp_check(models, "mup")
    name = next(s.parameter for s in everything.slopes if s.role == "output")
    monkeypatch.setattr(
        runs,
        "measure",
        lambda *args, **kwargs: dataclasses.replace(
            kept := measured(*args, **kwargs), uses=tuple(use for use in kept.uses if use.parameter != name)
        ),
    )
    report = mlp_check(models, "mup")
    assert (everything.verdict, report.verdict) == ("pass", "undecided")
    assert name in report.reason
