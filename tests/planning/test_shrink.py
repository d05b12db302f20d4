"""Small proxies of any config, and what makes them wider."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    SwinConfig,
    SwinForImageClassification,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from mutransfer.errors import ShapeError
from mutransfer.planning.fields import Kind, fields_of, with_values
from mutransfer.planning.shrink import ATTEMPTS, Sizes, shrink, shrunk_values
from mutransfer.planning.widths import discover_widths


def causal(config: Any) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def runs(config: Any) -> None:
    causal(config)(torch.ones(1, 8, dtype=torch.long))


@pytest.mark.parametrize("kind", [GPT2Config, LlamaConfig, MixtralConfig])
def test_a_default_config_becomes_tiny_and_runs(kind: Any) -> None:
    small = shrink(kind(), runs).config
    assert sum(p.numel() for p in causal(small).parameters()) < 500_000
    assert (small.hidden_size, small.num_hidden_layers, small.vocab_size) == (64, 2, 128)


def test_what_was_tied_stays_tied() -> None:
    small = shrink(LlamaConfig(), runs).config
    assert small.num_attention_heads * small.head_dim == small.hidden_size
    grouped = shrink(LlamaConfig(num_key_value_heads=8), runs).config
    assert 1 < grouped.num_key_value_heads < grouped.num_attention_heads
    assert shrink(LlamaConfig(num_key_value_heads=1), runs).config.num_key_value_heads == 1


def test_ids_of_special_tokens_stay_inside_the_vocabulary_and_apart() -> None:
    config = LlamaConfig(vocab_size=50_000, bos_token_id=49_998, eos_token_id=49_999, pad_token_id=0)
    small = shrink(config, runs).config
    ids = {small.bos_token_id, small.eos_token_id, small.pad_token_id}
    assert len(ids) == 3
    assert max(ids) < small.vocab_size


def test_one_layer_of_each_kind_is_kept() -> None:
    kinds = ["full_attention"] * 10 + ["sliding_attention"] * 2
    config = Qwen2Config(num_hidden_layers=12, layer_types=kinds, use_sliding_window=True, sliding_window=16)
    small = shrink(config, runs).config
    assert set(small.layer_types) == set(kinds)
    assert len(small.layer_types) == small.num_hidden_layers


def test_every_list_with_an_entry_per_layer_is_cut_with_the_layers() -> None:
    from transformers import Gemma3nTextConfig

    config = Gemma3nTextConfig()
    small = with_values(config, shrunk_values(config, Sizes()))
    lengths = {len(own) for own in (small.layer_types, small.intermediate_size, small.activation_sparsity_pattern)}
    assert lengths == {small.num_hidden_layers}


def test_where_two_widths_are_multiplied_one_of_them_is_left() -> None:
    def product(config: Any) -> torch.nn.Module:
        return torch.nn.Linear(config.hidden_size * config.intermediate_size, config.hidden_size)

    widths = discover_widths(LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=1), product)
    assert "intermediate_size" not in {field.name for field in widths.fields}


def test_a_backbone_returns_as_many_layers_as_before_by_their_names() -> None:
    from transformers import BitConfig, DepthAnythingConfig

    config = DepthAnythingConfig()
    small = with_values(config, shrunk_values(config, Sizes())).backbone_config
    assert len(small.out_features) == len(config.backbone_config.out_features) == 4
    assert small.out_features == [small.stage_names[i] for i in small.out_indices]
    assert len(small.stage_names) == small.num_hidden_layers + 1 == 5
    stages = BitConfig(out_indices=[4])
    assert with_values(stages, shrunk_values(stages, Sizes())).out_indices == [4]


def test_a_placeholder_that_is_not_set_gets_an_id_of_its_own() -> None:
    from transformers import Blip2Config

    assert Blip2Config().image_token_id is None
    small = with_values(Blip2Config(), shrunk_values(Blip2Config(), Sizes()))
    special = {small.text_config.bos_token_id, small.text_config.eos_token_id, small.text_config.pad_token_id}
    assert small.image_token_id in set(range(1, 128)) - special


def test_two_towers_are_divided_each_by_its_own() -> None:
    values = shrunk_values(CLIPConfig(), Sizes())
    assert values["text_config", "hidden_size"] == values["vision_config", "hidden_size"] == 64


def test_stages_are_kept_and_windows_made_to_fit() -> None:
    def sees(config: Any) -> None:
        with torch.no_grad():
            side = config.image_size
            SwinForImageClassification(config).eval()(torch.zeros(1, 3, side, side))

    small = shrink(SwinConfig(), sees).config
    assert len(small.depths) == 4
    assert small.embed_dim * 8 == small.hidden_size


def test_a_field_that_a_failure_names_is_left_alone() -> None:
    def demanding(config: Any) -> None:
        if config.intermediate_size != 11008:
            raise ValueError(f"intermediate_size must be 11008, not {config.intermediate_size}")

    shrunk = shrink(LlamaConfig(), demanding)
    assert shrunk.kept == ("intermediate_size",)
    assert shrunk.config.hidden_size == 64


def test_what_cannot_be_shrunk_says_so_and_names_the_first_failure() -> None:
    def never(config: Any) -> None:
        raise RuntimeError("the moon is full")

    with pytest.raises(ShapeError, match=r"small proxy of LlamaConfig.*the moon is full.*factory="):
        shrink(LlamaConfig(), never, ATTEMPTS[:2])


def test_what_failed_is_not_tried_again_under_another_name() -> None:
    seen: list[dict[str, Any]] = []

    def never(config: Any) -> None:
        seen.append(config.to_dict())
        raise RuntimeError("no")

    with pytest.raises(ShapeError):
        shrink(LlamaConfig(), never, [Sizes(), Sizes(window=2), Sizes(by_factor=True), Sizes(width=128)])
    assert len(seen) == 2
    assert seen[0] != seen[1]


def test_no_field_changes_that_counts_something_else() -> None:
    changed = {path[-1] for path in shrunk_values(LlamaConfig(), Sizes())}
    known = {field.name for field in fields_of(LlamaConfig()) if field.kind is not Kind.FIXED}
    assert changed <= known | {"use_cache"}


def test_widths_are_proven_at_twice_and_three_times() -> None:
    small = shrink(LlamaConfig(num_key_value_heads=8), runs).config
    widths = discover_widths(small, causal)
    wider = widths.at(small, 3)
    assert (wider.hidden_size, wider.num_attention_heads, wider.head_dim) == (192, 12, small.head_dim)
    assert widths.mixed == widths.never == ()


def test_a_matrix_that_never_grows_is_reported() -> None:
    class WithStatic(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.grows, self.stays = torch.nn.Linear(8, config.hidden_size), torch.nn.Linear(8, 8)
            self.partly = torch.nn.Linear(3, config.hidden_size + 4)

    widths = discover_widths(LlamaConfig(hidden_size=64), WithStatic)
    assert widths.never == ("stays.weight",)
    assert widths.mixed == ("partly.weight", "partly.bias")


def test_a_model_that_its_config_does_not_widen_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"No field of LlamaConfig .* makes its model wider"):
        discover_widths(LlamaConfig(), lambda config: torch.nn.Linear(4, 4))
