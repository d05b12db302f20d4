"""Lists with an entry per layer follow the number of layers, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, PretrainedConfig, SwinConfig

from mutransfer.planning import rebuild
from mutransfer.planning.depths import depth_values, twice_as_deep, with_lists
from mutransfer.planning.fields import depth_fields, with_values
from mutransfer.planning.resize import width_changes
from mutransfer.planning.shrink import Sizes, shrunk_values


def small(**other: Any) -> Gemma3nTextConfig:
    config = Gemma3nTextConfig(vocab_size=64, vocab_size_per_layer_input=64, pad_token_id=0)
    changed: Gemma3nTextConfig = with_values(config, shrunk_values(config, Sizes()))
    return with_values(changed, {(name,): value for name, value in other.items()})  # type: ignore[no-any-return]


def lengths(config: Any) -> set[int]:
    lists = (config.layer_types, config.intermediate_size, config.activation_sparsity_pattern)
    return {config.num_hidden_layers, *map(len, lists)}


def test_layers_with_a_width_each_are_no_stages() -> None:
    assert len(small().intermediate_size) == small().num_hidden_layers == 2
    assert "num_hidden_layers" in {field.name for field in depth_fields(small())}
    assert "num_layers" not in {field.name for field in depth_fields(SwinConfig())}


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_lists_of_kinds_and_of_widths_are_as_long_as_there_are_layers(depth: int) -> None:
    config = small()
    assert lengths(with_values(config, depth_values(config, depth))) == {depth}
    assert lengths(with_values(config, twice_as_deep(config))) == {4}


def test_a_list_of_indices_is_no_list_of_layers() -> None:
    config = small(exit_layer_indices=[0, 1])
    assert ("exit_layer_indices",) not in with_lists(config, {("num_hidden_layers",): 4})


def test_layers_that_layers_read_stand_as_far_behind_in_what_is_begun_anew() -> None:
    """The second layer of two reads the first one's keys, so the fourth of four reads the third's."""
    config = small(kv_source_layers=[0, 0])
    assert with_lists(config, {("num_hidden_layers",): 4})["kv_source_layers",] == [0, 0, 2, 2]
    assert with_lists(config, {("num_hidden_layers",): 1})["kv_source_layers",] == [0]
    deep = PretrainedConfig(num_hidden_layers=9, kv_source_layers=[0, 0, 2, 2, 4, 4, 6, 6, 8])
    assert shrunk_values(deep, Sizes())["kv_source_layers",] == [0, 0]


def test_a_list_that_is_named_per_layer_follows_however_short_and_one_of_stages_does_not() -> None:
    config = PretrainedConfig(num_hidden_layers=2, num_key_value_heads_per_layer=[4, 2], conv_kernel=[3, 3])
    found = with_lists(config, {("num_hidden_layers",): 4})
    assert found["num_key_value_heads_per_layer",] == [4, 2, 4, 2]
    assert ("conv_kernel",) not in found


def test_a_base_that_is_narrower_and_shallower_has_the_narrower_widths_of_its_layers() -> None:
    config = with_values(small(), twice_as_deep(small()))
    config.intermediate_size = [256, 256, 512, 512]
    model = Gemma3nForCausalLM(config)
    made = rebuild.from_config(model, width_changes(config, 32), depth_values(config, 2))
    base = made.base().config
    assert (base.hidden_size, list(base.intermediate_size)) == (32, [128, 128])
    assert made.model().config.intermediate_size == [256, 256, 512, 512]


def hiera(**changed: Any) -> PretrainedConfig:
    """Blocks in stages; some of them, counted through all stages, see everything."""
    lists = {"blocks_per_stage": [1, 2, 7, 2], "embed_dim_per_stage": [96, 192, 384, 768]}
    return PretrainedConfig(**(lists | {"global_attention_blocks": [5, 7, 9]} | changed))


def test_a_block_stays_at_its_place_in_its_stage() -> None:
    deep = shrunk_values(hiera(), Sizes(stage_depth=3))
    assert deep["blocks_per_stage",] == [1, 2, 3, 2]
    assert deep["global_attention_blocks",] == [5]  # the third of the third stage; none becomes the first of one
    assert shrunk_values(hiera(), Sizes())["global_attention_blocks",] == []


def test_an_index_of_a_stage_is_no_index_of_a_block() -> None:
    assert shrunk_values(hiera(global_attention_blocks=[1, 3]), Sizes()).get(("global_attention_blocks",)) == [0, 1]
