"""Adapters of peft on a frozen model: which learning rates change with width, and that the check can tell."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import mutransfer as mt
from mutransfer.check.axes import Claim
from mutransfer.check.slopes import Slope
from mutransfer.figures.coordinates import curves_of
from mutransfer.rules.table import Role

pytestmark = pytest.mark.slow

IDS = torch.arange(1, 9)[None]
WIDTHS = [64, 128, 256]
LAYERS = ["up", "down"]
LAST = ["down"]


class Net(nn.Module):
    """torch draws a Linear with std fan-in^-1/2 / 3^1/2, so activations have one size at all widths, as pretrained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.readout = nn.Embedding(32, width), nn.Linear(width, 32, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.readout(x + self.down(torch.relu(self.up(x))))


def lora(**options: object) -> peft.PeftConfig:
    return peft.LoraConfig(r=8, target_modules=LAST, **options)


def adalora() -> peft.PeftConfig:
    return peft.AdaLoraConfig(init_r=8, target_r=4, total_step=9, tinit=1, tfinal=1, target_modules=LAST)


MATRICES = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "gralora": lambda: peft.GraloraConfig(r=8, gralora_k=2, target_modules=LAST),
    "rslora": lambda: lora(use_rslora=True),
}
VECTORS = {
    "ia3": lambda: peft.IA3Config(target_modules=LAYERS, feedforward_modules=LAYERS[1:]),
    "vera": lambda: peft.VeraConfig(r=8, target_modules=LAYERS[:1]),
}
SLOW = ("pissa", "rslora", "vera")


def adapted(config):
    return lambda width: peft.get_peft_model(Net(width), config())


def drawn_with_width(config):
    """A of size width^-1/2, where peft draws it with one std at all widths."""

    def build(width: int) -> nn.Module:
        model = adapted(config)(width)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A" in name:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
        return model

    return build


def check(build, **options):
    return mt.coord_check(
        build, **{"widths": WIDTHS, "seeds": 4, "steps": 3, "init": "keep", "example_inputs": IDS} | options
    )


@cache
def report_of(method):
    """With the plan's groups."""
    return check(adapted(MATRICES[method]))


def one_lr(model, width):
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=2**-10)


def some_slow(methods):
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in methods]


class TestMatrices:
    @pytest.mark.parametrize("method", some_slow(MATRICES))
    def test_the_plans_groups_pass_where_its_control_of_one_lr_fails(self, method):
        report = report_of(method)
        assert (report.verdict, report.control.name, report.control.verdict) == ("pass", "sp", "fail")

    @pytest.mark.parametrize("method", some_slow(MATRICES))
    def test_with_one_lr_every_a_is_off_by_the_width_and_no_b(self, method):
        """LoRA+: A is contracted with n activations, B with r numbers."""
        report = check(adapted(MATRICES[method]), make_optimizer=one_lr, seeds=2)
        assert report.verdict == "fail"
        assert all("_A." in culprit.name for culprit in report.culprits)
        for name in (slope.name for slope in report.judged if slope.role is Role.OUTPUT):
            assert report.slope(name).value == pytest.approx(1, abs=0.25)

    def test_an_a_that_peft_draws_alike_at_all_widths_shows_in_what_multiplies_it(self):
        """AdaLoRA's B E A x: A x grows as n^1/2 where A's std is 0.02 at every width."""
        report = check(adapted(adalora), seeds=2)
        assert report.verdict == "fail"
        assert "lora_A" not in report.culprits[0].name
        for factor, exponent in {"lora_A": 0.0, "lora_E": 0.5, "lora_B": 0.5}.items():
            assert report.slope(f"base_model.model.down.{factor}.default").value == pytest.approx(exponent, abs=0.25)

    def test_with_a_drawn_by_its_fan_in_adalora_passes(self):
        """And its E, r numbers that multiply the rows of A, is the scalar that the plan says, though E A grows."""
        report = check(drawn_with_width(adalora))
        assert (report.verdict, report.control.verdict) == ("pass", "fail")
        assert report.slope("base_model.model.down.lora_E.default").role is Role.SCALAR

    def test_a_sum_over_the_width_in_front_of_a_matrix_is_found(self):
        """MiSS sums n / r activations into each of the numbers that its matrix meets; behind a ReLU they have a mean,
        and the sum grows as n, in front of it as n^1/2."""
        report = check(adapted(lambda: peft.MissConfig(r=8, target_modules=LAYERS)), seeds=2)
        assert report.verdict == "fail"
        assert report.slope("base_model.model.down.miss_block.default").value == pytest.approx(1, abs=0.2)
        assert report.slope("base_model.model.up.miss_block.default").value == pytest.approx(0.5, abs=0.2)


class TestVectorsAlone:
    @pytest.mark.parametrize("method", some_slow(VECTORS))
    def test_the_plan_gives_one_lr_and_passes_beside_a_control_whose_lr_grows(self, method):
        build = adapted(VECTORS[method])
        plan = mt.plan(build(256), "mup", base=64, factory=build, init="keep", example_inputs=IDS)
        assert {line.lr for line in plan if not line.frozen} == {1.0}
        report = check(build)
        assert (report.verdict, report.control.name) == ("pass", "every lr times the width")
        assert report.control.verdict == "fail"
        assert any("the same lr at every width" in note for note in report.notes)

    def test_hand_written_code_with_one_lr_passes(self):
        report = check(adapted(VECTORS["ia3"]), make_optimizer=one_lr)
        assert (report.verdict, report.control.verdict) == ("pass", "fail")

    def test_hand_written_code_whose_lr_falls_with_width_fails(self):
        def falling(model, width):
            return AdamW([p for p in model.parameters() if p.requires_grad], lr=2**-10 * 64 / width)

        report = check(adapted(VECTORS["ia3"]), make_optimizer=falling, seeds=2)
        assert report.verdict == "fail"
        assert report.culprits[0].measured == pytest.approx(-1, abs=0.25)


