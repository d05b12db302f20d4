"""Which numbers of layers the zoo multiplies, and how deep its base is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, Zamba2Config
from zoo.depth import depth_columns, of_residual_stacks, with_every_block
from zoo.from_timm import Arguments
from zoo.subjects import Deeper, Small, Wider, times_as_deep

from mutransfer.planning.fields import with_values

WIDTH = 8


class Block(nn.Module):
    """Adds to the stream; one of the first two halves it first."""

    def __init__(self, halves: bool) -> None:
        super().__init__()
        self.halves, self.layer, self.norm = halves, nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.layer(self.norm(x))
        if not self.halves:
            return x + branch
        return functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2) + branch[:, ::2]


class Beside(nn.Module):
    """Residual blocks, and layers in a row behind them (a predictor, a projector)."""

    def __init__(self, num_hidden_layers: int, num_decoder_layers: int, halving: int = 0, summed: int = 99) -> None:
        super().__init__()
        self.summed, self.readout = summed, nn.Linear(WIDTH, 5)
        self.layers = nn.ModuleList(Block(i < halving) for i in range(num_hidden_layers))
        self.row = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(num_decoder_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        for i, layer in enumerate(self.row):
            x = x + layer(x) if i >= self.summed else functional.gelu(layer(x))
        return self.readout(x)


def small(**sizes: Any) -> Small:
    config = Arguments(num_hidden_layers=2, num_decoder_layers=2, **sizes)
    wider = Wider(lambda config, k: config, lambda config, k: Beside(**vars(config)), {})
    deep = Deeper(config, WIDTH, wider)
    inputs = (torch.randn(2, 32, WIDTH, generator=torch.Generator().manual_seed(0)),)
    return Small(WIDTH, lambda width: deep(width, 1), lambda seed: inputs, {}, deep)


def layers(found: Small) -> tuple[int, int]:
    """Of a model twice as deep."""
    assert found.deep is not None
    model = found.deep(WIDTH, 2)
    assert isinstance(model, Beside)
    return len(model.layers), len(model.row)


def test_layers_in_a_row_stay_as_many_and_are_named_in_the_row() -> None:
    assert layers(of_residual_stacks(small())) == (4, 2)
    row: dict[str, Any] = {}
    depth_columns(small(), row, lambda row, name, measure: row.update(measure()) if name == "branches" else None)
    assert (row["branches"], row["terminals"]) == (1, 1)
    assert row["in_a_row"] == ["num_decoder_layers"]


@pytest.mark.parametrize("first", [0, 2])
def test_control_layers_that_add_to_a_stream_are_multiplied_though_the_first_ones_may_not(first: int) -> None:
    assert layers(of_residual_stacks(small(summed=first))) == (4, 4)


def test_the_base_is_so_deep_that_every_kind_of_branch_is_in_it() -> None:
    """The first two blocks have the parameters of the others, and add onto half of the stream."""
    assert with_every_block(small(halving=2)).depth == 2
    assert with_every_block(small()).depth == 1


def test_what_a_config_derives_from_its_layers_follows_them_and_the_rest_stays_small() -> None:
    types = ["linear_attention", "linear_attention", "hybrid"]
    config = Zamba2Config(num_hidden_layers=3, layers_block_type=types)
    small = with_values(config, {("hidden_size",): 64, ("attention_hidden_size",): 32})
    deep = times_as_deep(small, 2)
    assert (deep.layers_block_type, deep.hybrid_layer_ids) == (types * 2, [2, 5])
    assert deep.attention_hidden_size == 32  # not what its constructor makes of 64
    assert times_as_deep(config, 1).hybrid_layer_ids == [2]


def test_a_small_config_that_its_own_checks_refuse_is_made_deeper_all_the_same() -> None:
    config = with_values(LlamaConfig(num_hidden_layers=2), {("num_attention_heads",): 3})
    with pytest.raises(Exception, match="multiple of the number of attention"):
        LlamaConfig(num_attention_heads=3)
    assert times_as_deep(config, 2).num_hidden_layers == 4
