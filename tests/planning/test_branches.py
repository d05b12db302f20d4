"""Residual branches are found in the traced graph, with the parameters that end them: no names, no module types."""

from __future__ import annotations

import pytest
import residual_models as zoo
import torch
from torch import nn
from torch.nn import functional

from mutransfer.planning.branches import find_branches, repeating, stream_norms
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace import trace

# Per block, in order: what ends each branch, and its kind.
ENDS = {
    zoo.PreNorm: [("attention.o", "plain"), ("mlp.down", "plain")],
    zoo.PostNorm: [("attention.o", "post-norm"), ("mlp.down", "post-norm")],
    zoo.DeepNorm: [("attention.o", "post-norm"), ("mlp.down", "post-norm")],
    zoo.Sandwich: [("after1.weight", "norm-ended"), ("after2.weight", "norm-ended")],
    zoo.Parallel: [("attention.o mlp.down", "parallel")],
    zoo.ParallelInARow: [("attention.o", "plain"), ("mlp.down", "plain")],
    zoo.LayerScale: [("gamma1", "layer-scale"), ("gamma2", "layer-scale")],
    zoo.TanhGated: [("attention.o", "plain"), ("mlp.down", "plain")],
    zoo.GatedEnd: [("up", "experts")],
    zoo.TokenShift: [("mlp.down", "plain")],
    zoo.ScaledSkip: [("attention.o", "plain"), ("mlp.down", "plain")],
    zoo.CentredPostNorm: [("attention.o", "post-norm"), ("mlp.down", "post-norm")],
    zoo.Packed: [("attention.o", "plain"), ("mlp.down", "plain")],
    zoo.Pooled: [("gamma", "layer-scale"), ("mlp.down", "plain")],
    zoo.Experts: [("experts.0.down experts.1.down experts.2.down experts.3.down shared.down", "experts")],
}


def branches_of(model, inputs):
    return find_branches(trace(model, inputs))


def layers(branch, prefix):
    """What ends a branch, layers by their own name."""
    names = {name.removesuffix(".weight").removesuffix(".bias").removeprefix(prefix) for name in branch.terminals}
    return " ".join(sorted(names))


@pytest.mark.parametrize("block", ENDS, ids=lambda block: block.__name__)
def test_every_branch_is_found_with_what_ends_it(block):
    found = branches_of(zoo.Stack(block, 3), zoo.ids())
    in_blocks = [branch for branch in found if branch.module.startswith("blocks.") and branch.inside is None]
    assert found[0].kind == "plain"
    assert found[0].ends_in_nonlinearity, "the convolution of positions, which is in no block"
    expected = [(f"blocks.{i}", ends.replace(".weight", ""), kind) for i in range(3) for ends, kind in ENDS[block]]
    assert [(b.module, layers(b, f"{b.module}."), b.kind) for b in in_blocks] == expected


@pytest.mark.parametrize("block", [zoo.PreNorm, zoo.Parallel, zoo.Experts])
def test_a_layers_weight_and_its_bias_end_a_branch_together(block):
    for branch in branches_of(zoo.Stack(block, 2), zoo.ids())[1:]:
        weights = {name.removesuffix(".weight") for name in branch.terminals if name.endswith(".weight")}
        assert weights == {name.removesuffix(".bias") for name in branch.terminals if name.endswith(".bias")}


def test_only_a_gain_that_enters_as_one_plus_itself_is_an_offset():
    assert all(b.offset == set(b.terminals) for b in branches_of(zoo.Stack(zoo.Sandwich, 2), zoo.ids())[1:])
    for block in (zoo.PreNorm, zoo.PostNorm, zoo.LayerScale):
        assert not any(b.offset for b in branches_of(zoo.Stack(block, 2), zoo.ids()))


