"""Under a depth table a tower that the inputs do not reach is run alone: its branches are found, proven, multiplied."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.rules.depth import Place

WIDTH, TEXT, IMAGES = 16, (3, 1), (2, 1)
"""Blocks of the model and of the base."""
IDS = (torch.arange(10).view(2, 5),)
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """One head of attention, and a feed-forward layer."""

    def __init__(self, width: int, index: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.index = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), index

    def scale(self) -> float:
        return 0.25

    def end(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj((q @ k.mT * self.scale()).softmax(-1) @ v)
        return x + self.end(self.down(torch.relu(self.up(self.norm2(x)))))


class TanhEnd(Block):
    """No parameter can hold the multiplier of the second branch."""

    def end(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class ScaledByIndex(Block):
    def scale(self) -> float:
        return 0.25 / (1 + self.index)


class Images(nn.Module):
    def __init__(self, width: int, depth: int, block: type[Block] = Block) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList(block(width, index) for index in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class OnDemand(Images):
    """Takes what no guess gives it."""

    def forward(self, images: Tensor, answer: int = 0) -> Tensor:
        if answer != 42:
            raise ValueError("no")
        return super().forward(images)


class TwoTowers(nn.Module):
    """Images go in front of the text, where there are any."""

    def __init__(
        self, width: int, text: int, images: int, tower: type[Images] = Images, block: type[Block] = Block
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.images, self.connect = (
            nn.Embedding(11, width),
            tower(width, images, block),
            nn.Linear(width, width),
        )
        self.blocks = nn.ModuleList(Block(width, index) for index in range(text))
        self.norm, self.readout = nn.LayerNorm(width), nn.Linear(width, 11)

    def forward(self, ids: Tensor, pixels: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        if pixels is not None:
            x = torch.cat([self.connect(self.images(pixels)), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


def towers(**options):
    """The model, and a base that is less deep."""
    model, base = (TwoTowers(WIDTH, text, images, **options) for text, images in zip(TEXT, IMAGES, strict=True))
    return model, {"base": base, "example_inputs": IDS}


def test_the_plan_is_that_of_inputs_which_reach_the_tower():
    """Each stack has its own ratio: 3 blocks over 1, and 2 over 1."""
    model, options = towers()
    alone = mt.plan(model, "completep", **options)
    reached = mt.plan(model, "completep", **options | {"example_inputs": (*IDS, PIXELS)})

    def of(plan):
        return {n.name: (n.role, n.place, n.m_depth, n.lr, n.eps, n.weight_decay, n.init_factor, n.clip) for n in plan}

    assert of(alone) == of(reached)
    terminals = {line.name for line in alone if line.place is Place.TERMINAL and line.name.startswith("images.")}
    layers = {name.rpartition(".")[0] for name in terminals}
    assert layers == {f"images.blocks.{i}.{end}" for i in range(2) for end in ("proj", "down")}
    assert (alone["images.blocks.1.down.weight"].m_depth, alone["blocks.2.down.weight"].m_depth) == (2.0, 3.0)
    assert alone["images.patches.weight"].place is Place.OUTSIDE


@pytest.mark.parametrize("form", ["folded", "explicit"])
@pytest.mark.parametrize(
    ("table", "power"), [("completep", -1), pytest.param("depth-mup", -0.5, marks=pytest.mark.slow)]
)
def test_every_branch_of_the_tower_is_multiplied_where_it_is_added(form, table, power):
    model, options = towers()
    by_hand = copy.deepcopy(model.images)
    for block in by_hand.blocks:
        for end in (block.proj, block.down):
            end.register_forward_hook(lambda _module, _args, out: out * 2**power)
    mt.parameterize(model, table, form=form, **options)
    torch.testing.assert_close(model.images(PIXELS), by_hand(PIXELS))


def test_control_a_tower_whose_branch_no_parameter_can_hold_is_refused_by_name():
    model, options = towers(block=TanhEnd)
    plain = copy.deepcopy(model)
    match = r"residual branch that 'images\.blocks\.0' adds repeats with depth, and is not proven .* ends in 'tanh'"
    with pytest.raises(mt.MutransferError, match=match):
        mt.parameterize(model, "completep", **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    settled = mt.plan(model, "completep", roles={"images.blocks.*.down.*": "terminal"}, **options)
    assert settled["images.blocks.1.down.weight"].place is Place.TERMINAL


def test_control_a_tower_that_runs_on_no_guess_is_refused_by_name():
    model, options = towers(tower=OnDemand)
    with pytest.raises(mt.MutransferError, match=r"'images\.blocks\.0\.\S+' stands in a block .* do not reach it"):
        mt.plan(model, "completep", **options)


def test_control_a_softmax_scale_of_the_tower_that_depends_on_the_blocks_index_is_refused():
    model, options = towers(block=ScaledByIndex)
    with pytest.raises(mt.MutransferError, match=r"softmax scale of 'images\.blocks\.\*' depends on the index"):
        mt.plan(model, "completep", **options)


def test_a_tower_as_deep_as_the_bases_is_left_alone():
    model, base = TwoTowers(WIDTH, 3, 2), TwoTowers(WIDTH, 1, 2)
    plan = mt.plan(model, "completep", base=base, example_inputs=IDS)
    assert {line.place for line in plan if line.name.startswith("images.")} == {Place.OUTSIDE}


def test_residual_mult_reaches_the_tower_where_a_deeper_base_shows_what_repeats():
    def make(width: int, depth: int) -> nn.Module:
        return TwoTowers(width, depth, depth)

    plain, own = make(32, 2), make(32, 2)
    options = {"base": WIDTH, "base_depth": 2, "factory": make, "example_inputs": IDS}
    mt.parameterize(plain, "completep", **options)
    mt.parameterize(own, "completep", hyperparameters={"residual_mult": 0.5}, **options)
    for name, parameter in own.images.named_parameters():
        factor = 0.5 if ".proj." in name or ".down." in name else 1.0
        torch.testing.assert_close(parameter, dict(plain.images.named_parameters())[name] * factor)
