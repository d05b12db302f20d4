"""Every parameter has one place in the stack, and with it one depth rule."""

from __future__ import annotations

import pytest
import residual_models as zoo
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from mutransfer.errors import RoleError
from mutransfer.planning.branches import find_branches, repeating
from mutransfer.planning.layers import with_declared_uses
from mutransfer.planning.places import assign_places, inner_parameters, unexplained
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace import trace
from mutransfer.rules.depth import Place


def places_by_name(build, inputs=None):
    base, model = build(2), build(4)
    inputs = zoo.ids() if inputs is None else inputs
    templates = Templates.between(dict(base.named_parameters()), dict(model.named_parameters()))
    seen, traced = trace(base, inputs), with_declared_uses(trace(model, inputs), model)
    found = assign_places(traced, repeating(find_branches(seen), find_branches(traced), templates), templates)
    return found, templates


def places(build, inputs=None):
    found, templates = places_by_name(build, inputs)
    by_template: dict[str, set[Place]] = {}
    for name, place in found.items():
        by_template.setdefault(templates.of(name), set()).add(place)
    assert all(len(own) == 1 for own in by_template.values()), "the blocks of a stack do not differ"
    return {template: own.pop() for template, own in by_template.items()}


def layer(name, place):
    return {f"{name}.weight": place, f"{name}.bias": place}


OUTSIDE = {
    "embed.weight": Place.OUTSIDE,
    **layer("positions", Place.OUTSIDE),
    **layer("norm", Place.OUTSIDE),
    **layer("readout", Place.OUTSIDE),
}
ATTENTION = {k: v for n in "qkv" for k, v in layer(f"blocks.*.attention.{n}", Place.INNER).items()}
UP = layer("blocks.*.mlp.up", Place.INNER)


def test_a_pre_norm_stack():
    assert places(lambda depth: zoo.Stack(zoo.PreNorm, depth)) == {
        **OUTSIDE,
        **ATTENTION,
        **UP,
        **layer("blocks.*.norm1", Place.INNER),
        "blocks.*.norm2.weight": Place.INNER,
        **layer("blocks.*.attention.o", Place.TERMINAL),
        **layer("blocks.*.mlp.down", Place.TERMINAL),
    }


def test_a_post_norm_stack_has_its_norms_on_the_stream():
    found = places(lambda depth: zoo.Stack(zoo.PostNorm, depth))
    norms = {name for name, place in found.items() if place is Place.STREAM_NORM}
    assert norms == {"blocks.*.norm1.weight", "blocks.*.norm1.bias", "blocks.*.norm2.weight"}
    assert found["blocks.*.attention.o.bias"] is Place.TERMINAL


def test_gains_on_a_scaled_skip_connection_are_on_the_stream_the_first_blocks_too():
    found = places(lambda depth: zoo.Stack(zoo.ScaledSkip, depth))
    assert {n for n, p in found.items() if p is Place.STREAM_NORM} == {"blocks.*.skip1", "blocks.*.skip2"}


@pytest.mark.parametrize(
    ("block", "ends"),
    [(zoo.Sandwich, ("after1.weight", "after2.weight")), (zoo.LayerScale, ("gamma1", "gamma2"))],
)
def test_o_and_down_are_inner_where_a_norm_or_a_layer_scale_follows(block, ends):
    found = places(lambda depth: zoo.Stack(block, depth))
    assert {n for n, p in found.items() if p is Place.TERMINAL} == {f"blocks.*.{end}" for end in ends}
    assert found["blocks.*.attention.o.weight"] is found["blocks.*.mlp.down.bias"] is Place.INNER


def test_what_is_written_into_a_part_of_a_buffer_is_inside_the_branch_that_reads_all_of_it():
    found = trace(zoo.Stack(zoo.WritesIntoViews, 2), zoo.ids())
    templates = Templates.between(["blocks.0.x"], ["blocks.0.x", "blocks.1.x"])
    inner = inner_parameters(found, find_branches(found)[1:], templates)
    assert {f"blocks.{i}.{n}" for i in range(2) for n in ("step.weight", "norm1.bias", "mlp.up.weight")} <= inner