@pytest.mark.parametrize(
    ("block", "blocked"), [(zoo.TanhEnd, "tanh"), (zoo.FusedGatedEnd, "mul"), (zoo.NormedEnd, "div")]
)
def test_an_end_that_no_factor_passes_through_has_no_terminal_and_is_named(block, blocked):
    for branch in branches_of(zoo.Stack(block, 2), zoo.ids())[1:]:
        assert branch.ends_in_nonlinearity
        assert branch.blocked_by == blocked


def test_norms_on_the_stream_are_those_of_post_norm_blocks_the_last_one_included():
    def norms(block):
        found = trace(zoo.Stack(block, 3), zoo.ids())
        return stream_norms(found, find_branches(found))

    expected = [f"blocks.{i}.{n}" for i in range(3) for n in ("norm1.weight", "norm1.bias", "norm2.weight")]
    for block in (zoo.PostNorm, zoo.DeepNorm, zoo.CentredPostNorm):
        assert norms(block) == tuple(expected)
    assert norms(zoo.NormAfterTheBlock) == tuple(f"blocks.{i}.out.{n}" for i in range(3) for n in ("weight", "bias"))
    for block in (zoo.PreNorm, zoo.Sandwich, zoo.Parallel, zoo.LayerScale):
        assert norms(block) == (), "a final norm behind pre-norm blocks is outside"


def test_a_stack_in_place_with_batch_norms_and_projections():
    found = branches_of(zoo.ResNet(2), zoo.images())
    assert [b.module for b in found] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer2.2"]
    assert [b.kind for b in found] == ["norm-ended", "norm-ended", "projection", "norm-ended", "norm-ended"]
    assert all(set(b.terminals) == {f"{b.module}.bn2.weight", f"{b.module}.bn2.bias"} for b in found)


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_encoder(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    found = branches_of(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 3, 8),))
    assert [layers(b, f"{b.module}.") for b in found] == ["self_attn.out_proj", "linear2"] * 2


def repeated(build, depths=(2, 4)):
    models = [build(depth) for depth in depths]
    inputs = zoo.images() if isinstance(models[0], zoo.ResNet | Onto) else zoo.ids()
    templates = Templates.between(*(dict(model.named_parameters()) for model in models))
    found = [branches_of(model, inputs) for model in models]
    return found[1], repeating(*found, templates)


def test_what_repeats_is_what_grows_in_number():
    every, found = repeated(lambda depth: zoo.Stack(zoo.PreNorm, depth))
    assert found == every[1:]
    assert repeated(lambda depth: zoo.Stack(zoo.PreNorm, 3))[1] == ()


class Uneven(zoo.Stack):
    """The last block is another one than those before it."""

    def __init__(self, depth):
        super().__init__(zoo.PreNorm, depth)
        self.blocks[-1] = zoo.GatedEnd()


def test_a_block_of_another_kind_repeats_with_its_stack():
    every, found = repeated(Uneven)
    assert found == every[1:]


def test_the_projections_of_a_resnet_do_not_repeat():
    every, found = repeated(zoo.ResNet)
    assert [b for b in every if b not in found] == [b for b in every if b.kind == "projection"]
    every, found = repeated(zoo.ResNet, depths=(0, 2))
    assert [b for b in every if b not in found] == [b for b in every if b.kind == "projection"]


