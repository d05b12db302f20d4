"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import ConfigError, nearest
from mutransfer.train.data.corpus import stdlib
from mutransfer.train.data.digits import Digits, DigitsSettings
from mutransfer.train.data.files import MemmapSettings, TextSettings, memmap, text
from mutransfer.train.data.hub import HubSettings, hub
from mutransfer.train.data.protocol import Data, Kind
from mutransfer.train.data.synthetic import SyntheticSettings, synthetic
from mutransfer.train.data.tokens import TokenBatches
from mutransfer.train.settings import read_settings


@dataclass(frozen=True)
class Source:
    """How a data set is built.

    Attributes:
        settings: its settings' dataclass.
        build: takes the settings, and where it has images, `images=`: whether to give them as such or as vectors.
        gives: the kinds of inputs that it can give, each with the override that asks for it, if one does.
    """

    settings: type[Any]
    build: Callable[..., Data]
    gives: Mapping[Kind, str]

    @property
    def has_images(self) -> bool:
        """Whether it can be seen as images and as vectors; `data.images` decides, and where that is None, the model."""
        return "images" in self.gives


IMAGE_MODELS = ("resnet", "vit", "hf")

DATA: Mapping[str, Source] = {
    "stdlib": Source(TokenBatches, stdlib, {"tokens": ""}),
    "text": Source(TextSettings, text, {"tokens": ""}),
    "memmap": Source(MemmapSettings, memmap, {"tokens": ""}),
    "hf": Source(HubSettings, hub, {"tokens": ""}),
    "digits": Source(DigitsSettings, Digits, {"vectors": "", "images": ""}),
    "synthetic": Source(SyntheticSettings, synthetic, {"vectors": "", "images": "", "tokens": "data.task=tokens"}),
}


def fitting(kinds: Collection[Kind]) -> list[str]:
    """The overrides that choose data of one of these kinds.

    >>> fitting(["vectors"])
    ['data=digits', 'data=synthetic']
    """
    ways = ((name, [way for kind, way in source.gives.items() if kind in kinds]) for name, source in DATA.items())
    return [" ".join(filter(None, (f"data={name}", min(options)))) for name, options in ways if options]


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
    if not source.has_images:
        return source.build(settings)
    as_images = model.get("name") in IMAGE_MODELS if settings.images is None else settings.images
    return source.build(settings, images=as_images)
