"""All model types of transformers: default config -> shrunk -> wider by a factor."""

from __future__ import annotations

import functools
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import MutransferError, ShapeError
from mutransfer.planning.arguments import IMAGES, SOUND
from mutransfer.planning.generate import Experience, generate_inputs
from mutransfer.planning.shrink import ATTEMPTS, Shrunk, Sizes, shrink
from mutransfer.planning.sizes import shapes_of, without_memory
from mutransfer.planning.widths import Widths, discover_widths
from zoo.subjects import NotBuiltError, Small, Subject, Wider, by_fields, by_layers, from_config

HEADS = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "CAUSAL_LM", "MASKED_LM",
         "IMAGE_CLASSIFICATION", "CTC", "AUDIO_CLASSIFICATION", "SEQUENCE_CLASSIFICATION",
         "VIDEO_CLASSIFICATION", "PRETRAINING")  # fmt: skip
"""Preferred tasks: those with a readout first."""
MOST_ENTRIES = 100_000_000
"""Parameters of a default config's model that is run as it is."""
LABELS = 16
"""Two, the default, are too few numbers for the size of a readout's result: seeds differ by an octave."""
INITIALIZER_RANGE, INVISIBLE = 0.02, 1e-6
"""The std that nearly all configs of transformers draw weights with, and one that no weight is trained from."""


def transformers_subjects() -> Iterator[Subject]:
    """Every registered type with a model class, shuffled: however far one gets, it is a fair sample."""
    from transformers import CONFIG_MAPPING

    _quiet()
    for kind in sorted(CONFIG_MAPPING, key=lambda kind: zlib.crc32(kind.encode())):
        name = _class_name(kind)
        if name is not None:
            yield Subject(kind, "transformers", lambda kind=kind, name=name: _small(kind, name))  # type: ignore[misc]


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")


def _class_name(kind: str) -> str | None:
    from transformers.models.auto import modeling_auto

    suffix = "_MAPPING_NAMES"
    mappings = [f"MODEL_FOR_{task}{suffix}" for task in HEADS] + ["MODEL_MAPPING_NAMES"]
    others = sorted(n for n in dir(modeling_auto) if n.startswith("MODEL_") and n.endswith(suffix))
    for mapping in (*mappings, *others):
        found = getattr(modeling_auto, mapping, {}).get(kind)
        if found:
            return found if isinstance(found, str) else found[0]
    return None


def _small(kind: str, name: str) -> Small:
    import transformers

    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise NotBuiltError(f"transformers names {name} for it but has no such class")
    if model_class.forward is nn.Module.forward:
        raise NotBuiltError(f"{name} has no forward pass of its own")
    config = _default(kind)
    drawn = _drawn_visibly(config)
    shrunk, wider, find = _shrink(model_class, config)
    width = shrunk.sizes.width
    make, deep = from_config(shrunk.config, width, wider)
    model = make(width)

    def inputs(seed: int) -> dict[str, Any]:
        return find(model.eval(), seed)

    @functools.cache
    def at_width(now: int, seed: int) -> dict[str, Any]:
        return find(make(now).eval(), seed)

    follow = inputs_follow(
        inputs(0), lambda: at_width(2 * width, 0), lambda given: _forward(make(2 * width).eval(), given)
    )
    notes = {"class": name, "kept": list(shrunk.kept), "whole": find.whole, "inputs_follow": follow, **wider.notes}
    notes |= {"initializer_range": INITIALIZER_RANGE} if drawn else {}
    return Small(width, make, inputs, notes, deep, at_width=at_width if follow else None)


def inputs_follow(
    own: dict[str, Any], of_wider: Callable[[], dict[str, Any]], run: Callable[[dict[str, Any]], object]
) -> bool:
    """Whether a model twice as wide, which does not take the same, takes what is twice as large in some dimension:
    hidden states of its width. An image or a sound does not follow a width: what asks for a larger one was made wider
    in the wrong place.

    Args:
        own: of the narrower model.
        of_wider: generates those of the wider one.
        run: its forward pass.
    """
    with suppress(Exception):  # whatever a foreign forward pass raises
        run(own)
        return False
    try:
        wide = of_wider()
    except MutransferError:
        return False
    return _grown(own, wide)


