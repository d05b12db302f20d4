"""Which of a config's sizes are cut, and which stay with others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AlignConfig,
    ChameleonVQVAEConfig,
    DeepseekV2Config,
    DepthProConfig,
    EfficientNetConfig,
    PretrainedConfig,
    Zamba2Config,
)

from mutransfer.planning.narrow import Sizes
from mutransfer.planning.shrink import shrunk_values
from mutransfer.planning.widths import discover_widths


def test_where_heads_stay_their_size_follows_the_width() -> None:
    config = Zamba2Config()
    kept = shrunk_values(config, Sizes(fewer_heads=False))
    assert ("num_attention_heads",) not in kept
    widths = {name: kept[name,] for name in ("hidden_size", "attention_hidden_size", "attention_head_dim")}
    assert widths["attention_hidden_size"] == config.num_attention_heads * widths["attention_head_dim"]
    assert ("num_attention_heads",) in shrunk_values(config, Sizes())


def test_a_factor_on_all_widths_becomes_one_and_its_widths_stay() -> None:
    config = EfficientNetConfig()
    values = shrunk_values(config, Sizes(by_factor=True))
    assert values["width_coefficient",] == 1.0
    assert values["hidden_dim",] == config.hidden_dim / config.width_coefficient == 1280
    assert ("in_channels",) not in values
    assert ("width_coefficient",) not in shrunk_values(config, Sizes())


def test_a_list_of_factors_one_per_stage_is_left_alone() -> None:
    config = ChameleonVQVAEConfig()
    assert isinstance(config.channel_multiplier, list | tuple)
    assert ("channel_multiplier",) not in shrunk_values(config, Sizes(by_factor=True))


def test_a_width_around_a_config_with_a_factor_follows_it() -> None:
    config = AlignConfig()
    values = shrunk_values(config, Sizes(by_factor=True))
    assert values["projection_dim",] == config.projection_dim / config.vision_config.width_coefficient == 320
    assert values["text_config", "hidden_size"] == 64


def test_a_patch_that_is_another_parts_image_stays_that() -> None:
    config = DepthProConfig()
    assert config.patch_size == config.patch_model_config.image_size
    values = shrunk_values(config, Sizes())
    assert values["patch_size",] == values["patch_model_config", "image_size"] < config.patch_size
    assert ("patch_model_config", "patch_size") not in values


def test_experts_per_token_that_are_left_out_are_two() -> None:
    assert DeepseekV2Config().num_experts_per_tok is None
    assert shrunk_values(DeepseekV2Config(), Sizes())["num_experts_per_tok",] == 2
    assert ("num_experts_per_tok",) not in shrunk_values(DeepseekV2Config(num_experts_per_tok=1), Sizes())


class Factored(torch.nn.Module):
    """Its stem is 32 times a factor, which a list of widths does not know."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.stem = torch.nn.Linear(8, int(32 * config.width_coefficient))
        self.block = torch.nn.Linear(int(config.channels[0] * config.width_coefficient), config.hidden_dim)

    def forward(self) -> torch.Tensor:
        return self.block(self.stem(torch.ones(1, 8)))


def factored() -> PretrainedConfig:
    config = PretrainedConfig()
    config.width_coefficient, config.channels, config.hidden_dim = 1.0, [32], 64
    return config


def test_of_several_choices_of_widths_the_one_that_runs_is_taken() -> None:
    unproven = discover_widths(factored(), Factored)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Factored(unproven.at(factored(), 2))()
    widths = discover_widths(factored(), Factored, run=lambda config: Factored(config)())
    assert {field.name for field in widths.fields} == {"width_coefficient", "hidden_dim"}
    Factored(widths.at(factored(), 3))()


def test_where_no_choice_runs_the_first_that_builds_is_taken() -> None:
    def never(config: Any) -> None:
        raise RuntimeError("the inputs are of another width")

    assert discover_widths(factored(), Factored, run=never) == discover_widths(factored(), Factored)


def test_sizes_are_at_most_what_they_were() -> None:
    for sizes in (Sizes(), replace(Sizes(), width=10_000, patches=1000)):
        values = shrunk_values(DepthProConfig(), sizes)
        assert values.get(("patch_model_config", "image_size"), 384) <= 384


def test_the_sides_of_feature_maps_are_cut_with_their_image() -> None:
    inner = PretrainedConfig(image_size=[1024, 1024], embed_dim_per_stage=[96, 192, 384], blocks_per_stage=[1, 2, 7])
    config = PretrainedConfig(backbone_feature_sizes=[[256, 256], [128, 128], [64, 64]], backbone_config=inner)
    values = shrunk_values(config, Sizes(patches=4))
    assert values["backbone_config", "image_size"] == [64, 64]
    assert values["backbone_feature_sizes",] == [[16, 16], [8, 8], [4, 4]]
    assert ("backbone_feature_sizes",) not in shrunk_values(
        PretrainedConfig(backbone_feature_sizes=[[256, 256]]), Sizes()
    )


@pytest.mark.parametrize(("head_dim", "whole"), [(64, True), (128, False)])
def test_heads_that_make_up_the_width_still_do(head_dim: int, whole: bool) -> None:
    """Of 768 numbers, cut with another config's 2048 by 32 to 24."""
    config = PretrainedConfig(hidden_size=768, num_attention_heads=12, head_dim=head_dim)
    config.wider_config = PretrainedConfig(hidden_size=2048)
    values = shrunk_values(config, Sizes(apart=False))
    assert values["hidden_size",] == 24
    assert (values["head_dim",] * values["num_attention_heads",] == 24) is whole


@pytest.mark.parametrize("name", ["intra_bottleneck_size", "vector_quantization_hidden_dimension"])
def test_a_width_beside_the_models_own_is_cut_with_it(name: str) -> None:
    config = PretrainedConfig(hidden_size=512, **{name: 256, "kernel_sizes": 256})
    values = shrunk_values(config, Sizes())
    assert values[name,] == 32
    assert ("kernel_sizes",) not in values