class TestKeptValues:
    def test_sizes_at_init_are_shown_and_not_judged(self):
        """peft's A is of size fan-in^-1/2, so that A x keeps its size, where a fresh readout's falls as n^-1/2."""
        report = report_of("lora")
        inits = [slope for slope in report.slopes if slope.kind == "init" and slope.what == "parameter"]
        assert inits
        assert all(slope.law is None and slope.status == "inside" for slope in inits)
        assert all(slope.value == pytest.approx(0, abs=0.25) for slope in inits)
        assert "init" not in {slope.kind for slope in report.judged}

    def test_the_figure_draws_no_law_where_there_is_none(self, tmp_path):
        report = report_of("lora")
        assert curves_of(report.to_json(), "init", judged=True) == []
        assert len(curves_of(report.to_json(), "change", judged=True)) == len(report.judged)
        assert report.plot(tmp_path / "check.svg").stat().st_size > 0

    def test_a_frozen_model_whose_activations_grow_is_named(self):
        """Weights of one std at all widths, as transformers draws them."""

        def growing(width):
            net = Net(width)
            nn.init.normal_(net.up.weight, std=0.02)
            return peft.get_peft_model(net, lora())

        report = check(growing, seeds=2)
        assert report.verdict == "fail"
        assert report.slope("base_model.model.down.lora_A.default.weight").value == pytest.approx(0.5, abs=0.25)
        assert "the output of base_model.model.up goes as width^+0.5" in str(report)

    def test_frozen_tensors_are_listed_in_one_line(self):
        said = str(report_of("lora"))
        assert said.count(": frozen") == 1
        assert "and 1 more: frozen" in said

    def test_the_plans_notes_are_said_once_everywhere(self):
        report, build = report_of("lora"), adapted(MATRICES["lora"])
        plan = mt.plan(build(256), "mup", base=64, factory=build, init="keep", example_inputs=IDS)
        assert plan.notes
        for note in plan.notes:
            assert report.notes.count(note) == report.to_json()["notes"].count(note) == 1
            assert str(report).count(note) == 1
        assert report._repr_html_().count("<li>") == len(report.notes)


class TestSumsOfWeights:
    """DoRA divides by the norm of a row of W_0 + B A, which no activation meets."""

    def test_a_change_of_a_norm_may_vanish_with_width(self):
        report = report_of("dora")
        norms = [slope for slope in report.judged if slope.at_most is not None]
        assert {slope.at_most for slope in norms} == {0.0}
        by_factor = {"lora_A": -1.0, "lora_B": -0.5}  # W_0 . (B dA) and W_0 . (dB A), beside |W_0|
        for slope in norms:
            factor = next(f for f in by_factor if f in slope.name)
            assert slope.value == pytest.approx(by_factor[factor], abs=0.3)

    @pytest.mark.parametrize(("high", "status"), [(0.2, "inside"), (0.4, "undecided")])
    def test_it_may_not_grow(self, high, status):
        def slope(low, high):
            claim = Claim(Role.VECTOR, (0.0, 0.0), 0.0).as_sum()
            value = (low + high) / 2
            law = claim.exponent("change", value)
            return Slope("w", "parameter", "change", value, low, high, low, high, (), 0, law=law, at_most=claim.change)

        assert slope(-3.0, high).status == status
        assert slope(0.3, 0.6).status == "outside"
        assert slope(0.3, 0.6).off == pytest.approx(0.45)

    def test_a_weight_norm_that_holds_the_weight_itself_is_judged_on_both_sides(self):
        class Normed(nn.Module):
            def __init__(self, width: int) -> None:
                super().__init__()
                self.embed, self.readout = nn.Embedding(32, width), nn.Linear(width, 32, bias=False)
                self.weight = nn.Parameter(torch.randn(width, width) / math.sqrt(width))

            def forward(self, ids: Tensor) -> Tensor:
                weight = self.weight / self.weight.norm(dim=1, keepdim=True)
                return self.readout(torch.relu(self.embed(ids) @ weight.T))

        report = check(Normed, make_optimizer=one_lr, seeds=2)
        assert report.slope("weight").at_most is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft sees GPT-2's transposed layers by itself
@pytest.mark.parametrize("model", ["llama", "gpt2"])
class TestModels:
    """The grid of experiments/adapters.py at three widths."""

    @pytest.mark.parametrize("lrs", ["plan", "one"])
    @pytest.mark.parametrize("method", ["lora", "dora", "pissa", "gralora", "rslora", "ia3", "prompt tuning"])
    def test_the_verdict_is_the_one_that_theory_asks_for(self, adapters, model, method, lrs):
        report = adapters.check(model, method, lrs, WIDTHS)
        assert report.verdict == getattr(adapters.METHODS[method], lrs)


@pytest.fixture(scope="module")
def adapters():
    path = Path(__file__).parents[2] / "experiments" / "adapters.py"
    spec = importlib.util.spec_from_file_location("adapters_experiment", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
