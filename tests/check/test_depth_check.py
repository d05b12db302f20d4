"""The coordinate check in depth: each table against its own law, on decoders of three kinds."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.check.embedding import branches_over_stream
from mutransfer.check.flow import Sum
from mutransfer.check.measure import measure
from mutransfer.check.report import CoordReport
from mutransfer.check.settings import Setting
from mutransfer.check.slopes import Slope
from mutransfer.check.verdict import Findings, culprits
from mutransfer.errors import ConfigError, MutransferError
from mutransfer.figures.coordinates import coordinate_figure
from mutransfer.planning.templates import Templates
from mutransfer.rules.depth import COMPLETEP, DEPTH_MUP, Place
from mutransfer.rules.tables import PARAMETERIZATIONS

DEPTHS = (2, 4, 8)
ALL_DEPTHS = (2, 4, 8, 16)
DEPTH_TABLES = ("completep", "depth-mup")
MODELS = ("gpt", "post-norm", "sandwich")
PLACES = {
    "gpt": (Place.INNER, Place.TERMINAL),
    "post-norm": tuple(Place)[1:],
    "sandwich": (Place.INNER, Place.TERMINAL),
}


def depth_check(models, model, table, optimizer="adamw", **options) -> CoordReport:
    options = {"depths": DEPTHS, "seeds": 4} | options
    return mt.coord_check(models.deep[model], parameterization=table, optimizer=optimizer, **options)


def blamed_place(report: CoordReport) -> str:
    """Of the first culprit, by its template or by one of its blocks."""
    templates = Templates(frozenset({("blocks", "")}))
    name = templates.of(report.culprits[0].name)
    return next(slope.place for slope in report.judged if slope.parameter == name)


def is_equivalent(model: str, place: Place, cell: str, optimizer: str) -> bool:
    """SGD has no eps, and a gain that starts as a constant is not drawn."""
    gains = place is Place.STREAM_NORM or (model == "sandwich" and place is Place.TERMINAL)
    return (cell == "eps" and optimizer == "sgd") or (cell == "init" and gains)


def form_of(model: str, cell: str) -> str:
    """A gain that enters as 1 + w and holds its branch's multiplier is not decayed."""
    return "explicit" if model == "sandwich" and cell == "weight_decay" else "auto"


class TestLawOfEachTable:
    @pytest.mark.parametrize(
        ("model", "table", "optimizer"),
        [
            ("gpt", "completep", "adamw"),
            pytest.param("post-norm", "depth-mup", "adamw", marks=pytest.mark.slow),
            pytest.param("post-norm", "completep", "sgd", marks=pytest.mark.slow),
        ],
    )
    def test_passes_its_own_and_a_table_of_widths_only_fails_beside_it(self, models, model, table, optimizer):
        report = depth_check(models, model, table, optimizer)
        assert (report.verdict, report.control.verdict, report.culprits) == ("pass", "fail", ())

    @pytest.mark.slow
    def test_fails_the_other_s(self, models):
        tables = {name: PARAMETERIZATIONS[name] for name in DEPTH_TABLES}
        for one, other in itertools.permutations(tables.values()):
            wrong = dataclasses.replace(one, depth=dataclasses.replace(one.depth, law=other.depth.law))
            report = depth_check(models, "gpt", wrong)
            assert (report.verdict, blamed_place(report)) == ("fail", Place.TERMINAL)

    def test_a_table_of_widths_only_fails_where_branches_are_added(self, models):
        report = depth_check(models, "gpt", "mup")
        assert (report.verdict, blamed_place(report)) == ("fail", Place.TERMINAL)
        assert report.slope("blocks.*.attention.o.weight", "init").law == -1

    @pytest.mark.parametrize(
        ("place", "cell"),
        [
            (Place.INNER, "lr"),
            (Place.TERMINAL, "multiplier"),
            (Place.TERMINAL, "eps"),
            pytest.param(Place.INNER, "weight_decay", marks=pytest.mark.slow),
            pytest.param(Place.STREAM_NORM, "lr", marks=pytest.mark.slow),
        ],
    )
    def test_a_wrong_cell_is_named_by_its_place(self, models, corrupted_depth, place, cell):
        wrong = corrupted_depth(PARAMETERIZATIONS["completep"], place, cell, 0.5)
        report = depth_check(models, "post-norm", wrong)
        assert (report.verdict, blamed_place(report)) == ("fail", place)
        kinds = {"lr": "change", "weight_decay": "decay", "multiplier": "init", "eps": "eps"}
        assert report.culprits[0].kind == kinds[cell]

    def test_tensors_are_measured_by_template(self, models):
        report = depth_check(models, "gpt", "depth-mup", seeds=2)
        terminal, inner = (report.slope(f"blocks.*.attention.{name}.weight") for name in "oq")
        assert (terminal.place, terminal.law, inner.place, inner.law) == (Place.TERMINAL, -1, Place.INNER, -0.5)
        assert terminal.value == pytest.approx(-1, abs=0.25)
        assert not any("blocks.0" in slope.name for slope in report.slopes)
        assert {"stream", "logits", "module"} <= {slope.what for slope in report.slopes if slope.law is None}