class Fourier(nn.Module):
    """Adds a mixture that has no parameter, with a norm behind it (FNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mlp = nn.LayerNorm(8), zoo.Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + x.cumsum(1))
        return x + self.mlp(x)


@pytest.mark.parametrize(("build", "names"), [
    (lambda depth: zoo.Stack(Fourier, depth), {f"blocks.{i}.norm1.{n}" for i in range(4) for n in ("weight", "bias")}),
    (lambda depth: zoo.Stack(zoo.PreNorm, depth), set()),
    (zoo.ResNet, set()),
])  # fmt: skip
def test_what_stands_in_a_repeated_block_and_in_no_branch_is_said(build, names):
    inputs = zoo.images() if build is zoo.ResNet else zoo.ids()
    found, templates = places_by_name(build, inputs)
    traced = trace(build(4), inputs)
    assert set(unexplained(found, traced, find_branches(traced), templates)) == names


def test_every_expert_is_a_terminal_and_the_router_is_inner():
    found = places(lambda depth: zoo.Stack(zoo.Experts, depth))
    downs = {p for n, p in found.items() if ".down." in n}
    others = {p for n, p in found.items() if n.startswith("blocks") and ".down." not in n}
    assert (downs, others) == ({Place.TERMINAL}, {Place.INNER})


def test_what_a_projection_adds_to_is_outside():
    found, _ = places_by_name(zoo.ResNet, zoo.images())
    outside = {name.rpartition(".")[0] for name, place in found.items() if place is Place.OUTSIDE}
    first = {f"layer2.0.{n}" for n in ("conv1", "bn1", "conv2", "bn2", "shortcut.0", "shortcut.1")}
    assert outside == {"stem", "readout", *first}
    assert {n for n, p in found.items() if p is Place.TERMINAL} == {
        f"{block}.bn2.{n}" for block in (*(f"layer1.{i}" for i in range(4)), *(f"layer2.{i}" for i in range(1, 5)))
        for n in ("weight", "bias")
    }  # fmt: skip


def test_a_decoders_keys_and_values_of_the_encoder_are_inner_and_the_encoders_own_norm_is_outside():
    def build(depth):
        sizes = {"vocab_size": 31, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 0}
        config = T5Config(**sizes, num_layers=depth, num_decoder_layers=depth)
        return T5ForConditionalGeneration(config)

    tokens = torch.arange(3, 9)[None]
    found = places(build, {"input_ids": tokens, "decoder_input_ids": tokens})
    cross = "decoder.block.*.layer.1.EncDecAttention"
    assert {found[f"{cross}.{n}.weight"] for n in "qkv"} == {Place.INNER}
    assert found[f"{cross}.o.weight"] is Place.TERMINAL
    assert found["encoder.final_layer_norm.weight"] is found["decoder.final_layer_norm.weight"] is Place.OUTSIDE
    assert found["shared.weight"] is Place.OUTSIDE


class BothWays(zoo.PreNorm):
    """One matrix projects the queries and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.attention.o.weight = self.attention.q.weight


class Plain(nn.Module):
    """No residual sum at all."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_tensor_that_is_terminal_and_inner_at_once_is_refused():
    with pytest.raises(RoleError, match=r"'blocks.0.attention.q.weight' ends the residual branch that 'blocks.0'"):
        places(lambda depth: zoo.Stack(BothWays, depth))


class WithUnread(zoo.PreNorm):
    """A layer that the forward pass does not run, or only a norm of that kind."""

    def __init__(self, unread: nn.Module) -> None:
        super().__init__()
        self.unread = unread


class UnreadLayer(WithUnread):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8))


class UnreadNorm(WithUnread):
    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(8))


def test_a_layer_of_a_block_that_the_inputs_do_not_reach_is_refused_and_a_gain_nobody_reads_is_not():
    with pytest.raises(RoleError, match=r"'blocks.0.unread.weight' stands in a block .* do not reach it"):
        places(lambda depth: zoo.Stack(UnreadLayer, depth))
    assert places(lambda depth: zoo.Stack(UnreadNorm, depth))["blocks.*.unread.weight"] is Place.INNER


class FirstNormed(nn.Module):
    """Begins with a norm on the stream, so that the first block's follows no branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mlp = nn.LayerNorm(8), zoo.Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        return x + self.mlp(x)


def test_the_first_blocks_norm_on_the_stream_is_one_too_and_the_final_norm_is_outside():
    found = places(lambda depth: zoo.Stack(FirstNormed, depth))
    assert found["blocks.*.norm1.weight"] is Place.STREAM_NORM
    assert found["norm.weight"] is Place.OUTSIDE


class FixedPositions(nn.Module):
    """Projects a constant, which no input reaches, as relative positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mlp, self.relative = nn.LayerNorm(8), zoo.Mlp(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm1(x) * self.relative(torch.ones(5, 8, dtype=x.dtype)))


def test_what_a_block_makes_of_a_constant_is_inner():
    assert places(lambda depth: zoo.Stack(FixedPositions, depth))["blocks.*.relative.weight"] is Place.INNER


def test_without_a_residual_sum_everything_is_outside():
    assert set(places(Plain, (torch.ones(2, 8),)).values()) == {Place.OUTSIDE}
