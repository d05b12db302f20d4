"""What config fields mean, by their names."""

from __future__ import annotations

import pytest
from transformers import DPTConfig, GPT2Config, LlamaConfig, SwinConfig

from mutransfer.planning.fields import (
    Kind,
    depth_fields,
    fields_of,
    kind_of,
    scaled_value,
    width_fields,
    with_values,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hidden_size", Kind.WIDTH),
        ("moe_intermediate_size", Kind.WIDTH),
        ("encoder_ffn_dim", Kind.WIDTH),
        ("kv_lora_rank", Kind.WIDTH),
        ("num_key_value_heads", Kind.HEADS),
        ("encoder_attention_heads", Kind.HEADS),
        ("qk_rope_head_dim", Kind.HEAD_DIM),
        ("num_hidden_layers", Kind.DEPTH),
        ("decoder_layers", Kind.DEPTH),
        ("layer_types", Kind.LAYER_LIST),
        ("out_indices", Kind.LAYER_INDEX),
        ("first_k_dense_replace", Kind.DENSE_LAYERS),
        ("vocab_size", Kind.VOCAB),
        ("image_token_id", Kind.TOKEN_ID),
        ("n_routed_experts", Kind.EXPERTS),
        ("num_channels", Kind.FIXED),
        ("patch_embed_hidden_size", Kind.FIXED),
        ("pos_emb_width", Kind.FIXED),
        ("post_conv_in_channels", Kind.WIDTH),
        ("num_key_value_heads_per_layer", Kind.HEADS),
        ("linear_conv_kernel_dim", Kind.FIXED),
        ("initializer_range", None),
        ("num_labels", None),
    ],
)
def test_a_field_is_known_by_its_name(name: str, kind: Kind | None) -> None:
    assert kind_of(name) is kind


def test_a_field_of_an_own_name_is_known_by_its_alias() -> None:
    assert kind_of("breadth") is None
    assert kind_of("breadth", ("hidden_size",)) is Kind.WIDTH
    assert ("n_embd",) in {field.path for field in width_fields(GPT2Config())}


def test_width_follows_heads_or_head_dim_never_both() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    by_heads = {field.name for field in width_fields(config)}
    by_size = {field.name for field in width_fields(config, "head_dim")}
    assert {"hidden_size", "intermediate_size"} <= by_heads & by_size
    assert "num_attention_heads" in by_heads - by_size
    assert "head_dim" in by_size - by_heads


def test_depth_is_numbers_of_layers_and_lists_of_them() -> None:
    assert {field.name for field in depth_fields(LlamaConfig())} == {"num_hidden_layers"}


def test_a_number_of_stages_is_no_depth() -> None:
    assert SwinConfig().num_layers == len(SwinConfig().depths) == 4
    assert {field.name for field in depth_fields(SwinConfig())} == {"depths"}


def test_a_list_of_another_parts_widths_makes_no_number_of_layers_a_number_of_stages() -> None:
    """DPT's neck has four widths; its backbone of one width may have four layers. Swin's depths are its stages'."""
    config = DPTConfig(hidden_size=64, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3])
    assert len(config.neck_hidden_sizes) == 4
    assert {field.name for field in depth_fields(config)} == {"num_hidden_layers"}
    stages = {"num_layers": 2, "widths": [64, 128]}
    assert depth_fields(stages) == [], "each of these layers is a stage of its own width"
    assert [field.value for field in depth_fields({**stages, "dim": 64})] == [2]


def test_fields_of_inner_configs_carry_their_path() -> None:
    from transformers import CLIPConfig

    paths = {field.path for field in fields_of(CLIPConfig())}
    assert {("text_config", "hidden_size"), ("vision_config", "hidden_size"), ("projection_dim",)} <= paths


def test_configs_in_lists_are_walked_and_changed_too() -> None:
    blocks = ({"out_chs": 16, "stride": 2}, [{"out_chs": 32, "stride": 1}])
    config = {"stem": 8, "blocks": blocks}
    widths = {field.path: field.value for field in width_fields(config)}
    assert widths == {("blocks", "0", "out_chs"): 16, ("blocks", "1", "0", "out_chs"): 32}
    assert with_values(config, {("blocks", "1", "0", "out_chs"): 64})["blocks"][1][0]["out_chs"] == 64
    assert blocks[1][0]["out_chs"] == 32


def test_a_factor_on_all_widths_follows_where_there_is_no_width() -> None:
    from transformers import MobileNetV1Config

    (factor,) = width_fields(MobileNetV1Config())
    assert (factor.kind, scaled_value(factor, 3)) == (Kind.MULTIPLIER, 3.0)
    assert {field.kind for field in width_fields({"width_factor": 1.0, "stem_chs": 64})} == {Kind.WIDTH}


def test_other_values_leave_the_config_as_it_was() -> None:
    config = LlamaConfig()
    changed = with_values(config, {("hidden_size",): 64})
    assert (changed.hidden_size, config.hidden_size) == (64, 4096)
