"""Base and model of two depths are paired by what a tensor is, never by its index, and each stack has its own ratio."""

from __future__ import annotations

import pytest
import residual_models as zoo
from torch import nn

from mutransfer.errors import ShapeError
from mutransfer.planning.branches import find_branches
from mutransfer.planning.stacks import compare_depths, count_branches, use_ratios
from mutransfer.planning.trace import trace


def decoder(depth, *, dense=(), prefix="model.layers"):
    def mlp(i):
        return ["mlp.up"] if i in dense else ["mlp.router", "mlp.experts.0.up", "mlp.experts.1.up"]

    return ["embed", *(f"{prefix}.{i}.{n}" for i in range(depth) for n in ("norm", *mlp(i))), "norm"]


def staged(*blocks):
    inner = [f"stages.{s}.{b}.conv" for s, count in enumerate(blocks) for b in range(count)]
    return ["stem", *inner, "head"]


def test_a_stack_is_counted_in_its_own_blocks_and_outside_nothing_changes():
    stacks = compare_depths(decoder(2), decoder(8))
    assert stacks.m_depth("model.layers.5.mlp.experts.1.up") == 4.0
    assert stacks.m_depth("embed") == stacks.m_depth("norm") == 1.0
    assert stacks.deeper == {"model.layers.*": 4.0}


def test_resnet_50_to_101_changes_one_stage():
    stacks = compare_depths(staged(3, 4, 6, 3), staged(3, 4, 23, 3))
    assert stacks.deeper == {"stages.2.*": 23 / 6}
    assert stacks.m_depth("stages.2.22.conv") == 23 / 6
    assert stacks.m_depth("stages.1.3.conv") == 1.0


def test_encoder_and_decoder_have_a_ratio_each():
    base = [*decoder(2, prefix="encoder"), *decoder(3, prefix="decoder")]
    model = [*decoder(4, prefix="encoder"), *decoder(9, prefix="decoder")]
    assert compare_depths(base, model).deeper == {"encoder.*": 2.0, "decoder.*": 3.0}


def test_at_the_bases_depth_every_ratio_is_one_and_every_tensor_its_own_partner():
    stacks = compare_depths(decoder(4), decoder(4))
    assert stacks.deeper == {}
    assert stacks.partners == {name: name for name in decoder(4)}


def test_a_shallower_model_has_a_ratio_below_one():
    assert compare_depths(decoder(8), decoder(2)).m_depth("model.layers.0.norm") == 0.25


def test_tensors_are_paired_by_kind_of_block():
    """One dense block first at the base, three in the model: index 1 is another kind there."""
    partners = compare_depths(decoder(3, dense=[0]), decoder(8, dense=[0, 1, 2])).partners
    assert partners["model.layers.1.mlp.up"] == "model.layers.0.mlp.up"
    assert partners["model.layers.7.mlp.router"] == "model.layers.2.mlp.router"
    assert partners["model.layers.0.norm"] == "model.layers.0.norm"
    assert set(partners) == set(decoder(8, dense=[0, 1, 2]))
    assert set(partners.values()) <= set(decoder(3, dense=[0]))


def test_a_kind_of_block_that_the_base_lacks_is_refused_with_the_depth_that_has_it():
    with pytest.raises(ShapeError, match=r"no block like 'model.layers.3' \(with .*Use a base of at least 4 blocks"):
        compare_depths(decoder(2, dense=[0, 1]), decoder(6, dense=[0, 1, 2]))
    compare_depths(decoder(4, dense=[0, 1, 2]), decoder(6, dense=[0, 1, 2]))


def test_a_block_that_only_lacks_a_parameter_is_of_the_others_kind():
    """Relative positions are the first block's alone (T5)."""
    partners = compare_depths(
        [*decoder(2), "model.layers.0.positions"], [*decoder(4), "model.layers.0.positions"]
    ).partners
    assert partners["model.layers.0.positions"] == "model.layers.0.positions"
    assert partners["model.layers.3.norm"] == "model.layers.1.norm"
    short = [name for name in decoder(4) if name != "model.layers.2.norm"]
    assert set(compare_depths(decoder(2), short).partners) == set(short)


def test_a_parameter_outside_the_blocks_that_the_base_lacks_is_refused():
    with pytest.raises(ShapeError, match=r"different parameters: only in the model .'head'.\. Build"):
        compare_depths(decoder(2), [*decoder(4), "head"])


@pytest.mark.parametrize(("shared", "expected"), [(True, {3.0}), (False, set())])
def test_shared_blocks_are_used_more_often_and_no_others_are(shared, expected):
    base, model = (zoo.Stack(zoo.PostNorm, depth, shared=shared) for depth in (1 + (not shared), 3))
    stacks = compare_depths(dict(base.named_parameters()), dict(model.named_parameters()))
    ratios = use_ratios(trace(base, zoo.ids()), trace(model, zoo.ids()), stacks)
    assert set(ratios.values()) == expected
    assert all(name.startswith("blocks.") for name in ratios)


def test_stem_and_readout_in_one_sequence_with_the_blocks_are_not_counted():
    def build(depth):
        return nn.Sequential(nn.Embedding(11, 8), *(zoo.PreNorm() for _ in range(depth)), nn.LayerNorm(8))

    base, model = build(2), build(6)
    stacks = compare_depths(dict(base.named_parameters()), dict(model.named_parameters()))
    counted = count_branches(stacks, *(find_branches(trace(m, zoo.ids())) for m in (base, model)))
    assert (stacks.deeper, counted.deeper) == ({"*": 8 / 4}, {"*": 3.0})