@pytest.mark.slow
class TestWholeGrid:
    """All three decoders at depths 2 to 16."""

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    @pytest.mark.parametrize("table", DEPTH_TABLES)
    @pytest.mark.parametrize("model", MODELS)
    def test_right_tables_pass(self, models, model, table, optimizer):
        report = depth_check(models, model, table, optimizer, depths=ALL_DEPTHS, seeds=8)
        assert (report.verdict, report.control.verdict) == ("pass", "fail")

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    @pytest.mark.parametrize("table", [*DEPTH_TABLES, "mup"])
    @pytest.mark.parametrize("model", MODELS)
    def test_all_fail_another_s_law(self, models, model, table, optimizer):
        law = (COMPLETEP if table == "depth-mup" else DEPTH_MUP).law
        wrong = PARAMETERIZATIONS[table]
        if wrong.depth is not None:
            wrong = dataclasses.replace(wrong, depth=dataclasses.replace(wrong.depth, law=law))
        assert depth_check(models, model, wrong, optimizer, depths=ALL_DEPTHS, seeds=8).verdict == "fail"

    @pytest.mark.parametrize("power", [0.5, -0.5])
    @pytest.mark.parametrize(
        ("model", "place", "cell", "optimizer"),
        [
            (model, place, cell, optimizer)
            for model in MODELS
            for place in PLACES[model]
            for cell in ("init", "multiplier", "lr", "eps", "weight_decay")
            for optimizer in ("adamw", "sgd")
            if not is_equivalent(model, place, cell, optimizer)
        ],
    )
    @pytest.mark.parametrize("table", DEPTH_TABLES)
    def test_every_wrong_cell_is_named(self, models, corrupted_depth, table, model, optimizer, place, cell, power):
        wrong = corrupted_depth(PARAMETERIZATIONS[table], place, cell, power, optimizer)
        report = depth_check(models, model, wrong, optimizer, depths=ALL_DEPTHS, seeds=8, form=form_of(model, cell))
        assert (report.verdict, blamed_place(report)) == ("fail", place)


class Branch(nn.Module):
    """Hand-written CompleteP: the multiplier stands in the forward pass."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(width), scale
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.relu(self.up(self.norm(x))))


def by_hand(models, odd: int | None = None):
    """Width and depth -> a model whose branches are divided by the depth; but one, perhaps."""

    def build(width: int, depth: int) -> nn.Module:
        model = models.stack(lambda width: Branch(width, 2 / depth), width, depth)
        if odd is not None and odd < depth:
            model.blocks[odd].scale = 1.0
        return model

    return build


def one_lr(model: nn.Module, depth: int) -> torch.optim.Optimizer:
    """Right for the explicit form of CompleteP, as far as Adam's eps does not matter."""
    return torch.optim.AdamW(model.parameters(), lr=2**-10, weight_decay=0.1)