class Halved(nn.Module):
    """Onto half of the image, and as many channels of zeros beside its own (ResNets for CIFAR)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 3))
        return shortcut + self.conv2(functional.relu(self.conv1(x)))


class Onto(nn.Module):
    def __init__(self, block, depth):
        super().__init__()
        self.first, self.blocks = block(), nn.Sequential(*(zoo.Bottleneck(6, 6) for _ in range(depth)))

    def forward(self, x):
        return self.blocks(self.first(x))


def test_a_sum_with_a_part_of_the_stream_that_is_filled_up_is_one_with_a_projection():
    every, found = repeated(lambda depth: Onto(Halved, depth))
    assert [(b.module, b.kind) for b in every if b not in found] == [("first", "projection")]


def test_a_sum_inside_every_block_does_not_repeat_and_blocks_inside_one_branch_do():
    every, found = repeated(lambda depth: zoo.Stack(zoo.TokenShift, depth))
    assert any(b.inside is not None for b in every), "else this says nothing"
    assert [b.inside for b in found] == [None] * 4
    every, found = repeated(lambda depth: zoo.Stack(zoo.PreNorm, depth, around=True))
    assert [b.inside for b in every] == [None, *[9] * 8, None]
    assert found == every[1:-1]


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_a_recurrence_is_no_residual_stack(cell):
    assert branches_of(zoo.Recurrent(cell, 2), zoo.ids()) == ()


class Skipping(zoo.Stack):
    """Leaves its last block out, as layer dropping does."""

    def forward(self, ids):
        self.depth = len(self.blocks) - 1
        return super().forward(ids)


def test_a_block_that_did_not_run_ends_no_branch_of_another():
    found = branches_of(Skipping(zoo.PreNorm, 3), zoo.ids())[1:]
    assert len(found) == 4
    assert all(name.startswith(f"{branch.module}.") for branch in found for name in branch.terminals)


def test_shared_blocks_are_one_branch_each_time_they_run():
    found = branches_of(zoo.Stack(zoo.PostNorm, 3, shared=True), zoo.ids())[1:]
    assert [b.terminals for b in found] == [found[0].terminals, found[1].terminals] * 3


def test_only_an_index_that_differs_between_two_depths_is_a_blocks():
    def names(depth, experts=2):
        inner = [f"layers.{i}.mlp.{e}.{j}.weight" for i in range(depth) for e in range(experts) for j in (0, 2)]
        return ["stem.0.weight", *inner, *(f"tail.block{i}.bias" for i in range(depth))]

    templates = Templates.between(names(2), names(5))
    assert templates.of("layers.3.mlp.1.2.weight") == "layers.*.mlp.1.2.weight"
    assert templates.of("tail.block4.bias") == "tail.block*.bias"
    assert templates.of("stem.0.weight") == "stem.0.weight"
    assert templates.stack("layers.3.mlp.1.2.weight") == "layers.*"
    assert templates.block("layers.3.mlp.1.2.weight") == "layers.3"
    assert templates.stack("stem.0.weight") is None
    assert templates.block("stem.0.weight") is None
    assert Templates.between(names(2), names(2)).of("layers.1.mlp.1.2.weight") == "layers.1.mlp.1.2.weight"
    assert Templates.between(names(2), names(2, experts=3)).of("layers.1.mlp.1.0.weight") == "layers.1.mlp.*.0.weight"


def test_stages_of_different_length_are_stacks_of_their_own():
    def names(*blocks):
        return [f"stages.{s}.blocks.{b}.weight" for s, count in enumerate(blocks) for b in range(count)]

    templates = Templates.between(names(3, 4, 3), names(3, 23, 4))
    assert templates.of("stages.1.blocks.7.weight") == "stages.1.blocks.*.weight"
    assert templates.stack("stages.2.blocks.0.weight") == "stages.2.blocks.*"
    assert templates.of("stages.0.blocks.2.weight") == "stages.0.blocks.2.weight", "this stage is as deep as before"


def test_a_stream_that_begins_with_learned_queries_has_its_first_branch_and_positions_are_none():
    found = branches_of(zoo.Queries(3), (torch.randn(2, 4, zoo.WIDTH),))
    assert [(b.module, layers(b, f"{b.module}.")) for b in found] == [(f"blocks.{i}", "o") for i in range(3)]


def test_a_gain_on_the_skip_connection_is_on_the_stream():
    found = trace(zoo.Stack(zoo.ScaledSkip, 2), zoo.ids())
    on_it = set(stream_norms(found, find_branches(found)[1:]))
    assert on_it == {"blocks.0.skip2", "blocks.1.skip1", "blocks.1.skip2"}, "the first one has no branch before it"
