"""The models by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from mutransfer.errors import ConfigError, nearest
from mutransfer.train.data.protocol import DataInfo, Kind
from mutransfer.train.data.registry import fitting
from mutransfer.train.models.factory import FactoryConfig, build_from_factory
from mutransfer.train.models.gpt import GPT, GPTConfig
from mutransfer.train.models.hf import HFConfig, HFModel
from mutransfer.train.models.mlp import MLP, MLPConfig
from mutransfer.train.models.resnet import ResNet, ResNetConfig
from mutransfer.train.models.vit import ViT, ViTConfig
from mutransfer.train.settings import read_settings


@dataclass(frozen=True)
class Builder:
    """How a model is built: its config, what makes a module of it, and which data it takes (empty: any)."""

    config: type[Any]
    build: Callable[[Any], nn.Module]
    takes: tuple[Kind, ...]


MODELS: Mapping[str, Builder] = {
    "mlp": Builder(MLPConfig, MLP, ("vectors", "images")),
    "gpt": Builder(GPTConfig, GPT, ("tokens",)),
    "resnet": Builder(ResNetConfig, ResNet, ("images",)),
    "vit": Builder(ViTConfig, ViT, ("images",)),
    "hf": Builder(HFConfig, HFModel, ("tokens", "images")),
    "factory": Builder(FactoryConfig, build_from_factory, ()),
}


def build_model(config: Mapping[str, Any], info: DataInfo | None = None) -> nn.Module:
    """The model of a resolved config, freshly initialized from torch's global generator.

    Args:
        config: the `model` section: `name`, `width` and the model's own settings.
        info: what the data needs; it gives every size that the section leaves out (vocab_size, seq_len, shape, ...).

    Raises:
        ConfigError: an unknown name or setting, sizes that do not fit together, or data that the model cannot take.
    """
    name = str(config.get("name"))
    if name not in MODELS:
        raise ConfigError(f"There is no model {name!r}.{nearest(name, MODELS)}")
    builder = MODELS[name]
    if info is not None and builder.takes and info.kind not in builder.takes:
        raise ConfigError(
            f"model={name} takes {' or '.join(builder.takes)}, and this data gives {info.kind}. Choose data that fit "
            f"({', '.join(fitting(builder.takes))}) or a model for {info.kind} ({', '.join(_taking(info.kind))})."
        )
    sizes = {} if info is None else _sizes(info)
    known = {field.name for field in fields(builder.config)}
    merged = {**{key: value for key, value in sizes.items() if key in known}, **config}
    return builder.build(read_settings(builder.config, "model", merged, ignore=("name", "base_width", "base_depth")))


def _taking(kind: Kind) -> list[str]:
    return [f"model={name}" for name, builder in MODELS.items() if kind in builder.takes or not builder.takes]


def _sizes(info: DataInfo) -> dict[str, Any]:
    sizes: dict[str, Any] = {"kind": info.kind, "shape": info.shape, "outputs": info.outputs}
    if info.kind == "tokens":
        sizes |= {"vocab_size": info.vocab_size, "seq_len": info.shape[0]}
    if info.kind == "images":
        sizes |= {"channels": info.shape[0], "image_size": info.shape[-1]}
    return sizes