class TestHandWrittenCode:
    @staticmethod
    def check(build, make_optimizer=one_lr) -> CoordReport:
        return mt.coord_check(
            build, depths=ALL_DEPTHS, parameterization="completep", make_optimizer=make_optimizer, seeds=4
        )

    def test_is_checked_as_it_is(self, models):
        report = self.check(by_hand(models))
        assert (report.verdict, report.control.name, report.control.verdict) == (
            "pass",
            "every lr times the depth",
            "fail",
        )

    def test_one_block_that_lacks_its_multiplier_is_named(self, models):
        report = self.check(by_hand(models, odd=3))
        assert (report.verdict, report.culprits[0].name) == ("fail", "blocks.3.down.weight")
        assert "this block alone" in report.reason
        assert report.slope("blocks.*.down.weight", "init").status == "inside"  # the mean over the stack hides it

    @pytest.mark.slow
    def test_a_decay_that_follows_the_depth_is_seen(self, models):
        def decayed(model: nn.Module, depth: int) -> torch.optim.Optimizer:
            return torch.optim.AdamW(model.parameters(), lr=2**-10, weight_decay=1e-3 * depth)

        report = self.check(by_hand(models), decayed)
        assert (report.verdict, report.culprits[0].kind, report.culprits[0].name) == ("fail", "decay", "embed.weight")


class TestEmbedding:
    def test_is_raised_where_branches_are_larger(self, models):
        build = lambda width, depth: models.deep["sandwich"](width, depth, embedding_std=0.1)  # noqa: E731
        report = mt.coord_check(build, depths=(1, 2, 4), parameterization="completep", seeds=4)
        assert report.verdict == "pass"
        assert "embedding_mult is 14" in report.notes[0]
        assert report.notes[0] in str(report)

    @pytest.mark.slow
    def test_is_left_alone_where_they_are_smaller(self, models):
        notes = depth_check(models, "gpt", "completep", seeds=2).notes
        assert not any("embedding" in note for note in notes)

    def test_sizes_are_those_before_the_sum_written_in_place_or_not(self):
        class Added(nn.Module):
            def __init__(self, in_place: bool) -> None:
                super().__init__()
                self.inner, self.in_place = nn.Linear(4, 4), in_place

            def forward(self, x: Tensor) -> Tensor:
                x, branch = x * 1.0, self.inner(x)
                return x.add_(branch) if self.in_place else x + branch

        x = torch.randn(3, 4)
        sums = []
        for in_place in (False, True):
            torch.manual_seed(0)
            sums.append(measure(Added(in_place), lambda model: model(x)).sums)
        assert sums[0] == pytest.approx(sums[1])

    def test_only_branches_that_repeat_are_counted(self):
        shown = type("Shown", (), {})()
        shown.uses = [type("Use", (), {"parameter": name})() for name in ("stem", "b.0.up", "b.0.down", "b.1.down")]
        shown.sums = [Sum(1.0, 9.0, 0), Sum(2.0, 9.0, 1), Sum(2.0, 3.0, 2), Sum(2.0, 4.0, 3)]
        places = {"b.*.down": Place.TERMINAL, "b.*.up": Place.INNER}
        assert branches_over_stream(shown, places, Templates(frozenset({("b", "")}))) == 2.5


def slope(name: str, kind: str, value: float, order: int, **more: object) -> Slope:
    numbers = value, *(value - 0.1, value + 0.1) * 2
    return Slope(name, "parameter", kind, *numbers, (0.0, 1.0), order, None, 0.0, name, "", Place.INNER, **more)


