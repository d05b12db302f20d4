"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import ConfigError, nearest
from mutransfer.train.data.corpus import stdlib
from mutransfer.train.data.protocol import Data
from mutransfer.train.data.tokens import TokenBatches
from mutransfer.train.settings import read_settings


@dataclass(frozen=True)
class Source:
    """How a data set is built.

    Attributes:
        settings: its settings' dataclass.
        build: takes the settings, and where it has images, `images=`: whether to give them as such or as vectors.
    """

    settings: type
    build: Callable[..., Data]
    has_images: bool = False


IMAGE_MODELS = ("resnet", "vit")

DATA: Mapping[str, Source] = {
    "stdlib": Source(TokenBatches, stdlib),
}


def build_data(config: Mapping[str, Any], model: Mapping[str, Any]) -> Data:
    """The data set of a resolved config.

    Args:
        config: the `data` section.
        model: the `model` section: image models get images where the data set can be seen as images or vectors.

    Raises:
        ConfigError: an unknown name or setting.
        DataError: data that cannot be read, or that is too small for one batch.
    """
    name = str(config.get("name"))
    if name not in DATA:
        raise ConfigError(f"There is no data set {name!r}.{nearest(name, DATA)}")
    source = DATA[name]
    settings = read_settings(source.settings, "data", config)
    if source.has_images:
        return source.build(settings, images=model.get("name") in IMAGE_MODELS)
    return source.build(settings)