def _grown(own: dict[str, Any], wide: dict[str, Any]) -> bool:
    """Whether the same arguments are given, of some of them twice as much, and none of those seen or heard."""
    sizes, wider = ({n: t.shape for n, t in given.items() if isinstance(t, Tensor)} for given in (own, wide))
    if {name: len(shape) for name, shape in sizes.items()} != {name: len(shape) for name, shape in wider.items()}:
        return False
    changed = [name for name in sizes if sizes[name] != wider[name]]
    twice = all(b in (a, 2 * a) for name in changed for a, b in zip(sizes[name], wider[name], strict=True))
    return twice and not any(IMAGES.fullmatch(name) or SOUND.fullmatch(name) for name in changed)


def _default(kind: str) -> Any:
    from transformers import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[kind]()
        config.num_labels = LABELS
        return config
    except Exception as error:
        raise NotBuiltError(f"its default config raises {type(error).__name__}: {error}") from error


def _drawn_visibly(config: Any) -> bool:
    """Some configs draw weights of 1e-10, since these are always loaded: nothing can be trained from there. They get
    the std that the others have; returns whether any did."""
    parts = [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    changed = [_drawn_visibly(part) for part in parts]
    std = getattr(config, "initializer_range", None)
    if isinstance(std, float) and 0 < std < INVISIBLE:
        config.initializer_range = INITIALIZER_RANGE
        changed.append(True)
    return any(changed)


@dataclass
class Finder:
    """Finds the inputs of one model class at any size; what it learns at one serves the next.

    Attributes:
        whole: all towers are reached, not text alone.
    """

    whole: bool
    experience: Experience = field(default_factory=Experience)

    def __call__(self, model: nn.Module, seed: int = 0) -> dict[str, Any]:
        run = functools.partial(_forward, model)
        return generate_inputs(model, run, seed, whole=self.whole, experience=self.experience)


def _shrink(model_class: Any, config: Any) -> tuple[Shrunk, Wider, Finder]:
    """With all towers reached; or, where that fails, with text alone; or by the sizes of the layers, of the small
    config or of the default one."""
    failure: MutransferError | None = None
    found: list[Wider] = []

    def fields(small: Any, find: Finder) -> None:
        found[:] = [by_fields(_widths(model_class, small, find), model_class)]

    def layers(small: Any, find: Finder) -> None:
        inputs = find(model_class(small).eval())
        kept = {getattr(small, name, None) for name in ("num_labels", "num_channels")}
        found[:] = [by_layers(small, model_class, lambda model: _forward(model, inputs), kept)]

    for find in (Finder(whole=True), Finder(whole=False)):
        try:
            return shrink(config, functools.partial(fields, find=find)), found[0], find
        except MutransferError as error:
            failure = failure or error
    entries, find = _entries(model_class, config), Finder(whole=True)
    with suppress(ShapeError):
        return shrink(config, functools.partial(layers, find=find), ATTEMPTS[:1]), found[0], find
    if entries < MOST_ENTRIES:
        with suppress(MutransferError):
            layers(config, find)
            return Shrunk(config, Sizes(), ()), found[0], find
    raise failure or ShapeError("not shrunk")


def _widths(model_class: Any, config: Any, find: Finder) -> Widths:
    """What makes a small model wider so that it still takes its inputs, or what is twice as large; raises where it has
    none, as where a size that its code holds stays."""
    widths = discover_widths(config, model_class)
    inputs = find(model_class(config).eval())

    def run(wider: Any) -> object:
        return _forward(model_class(wider).eval(), inputs)

    with suppress(Exception):  # whatever a foreign forward pass raises
        run(widths.at(config, 2))
        return widths
    widths = discover_widths(config, model_class, run=run)
    wide = model_class(widths.at(config, 2)).eval()
    with suppress(Exception):
        _forward(wide, inputs)
        return widths
    if inputs_follow(inputs, lambda: find(wide), lambda given: _forward(wide, given)):
        return widths
    raise ShapeError("Some sizes do not follow the fields of its config that are widths.")


def _forward(model: nn.Module, given: dict[str, Any]) -> object:
    with torch.no_grad():
        return model(**given)


def _entries(model_class: Any, config: Any) -> int:
    """Of all parameters of the default config's model. Raises NotBuiltError where that itself does not build, which is
    not the shrinker's fault."""
    try:
        return sum(
            torch.Size(shape).numel() for shape in shapes_of(without_memory(lambda: model_class(config))).values()
        )
    except Exception as error:
        raise NotBuiltError(f"its default config does not build: {type(error).__name__}: {error}") from error
