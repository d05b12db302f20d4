"""What may be checked: a factory, a model that its class rebuilds from its config, or a transformers config."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.check.builds import builder
from mutransfer.errors import ConfigError

WIDTHS = [64, 128, 256]


def gpt2_config():
    from transformers import GPT2Config

    ids = {"bos_token_id": None, "eos_token_id": None}
    return GPT2Config(n_embd=64, n_head=4, n_layer=1, vocab_size=64, n_positions=32, **ids)


def llama_config():
    from transformers import LlamaConfig

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, vocab_size=64, **heads)


CONFIGS = {"gpt2": gpt2_config, "llama": llama_config}


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_transformers_config_is_checked_as_it_is(name):
    report = mt.coord_check(CONFIGS[name](), widths=WIDTHS, seeds=4)
    assert report.verdict == "pass"
    assert report.control.verdict == "fail"
    assert report.model == {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[name]
    assert report.base == 64
    assert any(slope.role == "output" for slope in report.judged)


def test_a_transformers_model_under_sp_fails():
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(gpt2_config())
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = mt.coord_check(model, widths=WIDTHS, parameterization="sp", seeds=2)
    assert report.verdict == "fail"
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_every_width_keeps_the_head_size_and_the_proportions():
    build = builder(llama_config(), "heads")
    config = build(256).config
    assert (config.hidden_size, config.intermediate_size) == (256, 512)
    assert (config.num_attention_heads, config.num_key_value_heads) == (16, 8)
    grown = builder(gpt2_config(), "head_dim")(256).config
    assert (grown.n_embd, grown.n_head) == (256, 4)


def test_a_reference_model_is_rebuilt_from_its_own_config(models):
    assert [builder(models.gpt(64), "heads")(width).config.width for width in WIDTHS] == WIDTHS


def test_a_factory_stays_what_it_is(models):
    assert builder(models.mlp, "heads") is models.mlp


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Linear(2, 2), r"Linear has no \.config"),
        ({"width": 64}, "A dict cannot be built at several sizes"),
    ],
)
def test_what_cannot_be_built_at_other_widths_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        mt.coord_check(given, widths=WIDTHS)


def test_a_width_that_does_not_fit_the_config_names_the_field():
    with pytest.raises(ConfigError, match=r"'num_attention_heads' = 4 would become 3\.125"):
        builder(llama_config(), "heads")(50)


class Deaf(nn.Module):
    """Most of its parameters are in a tower that the loss hardly hears: its result is 1e-20 of the sum."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.hidden, self.read = nn.Embedding(64, width), nn.Linear(width, width), nn.Linear(width, 64)
        self.tower = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, ids):
        x = heard = self.embed(ids)
        for layer in self.tower:
            heard = layer(heard)
        return self.read(torch.tanh(self.hidden(x + 1e-20 * heard)))


def test_a_tower_without_gradient_is_listed_though_it_holds_most_parameters():
    report = mt.coord_check(Deaf, widths=WIDTHS, example_inputs=torch.arange(8)[None])
    assert report.verdict == "pass", str(report)
    assert {item.parameter.split(".")[0] for item in report.listed} == {"tower"}
    assert {slope.name for slope in report.judged} >= {"hidden.weight", "read.weight"}
