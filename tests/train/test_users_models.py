"""transformers architectures and the user's own functions, built at any width."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mutransfer.errors import ConfigError
from mutransfer.train.data import DataInfo
from mutransfer.train.models import build_model

TOKENS = DataInfo("tokens", (16,), 64, vocab_size=64)
IMAGES = DataInfo("images", (1, 8, 8), 10, classes=10)
LLAMA = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
HF = [
    ({"type": "llama", "overrides": LLAMA}, TOKENS),
    ({"type": "gpt2", "overrides": {"n_embd": 64, "n_head": 4}}, TOKENS),
    ({"type": "bert", "overrides": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}}, TOKENS),
    (
        {
            "type": "vit",
            "overrides": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "patch_size": 2},
        },
        IMAGES,
    ),
]


@pytest.mark.parametrize(("settings", "info"), HF, ids=lambda value: getattr(value, "kind", None))
def test_a_transformers_model_gives_logits_at_any_width_with_its_head_size_fixed(
    settings: dict[str, Any], info: DataInfo
) -> None:
    for width in (32, 128):
        model = build_model({"name": "hf", "width": width, "depth": 1, **settings}, info)
        config = model.hf.config
        assert config.hidden_size == width
        assert config.hidden_size // config.num_attention_heads == 16
        assert config.num_hidden_layers == 1
        assert model(*model.example_inputs(2)).shape[-1] == info.outputs


@pytest.mark.parametrize(("settings", "info"), HF, ids=lambda value: getattr(value, "kind", None))
def test_a_transformers_model_is_rebuilt_copied_and_pickled(settings: dict[str, Any], info: DataInfo) -> None:
    model = build_model({"name": "hf", "width": 32, "depth": 1, **settings}, info).eval()
    again = type(model)(model.config).eval()
    again.load_state_dict(model.state_dict())
    inputs = model.example_inputs(1, torch.Generator().manual_seed(0))
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*inputs), model(*inputs))


@pytest.mark.parametrize("settings", [settings for settings, info in HF if info is TOKENS], ids=lambda s: s["type"])
def test_a_transformers_language_model_does_not_see_the_future(settings: dict[str, Any]) -> None:
    model = build_model({"name": "hf", "width": 32, "depth": 1, **settings}, TOKENS).eval()
    ids = torch.arange(8)[None] + 10
    changed = ids.clone()
    changed[0, -1] = 50
    assert torch.allclose(model(changed)[:, :-1], model(ids)[:, :-1], atol=1e-5)
    assert not torch.allclose(model(changed)[:, -1], model(ids)[:, -1], atol=1e-5)


def test_parameters_keep_transformers_own_names() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = build_model({"name": "hf", "width": 64, "depth": 1, "type": "llama", "overrides": LLAMA}, TOKENS)
    plain = LlamaForCausalLM(LlamaConfig(**LLAMA, num_hidden_layers=1, vocab_size=64))
    assert dict(model.hf.named_parameters()).keys() == dict(plain.named_parameters()).keys()


def test_without_data_a_transformers_model_keeps_its_own_vocabulary() -> None:
    model = build_model({"name": "hf", "width": 32, "depth": 1, "type": "llama", "overrides": LLAMA})
    assert model.hf.config.vocab_size == 32000


def test_example_ids_avoid_special_tokens() -> None:
    model = build_model({"name": "hf", "width": 64, "depth": 1, "type": "llama", "overrides": LLAMA}, TOKENS)
    ids = model.example_inputs(500)[0]
    special = {model.hf.config.bos_token_id, model.hf.config.eos_token_id}
    assert special == {1, 2}
    assert not special & set(ids.unique().tolist())


def test_a_config_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", **LLAMA, "num_hidden_layers": 3, "vocab_size": 999}))
    model = build_model({"name": "hf", "width": 32, "file": str(file), "overrides": {"rms_norm_eps": 1e-3}}, TOKENS)
    config = model.hf.config
    assert (config.hidden_size, config.num_key_value_heads, config.intermediate_size) == (32, 1, 48)
    assert (config.num_hidden_layers, config.vocab_size, config.rms_norm_eps) == (3, 64, 1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"type": "lama"}, "no model type 'lama'. Did you mean 'llama'"),
        ({}, "give exactly one, such as model.type=llama"),
        ({"type": "llama", "file": "x.json"}, "give exactly one"),
        ({"type": "llama", "overrides": {"hidden_sise": 64}}, "LlamaConfig has no field 'hidden_sise'. Did you mean"),
        ({"type": "llama", "overrides": {**LLAMA, "num_key_value_heads": 3}}, "num_key_value_heads' = 3 would become"),
        ({"type": "t5"}, "no AutoModelForCausalLM for model type 't5'"),
        ({"type": "t5", "kind": "images"}, "no AutoModelForImageClassification"),
        ({"type": "llama", "overrides": {**LLAMA, "hidden_act": "gelo"}}, "cannot build 'llama' at model.width=32"),
        ({"type": "llama", "overrides": {"hidden_size": "wide"}}, "refuses this config"),
        ({"file": "nowhere.json"}, "model.file=nowhere.json cannot be read"),
    ],
)
def test_a_transformers_config_that_cannot_be_built_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_model({"name": "hf", "width": 32, **settings}, TOKENS)


def test_a_list_of_widths_follows_its_first() -> None:
    model = build_model({"name": "hf", "width": 32, "type": "convnext"}, IMAGES)
    assert list(model.hf.config.hidden_sizes) == [32, 64, 128, 256]


def test_one_key_value_head_stays_one_at_every_width() -> None:
    overrides = {**LLAMA, "num_key_value_heads": 1}
    for width in (32, 128):
        model = build_model({"name": "hf", "width": width, "type": "llama", "overrides": overrides}, TOKENS)
        assert model.hf.config.num_key_value_heads == 1


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    for content, sentence in (("{", "is not valid JSON"), ("[]", "has no model_type"), ("{}", "has no model_type")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=sentence):
            build_model({"name": "hf", "width": 32, "file": str(tmp_path / "config.json")}, TOKENS)


def test_without_transformers_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"model=hf needs the package transformers"):
        build_model({"name": "hf", "width": 32, "type": "llama"}, TOKENS)


FACTORY = """
from torch import nn
from mutransfer.errors import ConfigError

