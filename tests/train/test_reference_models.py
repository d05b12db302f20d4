"""Every knob of the reference models does what its name says, and wrong sizes are refused in one sentence."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from mutransfer.errors import ConfigError
from mutransfer.train.data import DataInfo
from mutransfer.train.models import MODELS, build_model
from mutransfer.train.models.blocks import Attention, RotaryPositions, rotate
from mutransfer.train.models.gpt import GPT, GPTConfig
from mutransfer.train.models.resnet import ResidualBlock, ResNet, ResNetConfig

TOKENS = DataInfo("tokens", (16,), 64, vocab_size=64)
IMAGES = DataInfo("images", (1, 8, 8), 10, classes=10)
GPTS = [
    {},
    {"positions": "rotary"},
    {"activation": "swiglu", "norm": "rmsnorm"},
    {"kv_groups": 2, "tied": True, "bias": True},
    {"head_dim": None, "n_heads": 2},
]
ALL: list[tuple[dict[str, Any], DataInfo]] = [
    ({"name": "mlp"}, IMAGES),
    *[({"name": "gpt", **knobs}, TOKENS) for knobs in GPTS],
    ({"name": "resnet"}, IMAGES),
    ({"name": "vit"}, IMAGES),
]


def gpt(**knobs: Any) -> GPT:
    torch.manual_seed(0)
    model = build_model({"name": "gpt", "width": 32, **knobs}, TOKENS)
    assert isinstance(model, GPT)
    return model


def sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(("config", "info"), ALL, ids=str)
def test_every_size_is_a_multiple_of_the_width_or_independent_of_it(config: dict[str, Any], info: DataInfo) -> None:
    at = {width: sizes(build_model({**config, "width": width}, info)) for width in (32, 64, 96)}
    for name, shape in at[32].items():
        for axis, size in enumerate(shape):
            grown = [at[width][name][axis] for width in (32, 64, 96)]
            assert grown in ([size, size, size], [size, 2 * size, 3 * size]), name


@pytest.mark.parametrize(("config", "info"), ALL, ids=str)
def test_a_model_gives_logits_for_its_example_inputs_and_gradients_to_every_parameter(
    config: dict[str, Any], info: DataInfo
) -> None:
    model = build_model({**config, "width": 32}, info)
    logits = model(*model.example_inputs(3, generator=torch.Generator().manual_seed(1)))
    assert logits.shape[0] == 3
    assert logits.shape[-1] == info.outputs
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("config", "info"), ALL, ids=str)
def test_a_model_is_rebuilt_by_its_own_config_and_survives_pickle(config: dict[str, Any], info: DataInfo) -> None:
    model = build_model({**config, "width": 32}, info)
    again = type(model)(model.config)
    assert sizes(again) == sizes(model)
    again.load_state_dict(model.state_dict())
    inputs = model.example_inputs(2)
    expected = model(*inputs)
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*inputs), expected)


@pytest.mark.parametrize(("config", "info"), ALL, ids=str)
def test_weights_are_drawn_with_std_one_over_root_fan_in(config: dict[str, Any], info: DataInfo) -> None:
    torch.manual_seed(0)
    model = build_model({**config, "width": 128}, info)
    tied = config.get("tied", False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) or (isinstance(module, nn.Embedding) and not tied):
            weight = module.weight
            fan_in = 1 if isinstance(module, nn.Embedding) else math.prod(weight.shape[1:])
            error = float(weight.detach().std()) * math.sqrt(fan_in) - 1
            assert abs(error) < 6 / math.sqrt(2 * weight.numel()), name
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
        if isinstance(getattr(module, "bias", None), torch.Tensor):
            assert not module.bias.any(), name


def test_the_number_of_heads_or_their_size_grows_with_the_width() -> None:
    def head_dims(**knobs: Any) -> list[int]:
        return [gpt(width=width, **knobs).blocks[0].attention.head_dim for width in (32, 64)]

    assert head_dims(head_dim=16) == [16, 16]
    assert head_dims(head_dim=None, n_heads=2) == [16, 32]


def test_the_softmax_scale_is_read_by_the_forward_pass() -> None:
    model = gpt()
    ids = model.example_inputs()[0]
    attention = model.blocks[0].attention
    assert type(attention.softmax_scale) is float
    assert attention.softmax_scale == 1 / math.sqrt(16)
    before = model(ids)
    attention.softmax_scale *= 2
    changed = model(ids)
    assert not torch.allclose(changed, before)
    with torch.no_grad():
        attention.q.weight /= 2
    assert torch.allclose(model(ids), before, atol=1e-5)


def test_grouped_query_attention_is_multi_head_attention_with_repeated_keys_and_values() -> None:
    grouped = Attention(64, 16, kv_groups=2, causal=True)
    full = Attention(64, 16, kv_groups=1, causal=True)
    repeated = {
        name: weight.unflatten(0, (2, 16)).repeat_interleave(2, dim=0).flatten(0, 1) if name[0] in "kv" else weight
        for name, weight in grouped.state_dict().items()
    }
    full.load_state_dict(repeated)
    x = torch.randn(2, 8, 64)
    assert torch.allclose(grouped(x), full(x), atol=1e-6)
    wrong = {name: w.flip(0) if name[0] == "k" else w for name, w in repeated.items()}
    full.load_state_dict(wrong)
    assert not torch.allclose(grouped(x), full(x), atol=1e-3)


def test_one_key_value_head_per_query_head_is_plain_multi_head_attention() -> None:
    attention = Attention(32, 16, kv_groups=1, causal=False)
    reference = nn.MultiheadAttention(32, 2, bias=False, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
        reference.out_proj.weight.copy_(attention.o.weight)
    x = torch.randn(2, 8, 32)
    assert torch.allclose(attention(x), reference(x, x, x, need_weights=False)[0], atol=1e-6)


@pytest.mark.parametrize("knobs", GPTS, ids=str)
def test_a_decoder_does_not_see_the_future_and_sees_the_past(knobs: dict[str, Any]) -> None:
    model = gpt(**knobs).eval()
    ids = torch.arange(8)[None] + 3
    future, past = ids.clone(), ids.clone()
    future[0, -1], past[0, 0] = 1, 1
    assert torch.allclose(model(future)[:, :-1], model(ids)[:, :-1], atol=1e-5)
    assert not torch.allclose(model(past)[:, -1], model(ids)[:, -1], atol=1e-3)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_positions_tell_a_decoder_the_order_of_what_came_before(positions: str) -> None:
    model = gpt(positions=positions, depth=1).eval()
    swapped = model(torch.tensor([[1, 2, 3]]))[0, -1] - model(torch.tensor([[2, 1, 3]]))[0, -1]
    assert swapped.abs().max() > 1e-2


def test_rotary_positions_are_relative() -> None:
    cos, sin = RotaryPositions(16, 16)(16)
    q, k = (torch.randn(16).expand(16, 16) for _ in range(2))
    logits = rotate(q, cos, sin) @ rotate(k, cos, sin).T
    assert torch.allclose(logits[5, 2], logits[13, 10], atol=1e-4)
    assert not torch.allclose(logits[5, 2], logits[5, 3], atol=1e-4)


def test_a_tied_readout_is_the_embedding() -> None:
    tied, untied = gpt(tied=True), gpt()
    assert tied.readout.weight is tied.embedding.weight
    assert len(sizes(untied)) == len(sizes(tied)) + 1


def test_dropout_acts_in_training_only() -> None:
    model = gpt(dropout=0.5)
    ids = model.example_inputs()[0]
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_a_residual_block_projects_its_shortcut_only_where_sizes_change() -> None:
    same, wider, smaller = ResidualBlock(8, 8, 1), ResidualBlock(8, 16, 1), ResidualBlock(8, 8, 2)
    assert isinstance(same.shortcut, nn.Identity)
    assert not isinstance(wider.shortcut, nn.Identity)
    assert not isinstance(smaller.shortcut, nn.Identity)


def test_depth_adds_blocks_to_every_stage() -> None:
    shallow, deep = (ResNet(ResNetConfig(width=8, channels=1, outputs=10, depth=depth)) for depth in (1, 2))
    count = [sum(isinstance(m, ResidualBlock) for m in model.modules()) for model in (shallow, deep)]
    assert count == [3, 6]


WRONG: list[tuple[dict[str, Any], DataInfo, str]] = [
    ({"name": "gpt", "width": 66}, TOKENS, r"model.width=66 must be a multiple of model.head_dim=16, such as 64\."),
    ({"name": "gpt", "width": 32, "n_heads": 2}, TOKENS, "give exactly one of the two"),
    ({"name": "gpt", "width": 32, "head_dim": None}, TOKENS, "give exactly one of the two"),
    ({"name": "gpt", "width": 32, "head_dim": 0}, TOKENS, "whole number greater than 0"),
    ({"name": "gpt", "width": 32, "kv_groups": 3}, TOKENS, "does not divide the 2 heads"),
    ({"name": "gpt", "width": 48, "head_dim": 3, "positions": "rotary"}, TOKENS, "even head_dim"),
    ({"name": "gpt", "width": 32, "mlp_ratio": 2.7}, TOKENS, "whole number is needed"),
    ({"name": "gpt", "width": 32, "activation": "gelo"}, TOKENS, "Did you mean 'gelu'"),
    ({"name": "gpt", "width": 32, "dropout": 2}, TOKENS, "from 0 to 1"),
    ({"name": "gpt", "width": 0}, TOKENS, "model.width=0: it must be a whole number greater than 0"),
    ({"name": "gpt", "width": "wide"}, TOKENS, "whole number greater than 0"),
    ({"name": "gpt", "width": 32, "postions": "rotary"}, TOKENS, "Did you mean 'positions'"),
    ({"name": "gpt"}, TOKENS, "model.width is missing"),
    ({"name": "gtp", "width": 32}, TOKENS, "no model 'gtp'. Did you mean 'gpt'"),
    (
        {"name": "mlp", "width": 32},
        TOKENS,
        "this data gives tokens. Choose data that fit .data=digits, data=synthetic. or a model for tokens .model=gpt",
    ),
    ({"name": "mlp", "width": 32, "activation": "selu"}, IMAGES, "Did you mean 'relu'"),
    ({"name": "resnet", "width": 8, "stages": 4}, IMAGES, "BatchNorm has nothing to average"),
    ({"name": "vit", "width": 32, "patch_size": 3}, IMAGES, "does not divide images of 8 pixels"),
]


@pytest.mark.parametrize(("config", "info", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_settings_are_refused_in_one_sentence(config: dict[str, Any], info: DataInfo, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_model(config, info)


def test_without_data_the_sizes_come_from_the_config() -> None:
    assert build_model({"name": "gpt", "width": 32, "vocab_size": 5, "seq_len": 4}).config.vocab_size == 5
    with pytest.raises(ConfigError, match=r"vocab_size is missing"):
        build_model({"name": "gpt", "width": 32})


def test_configs_are_frozen_and_the_registry_names_every_model() -> None:
    config = GPTConfig(width=32, vocab_size=8, seq_len=4)
    with pytest.raises(AttributeError):
        config.width = 64  # type: ignore[misc]
    assert set(MODELS) == {"mlp", "gpt", "resnet", "vit", "hf", "factory"}
