"""A config at another size is made anew by its constructor, and loses nothing that the constructor does not know."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from transformers import Dinov2Config, Gemma4TextConfig, LlamaConfig, Zamba2Config

from mutransfer.planning.depths import twice_as_deep
from mutransfer.planning.resize import resized

WIDER = {("hidden_size",): 64}


def test_what_is_given_by_keyword_or_set_later_stays() -> None:
    config = LlamaConfig(own_keyword=4)
    config.set_later = 3
    config._attn_implementation = "eager"
    wider = resized(config, WIDER)
    assert (wider.hidden_size, wider.own_keyword, wider.set_later) == (64, 4, 3)
    assert wider._attn_implementation == "eager"
    assert resized(Dinov2Config(out_features=["stage1", "stage2"]), {}).out_features == ["stage1", "stage2"]


def test_control_what_the_constructor_derives_follows() -> None:
    config = Zamba2Config(num_hidden_layers=3, layers_block_type=["linear_attention", "linear_attention", "hybrid"])
    assert resized(config, twice_as_deep(config)).hybrid_layer_ids == [2, 5]
    assert resized(config, WIDER).attention_hidden_size == 128


def test_a_config_whose_layers_differ_is_made_anew_with_its_layers() -> None:
    config = Gemma4TextConfig(num_hidden_layers=6, global_head_dim=128, pad_token_id=0)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        config.head_dim  # noqa: B018  (which layer's?)
    wider = resized(config, WIDER)
    assert [layer.head_dim for layer in wider.per_layer_config] == [256, 256, 256, 256, 256, 128]
    assert wider.hidden_size == 64


@dataclass
class Checked:
    width: int
    heads: int = 2
    head_dim: int = field(init=False)

    def __post_init__(self) -> None:
        self.head_dim, remainder = divmod(self.width, self.heads)
        if remainder:
            raise ValueError("heads must divide the width")


def test_a_dataclass_checks_its_values_and_its_own_is_left_as_it_was() -> None:
    config = Checked(8)
    assert (resized(config, {("width",): 16}).head_dim, config.head_dim) == (8, 4)
    with pytest.raises(ValueError, match="heads must divide"):
        resized(config, {("width",): 9})