class TestCulprit:
    def test_what_only_travels_from_block_to_block_is_no_cause(self):
        early, cause = slope("q", "init", 0.45, 1, in_first=0.0), slope("norm", "init", 0.5, 2, in_first=0.5)
        assert [c.name for c in culprits(Findings([early, cause], axis="depth"))] == ["norm", "q"]
        everywhere = slope("q", "init", 0.45, 1, in_first=0.45)
        assert culprits(Findings([everywhere, cause], axis="depth"))[0].name == "q"

    def test_a_wrong_lr_comes_before_what_it_does_to_eps(self):
        eps = Setting("blocks.0.q", "blocks.*.q", "inner", "eps", 2.0, 1.0)
        found = culprits(Findings([slope("q", "change", 0.5, 1)], settings=[eps], axis="depth"))
        assert [c.kind for c in found] == ["change", "eps"]
        assert "depth^+0.50" in found[0].look_at

    def test_a_setting_that_is_wrong_in_all_blocks_is_named_once_and_in_one_block_by_its_name(self):
        wrong = [Setting(f"blocks.{i}.q", "blocks.*.q", "inner", "decay", 2.0, 1.0) for i in range(3)]
        assert [c.name for c in culprits(Findings([], settings=wrong))] == ["blocks.*.q"]
        right = dataclasses.replace(wrong[0], measured=1.0)
        assert [c.name for c in culprits(Findings([], settings=[right, *wrong[1:]]))] == ["blocks.1.q"]


class TestReport:
    @pytest.fixture(scope="class")
    def failed(self, models) -> CoordReport:
        return depth_check(models, "gpt", "mup", "sgd", seeds=2)

    def test_says_depth_where_it_says_width(self, failed):
        text = str(failed)
        assert "width 64, depths 2, 4, 8" in text
        assert "depth^" in text
        assert "width^" not in text
        assert "terminal" in text

    def test_json_and_figure_have_the_depths_on_their_axis(self, failed, tmp_path):
        saved = json.loads(failed.save(tmp_path / "check.json").read_text())
        assert (saved["axis"], saved["depths"], saved["widths"]) == ("depth", list(DEPTHS), [64])
        figure = coordinate_figure(saved)
        figure.canvas.draw()
        assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["2", "4", "8"]
        assert figure.axes[2].get_xlabel() == "depth"
        words = {text.get_text() for text in figure.axes[1].get_legend().get_texts()}
        assert {"outside", "inner", "terminal"} <= words


class TestInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"depths": (2, 4)}, "at least 3"),
            ({"depths": (2, 4, 8), "widths": (64, 128)}, "both vary"),
            ({"depths": (0, 2, 4)}, "must be positive"),
        ],
    )
    def test_bad_sizes_are_one_clear_sentence(self, models, options, message):
        with pytest.raises(ConfigError, match=message):
            mt.coord_check(models.deep["gpt"], parameterization="completep", **options)

    def test_a_model_without_residual_branches_is_refused(self):
        def plain(width: int, depth: int) -> nn.Module:
            blocks = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
            return nn.Sequential(nn.Linear(8, width), blocks, nn.Linear(width, 4))

        with pytest.raises(MutransferError, match="residual"):
            mt.coord_check(plain, depths=DEPTHS, parameterization="completep", example_inputs=torch.randn(8, 8))

    def test_a_model_is_made_at_every_depth_from_its_own_config(self, models):
        report = mt.coord_check(models.gpt(64), depths=(1, 2, 4), parameterization="completep", seeds=2)
        assert (report.widths, report.depths, report.base, report.base_depth) == ((64,), (1, 2, 4), 64, 1)

    def test_a_depth_table_is_checked_in_width_without_its_depth_rules(self, models):
        build, sizes = lambda width: models.gpt(width, depth=1), {"widths": (64, 128, 256), "seeds": 2}
        width_only = mt.coord_check(build, parameterization="mup", **sizes)
        deep = mt.coord_check(build, parameterization="completep", hyperparameters={"residual_mult": 0.5}, **sizes)
        assert [slope.value for slope in deep.judged] == [slope.value for slope in width_only.judged]
