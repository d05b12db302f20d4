"""A branch that no parameter can be multiplied in is multiplied where a module returns it, if that is proven."""

from __future__ import annotations

import pytest
import residual_models as zoo
import torch

import mutransfer as mt
from mutransfer.planning.branch_outputs import find_outputs, output_modules
from mutransfer.planning.branches import find_branches
from mutransfer.planning.trace import trace
from mutransfer.planning.verify import verify_outputs
from mutransfer.rules.depth import Place


def stack(depth, block=zoo.ReturnsTheBranch):
    torch.manual_seed(0)
    return zoo.Stack(block, depth).double().eval()


def seen(block=zoo.ReturnsTheBranch):
    traced = trace(stack(2, block), zoo.ids())
    return traced, [b for b in find_branches(traced) if b.module.startswith("blocks.") and b.inside is None]


def plan(model, **options):
    return mt.plan(model, "completep", base=stack(2), example_inputs=zoo.ids(), **options)


def test_the_multiplier_is_on_what_the_module_returns_and_all_its_parameters_are_inner():
    found = plan(stack(6))
    assert [(s.module, s.side) for s in found.swaps] == [(f"blocks.{i}.mlp", "output") for i in range(6)]
    assert {s.multiplier for s in found.swaps} == {2 / 6}
    places = {line.place for line in found if ".mlp." in line.name}
    assert places == {Place.INNER}
    assert found["blocks.0.attention.o.weight"].place is Place.TERMINAL
    assert any("no parameter can hold the multiplier of 6 residual branches" in note for note in found.notes)


def test_the_forward_pass_is_that_of_a_factor_where_the_branch_is_added():
    model, by_hand = stack(6), stack(6)
    mt.parameterize(model, "completep", base=stack(2), example_inputs=zoo.ids(), form="explicit")
    for layer in by_hand.blocks:
        for end in (layer.attention, layer.mlp):
            end.register_forward_hook(lambda _module, _args, out: out * (2 / 6))
    torch.testing.assert_close(model(*zoo.ids()), by_hand(*zoo.ids()), rtol=1e-12, atol=1e-12)


def test_a_saved_plan_keeps_them(tmp_path):
    found = plan(stack(6))
    assert mt.Plan.load(found.save(tmp_path / "plan.json")) == found


@pytest.mark.parametrize("options", [{"form": "folded"}, {"init": "keep"}])
def test_where_the_forward_pass_is_to_stay_it_is_refused_with_the_module(options):
    with pytest.raises(mt.MutransferError, match=r"only be put on what 'blocks.0.mlp' returns.* Use form='auto'"):
        plan(stack(6), **options)


def test_modules_are_tried_from_the_outermost_inside_the_one_that_adds():
    traced, branches = seen()
    assert [output_modules(traced, b) for b in branches[:2]] == [
        ("blocks.0.attention", "blocks.0.attention.o"), ("blocks.0.mlp",),
    ]  # fmt: skip
    outputs = find_outputs(stack(2), zoo.ids(), traced, branches[1::2])
    assert set(outputs.values()) == {"blocks.0.mlp", "blocks.1.mlp"}


@pytest.mark.parametrize("wrong", ["blocks.0.mlp.down", "blocks.0.attention", "blocks.0.norm1", "blocks.0"])
def test_control_another_module_is_not_verified(wrong):
    branch = seen()[1][1]
    (verdict,) = verify_outputs(stack(2), zoo.ids(), [(branch, wrong)])
    assert not verdict.verified
    assert verdict.error > 1e-4


class ReadTwice(zoo.ReturnsTheBranch):
    """What the module returns goes elsewhere too."""

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        end = self.mlp(self.norm2(x))
        return (x + end) * (1 + end.mean().tanh())


class Pair(zoo.GatedMlp):
    def forward(self, x):
        return super().forward(x), x


class TakesTheFirst(zoo.ReturnsTheBranch):
    """The module returns the branch and something else."""

    def __init__(self):
        super().__init__()
        self.mlp = Pair()

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))[0]


@pytest.mark.parametrize("block", [ReadTwice, TakesTheFirst], ids=lambda block: block.__name__)
def test_a_result_that_is_more_than_the_branch_is_refused(block):
    traced, branches = seen(block)
    assert find_outputs(stack(2, block), zoo.ids(), traced, branches[1::2]) == {}
    with pytest.raises(mt.MutransferError, match="is not proven to be its last layer's multiple"):
        mt.plan(stack(6, block), "completep", base=stack(2, block), example_inputs=zoo.ids())