def make(width, depth=1, bias=True):
    return nn.Sequential(*[nn.Linear(width, width, bias=bias) for _ in range(depth)])

def shallow(width):
    return nn.Linear(width, 2)

def broken(width):
    raise RuntimeError("no such layer")

def leaving(width):
    raise SystemExit(3)

def refusing(width):
    raise ConfigError("width must be even")

def number(width):
    return width

SIZE = 3
"""


@pytest.fixture
def factory_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_net.py").write_text(FACTORY)
    (tmp_path / "users_typo.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_net", raising=False)
    return "users_net"


def test_the_users_function_is_called_with_width_depth_and_kwargs(factory_module: str) -> None:
    config = {"name": "factory", "path": f"{factory_module}:make", "width": 8, "base_width": 4}
    assert len(list(build_model(config, TOKENS).parameters())) == 2
    deep = build_model({**config, "depth": 3, "kwargs": {"bias": False}}, TOKENS)
    assert [tuple(p.shape) for p in deep.parameters()] == [(8, 8)] * 3
    assert type(deep) is nn.Sequential


@pytest.mark.parametrize(
    ("path", "settings", "sentence"),
    [
        ("users_net", {}, "write it as package.module:function"),
        ("users_nut:make", {}, "cannot be imported from .*ModuleNotFoundError.* Run from the folder"),
        ("users_typo:make", {}, "No module named 'no_such_package_at_all'"),
        ("users_net:mak", {}, "module users_net has no 'mak'. Did you mean 'make'"),
        ("users_net:SIZE", {}, "is a int; a function that takes width= is expected"),
        ("users_net:shallow", {"depth": 2}, r"cannot be called with width=8, depth=2: .*It takes \(width\)"),
        ("users_net:make", {"kwargs": {"bais": 1}}, "cannot be called with"),
        ("users_net:broken", {}, "failed at width=8: RuntimeError: no such layer"),
        ("users_net:leaving", {}, "failed at width=8: SystemExit: 3"),
        ("users_net:refusing", {}, "width must be even"),
        ("builtins:dict", {}, "returned a dict"),
        ("users_net:number", {}, "returned a int; a torch.nn.Module is expected"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(
    factory_module: str, path: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_model({"name": "factory", "path": path, "width": 8, **settings}, TOKENS)
