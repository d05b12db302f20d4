"""Any transformers architecture, built from its config with fresh weights; nothing is ever downloaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import ConfigError, nearest
from mutransfer.planning.resize import at_width
from mutransfer.train.settings import check_choice, check_whole

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
_HEADS_FOR = {"tokens": "AutoModelForCausalLM", "images": "AutoModelForImageClassification"}


@dataclass(frozen=True)
class HFConfig:
    """Which architecture, and its sizes.

    Attributes:
        width: of the model; every size that follows it (feed-forward, numbers of heads) is scaled by the same ratio
            from the architecture's defaults, the file or the overrides, while the head size stays.
        type: a transformers model type, such as "llama"; or None with a file.
        file: a config.json; or None with a type.
        depth: number of layers; None keeps the config's.
        overrides: other config fields, set before the width is scaled.
        kind: what the data gives: tokens make a causal language model, images an image classifier.
        vocab_size, outputs, channels, image_size: from the data.
    """

    width: int
    type: str | None = None
    file: str | None = None
    depth: int | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = "tokens"
    vocab_size: int | None = None
    outputs: int | None = None
    channels: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        sizes = [name for name in ("depth", "vocab_size") if getattr(self, name) is not None]
        check_whole("model", self, "width", *sizes)
        check_choice("model", self, "kind", _HEADS_FOR)
        if (self.type is None) == (self.file is None):
            raise ConfigError(
                f"model.type={self.type} and model.file={self.file}: give exactly one, such as model.type=llama or "
                "model.file=config.json."
            )


class HFModel(nn.Module):
    """Token ids or images to logits; the transformers module is `.hf`, with its own parameter names below that."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.config = config
        self.hf = _build(config)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.hf(inputs).logits
        return logits

    def example_inputs(self, batch: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        own = self.hf.config
        if self.config.kind == "images":
            channels = self.config.channels or own.num_channels
            size = self.config.image_size or own.image_size
            return (torch.randn(batch, channels, size, size, generator=generator),)
        special = {getattr(own, name, None) for name in _SPECIAL}  # a padding id has a zero row
        ids = torch.tensor([i for i in range(own.vocab_size) if i not in special])
        return (ids[torch.randint(len(ids), (batch, 8), generator=generator)],)


def _build(config: HFConfig) -> Any:
    transformers = _transformers()
    make, plain = getattr(transformers, _HEADS_FOR[config.kind]), _plain_config(config)
    if type(plain) not in make._model_mapping:
        raise ConfigError(
            f"transformers has no {_HEADS_FOR[config.kind]} for model type {plain.model_type!r}, which this data "
            "needs. Choose another model.type, or data of another kind."
        )
    own = _scaled_config(config, plain)
    try:
        return make.from_config(own)
    except Exception as error:
        raise ConfigError(
            f"transformers cannot build {own.model_type!r} at model.width={config.width}: {_reason(error)}. "
            "Set the fields that do not fit with model.overrides."
        ) from error


def _scaled_config(config: HFConfig, plain: Any) -> Any:
    scaled = at_width(plain, config.width)
    if hasattr(scaled, "use_cache"):
        scaled.use_cache = False
    if hasattr(scaled, "is_decoder"):
        scaled.is_decoder = config.kind == "tokens"  # else BERT's language model would see the token it predicts
    return scaled


def _plain_config(config: HFConfig) -> Any:
    """The architecture's config with the data's sizes, the depth and the overrides, at its own width."""
    values = {} if config.file is None else _read_file(config.file)
    kind = str(values.pop("model_type", config.type))
    mapping = _transformers().CONFIG_MAPPING
    if kind not in mapping:
        raise ConfigError(f"transformers has no model type {kind!r}.{nearest(kind, mapping.keys())}")
    changes = dict(config.overrides) | ({} if config.depth is None else {"num_hidden_layers": config.depth})
    plain = mapping[kind]()
    for name in changes:
        if not hasattr(plain, name):
            known = [field for field in plain.to_dict() if not field.startswith("_")]
            raise ConfigError(f"transformers' {type(plain).__name__} has no field {name!r}.{nearest(name, known)}")
    try:
        return mapping[kind](**{**values, **_data_sizes(config, plain), **changes})
    except Exception as error:
        raise ConfigError(f"transformers refuses this config of model type {kind!r}: {_reason(error)}.") from error


def _data_sizes(config: HFConfig, plain: Any) -> dict[str, Any]:
    """The data's sizes under the config's names; special tokens outside the data's vocabulary are dropped."""
    if config.kind == "images":
        named = {"num_labels": config.outputs, "num_channels": config.channels, "image_size": config.image_size}
        return {name: value for name, value in named.items() if value is not None and hasattr(plain, name)}
    if config.vocab_size is None:
        return {}
    special = [name for name in _SPECIAL if (getattr(plain, name, None) or 0) >= config.vocab_size]
    return {"vocab_size": config.vocab_size} | dict.fromkeys(special)


def _read_file(file: str) -> dict[str, Any]:
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model.file={file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"model.file={file} is not valid JSON: {error}.") from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise ConfigError(f"model.file={file} is not a transformers config: it has no model_type.")
    return values


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError("model=hf needs the package transformers: pip install 'mutransfer[hf]'.") from None
    return transformers


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(". ")
