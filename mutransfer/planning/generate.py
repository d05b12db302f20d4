"""Inputs for any model with a config: ids, images, sound and their combinations, tried until its forward pass runs."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mutransfer.errors import RoleError
from mutransfer.planning.fields import Kind, fields_of

TOKENS = 8
"""Positions a step: far fewer than the smallest width, since the tables assume full alignment."""
MOST_TRIES = 120
MOST_PLACEHOLDERS = 512

Inputs = dict[str, Any]
Run = Callable[[Inputs], object]
"""Runs the model's forward pass; raises where it does not accept the inputs."""


@dataclass(frozen=True)
class Draft:
    """One way to call a model.

    Attributes:
        names: the arguments that are given.
        image, sound: which of the usual layouts.
        placeholders: how many tokens stand for each image or sound in the ids.
        size: an image's side or a spectrogram's bins, where a failure named it; 0 for the config's.
    """

    names: tuple[str, ...]
    image: int = 0
    sound: int = 0
    placeholders: int = 0
    size: int = 0


def generate_inputs(model: nn.Module, run: Run, seed: int = 0, *, whole: bool = False) -> Inputs:
    """Keyword arguments that the model's forward pass accepts; drawn from `seed`, no special token among the ids.

    Args:
        model: has a `.config`.
        run: tries inputs, on fake tensors or for real.
        seed: of the contents.
        whole: text alone will not do for a model that takes images or sound as well.

    Raises:
        RoleError: no combination is accepted; it carries the first failure.
    """
    maker = Maker(model, seed)
    queue, seen, first = list(maker.drafts(whole=whole)), set[Draft](), ""
    for _ in range(MOST_TRIES):
        if not queue:
            break
        draft = queue.pop(0)
        if draft in seen:
            continue
        seen.add(draft)
        try:
            inputs = maker.inputs(draft)
            run(inputs)
            return inputs
        except Exception as error:  # whatever a foreign forward pass raises
            first = first or f"{type(error).__name__}: {_first_line(error)}"
            queue[:0] = maker.repairs(draft, str(error))
            queue += maker.resized(draft, str(error))
    raise RoleError(
        f"No inputs for {type(model).__name__} could be generated ({first}). Pass example_inputs=, a tuple of "
        "positional or a dict of keyword arguments that its forward pass accepts (small ones do)."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no message"


IDS = re.compile(r"(\w+_)?input_ids|attention_ids|input_tokens")
IMAGES = re.compile(r"(\w+_)?pixel_values(_\w+)?|images?|pixel_values0")
SOUND = re.compile(r"(audio_)?input_(values|features)|audio_values|waveform|spectrogram|input_audio_embeds")
AUDIO_MASKS = re.compile(r"(input_features?|feature|audio)_(attention_)?mask")
COMPANIONS = re.compile(
    r"(image_)?grid_(thw|hw)|image_sizes|merge_sizes|mm_token_type_ids|bbox|spatial_shapes|pixel_attention_mask|"
    + AUDIO_MASKS.pattern
)
SERIES = re.compile(r"past_values|past_time_features|past_observed_mask|values|inputs_embeds|states|actions")


class Maker:
    """Knows a model's config and signature, and makes the arguments of a draft."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.config: Any = getattr(model, "config", None)
        self.seed = seed
        self.parameters = dict(inspect.signature(model.forward).parameters)
        self.main = getattr(model, "main_input_name", "input_ids")
        if {"grid_thw", "grid_hw"} & set(self.parameters) and "hidden_states" in self.parameters:
            self.media: tuple[str, ...] = ("hidden_states",)  # a vision tower's name for patches in a row
        else:
            self.media = tuple(name for name in self.parameters if IMAGES.fullmatch(name) or SOUND.fullmatch(name))
        self.batch = 4 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1

    # What is given

    def drafts(self, *, whole: bool) -> Iterator[Draft]:
        """Most arguments first, so that every tower is reached, then fewer; text alone first where it will do."""
        takes_media = bool(self.media)
        choices = dict.fromkeys(self._choices())
        if not whole:  # what takes media as well has been tried; text alone comes first
            choices = dict.fromkeys(sorted(choices, key=lambda names: bool(set(names) & set(self.media))))
        for names in choices:
            if whole and takes_media and not set(names) & set(self.media):
                continue
            images = range(IMAGE_LAYOUTS) if any(self._is_image(n) for n in names) else (0,)
            sounds = range(SOUND_LAYOUTS) if any(SOUND.fullmatch(n) for n in names) else (0,)
            for image, sound in itertools.product(images, sounds):
                yield Draft(names, image, sound)

    def _choices(self) -> Iterator[tuple[str, ...]]:
        required = [n for n, p in self.parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        media = sorted(self.media, key=lambda name: "video" in name)
        ids = [n for n in self.parameters if IDS.fullmatch(n)]
        main = [self.main] if self.main in self.parameters else []
        companions = [n for n in self.parameters if COMPANIONS.fullmatch(n)]
        single = [[*required, *ids, medium, *self._beside(medium, companions)] for medium in media]
        for names in (
            *single[:1],
            *([*required, *ids, medium] for medium in media[:1]),
            [*required, *ids, *media, *companions],
            *single[1:],
            *([*required, *ids, medium] for medium in media[1:]),
            [*required, *main, *companions],
            [*required, *main],
            [*required, *ids],
            [*required, *media],
            required,
        ):
            if names:
                yield tuple(sorted(set(names), key=list(self.parameters).index))

    def _beside(self, medium: str, companions: Sequence[str]) -> list[str]:
        """What belongs to an image, or to a sound, or to both."""
        heard = bool(SOUND.fullmatch(medium))
        return [n for n in companions if bool(AUDIO_MASKS.fullmatch(n)) == heard or n == "mm_token_type_ids"]

    def repairs(self, draft: Draft, message: str) -> Iterator[Draft]:
        """What a failure's words suggest: an argument that is missing, or a number of placeholder tokens."""
        words = re.findall(r"\w+", message)
        missing = [n for n in self.parameters if n in words and n not in draft.names and self._can_make(n)]
        if missing:
            yield replace(draft, names=tuple(sorted({*draft.names, *missing}, key=list(self.parameters).index)))
        if "token" in message.lower() or "placeholder" in message.lower():
            named = [int(w) for w in words if w.isdigit()]
            widths = {v for value in self._all("hidden_size") for v in _ints(value)}
            entries = [count // width for count in named for width in widths if count % width == 0]
            for count in dict.fromkeys([*named, *entries]):
                if 0 < count <= MOST_PLACEHOLDERS and count != draft.placeholders:
                    yield replace(draft, placeholders=count)

    def resized(self, draft: Draft, message: str) -> Iterator[Draft]:
        """The same with an image's side, or a spectrogram's bins, that a failure named."""
        media = set(draft.names) & set(self.media)
        for number in dict.fromkeys(int(w) for w in re.findall(r"\d+", message)[:6]):
            if media and not draft.size and 8 <= number <= MOST_PLACEHOLDERS * 2:
                yield replace(draft, size=number)

    def _is_image(self, name: str) -> bool:
        return name in self.media and not SOUND.fullmatch(name)

    def _can_make(self, name: str) -> bool:
        return any(p.fullmatch(name) for p in (IDS, IMAGES, SOUND, COMPANIONS, SERIES)) or name.endswith("mask")

    # What it is made of

    def inputs(self, draft: Draft) -> Inputs:
        """The arguments of a draft, in the signature's order."""
        return {name: self._make(name, draft) for name in draft.names}

    def _make(self, name: str, draft: Draft) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        if self._is_image(name):
            return torch.randn(self._image_shape(draft), generator=generator)
        if SOUND.fullmatch(name):
            return torch.randn(self._sound_shape(draft), generator=generator)
        if name in ("grid_thw", "image_grid_thw"):
            return torch.tensor([[1, *[2 * self.size("spatial_merge_size", 1)] * 2]])
        if name in ("grid_hw", "image_grid_hw"):
            return torch.tensor([[2 * self.size("spatial_merge_size", 1)] * 2])
        if name == "image_sizes":
            return torch.tensor([[self._side(), self._side()]])
        if name == "spatial_shapes":
            return torch.tensor([[2, 2]])
        if name == "pixel_attention_mask":
            shape = self._image_shape(draft)
            return torch.ones(shape[:2] if len(shape) == 3 else (shape[0], *shape[-2:]), dtype=torch.long)
        if AUDIO_MASKS.fullmatch(name):
            shape = self._sound_shape(draft)
            frames = shape[-2] if len(shape) > 2 and draft.size == shape[-1] else max(shape[1:])
            return torch.ones(self.batch, frames, dtype=torch.long)
        if name == "merge_sizes":
            return torch.tensor([self.size("spatial_merge_size", 1)])
        return self._of_tokens(name, draft, generator)

    def _of_tokens(self, name: str, draft: Draft, generator: torch.Generator) -> Any:
        ids = self._ids(draft, generator, decoder=name.startswith("decoder"))
        if IDS.fullmatch(name):
            return ids
        if name == "mm_token_type_ids":
            return torch.isin(ids, torch.tensor(self._placeholder_ids() or [-1])).long()
        if name == "bbox":
            return torch.tensor([0, 0, 4, 4]).expand(self.batch, ids.shape[1], 4).contiguous()
        if name.endswith("mask"):
            return torch.ones_like(ids)
        if name in ("inputs_embeds", "hidden_states", "query_embeds"):
            return torch.randn(self.batch, TOKENS, self.size("hidden_size", 64), generator=generator)
        if name.endswith(("_ids", "labels")):
            return torch.zeros_like(ids)
        length = self.size("context_length", TOKENS)
        channels = self.size("num_input_channels", 0)
        shape = (self.batch, length, channels) if channels else (self.batch, length)
        return torch.randn(shape, generator=generator)

    def _ids(self, draft: Draft, generator: torch.Generator, *, decoder: bool) -> Tensor:
        """Ordinary tokens, with the placeholders of a medium in their middle."""
        special = {v for f in fields_of(self.config) if f.kind is Kind.TOKEN_ID for v in _ints(f.value)}
        vocabulary = min((v for f in self._all("vocab_size") for v in _ints(f) if v > 8), default=64)
        ordinary = torch.tensor([i for i in range(1, vocabulary) if i not in special] or [0])
        ids = ordinary[torch.randint(len(ordinary), (self.batch, TOKENS), generator=generator)]
        holders = self._placeholder_ids()
        if decoder or not draft.placeholders or not holders:
            return ids
        medium = holders[0]
        middle = torch.full((self.batch, draft.placeholders), medium)
        return torch.cat([ids[:, : TOKENS // 2], middle, ids[:, TOKENS // 2 :]], dim=1)

    def _placeholder_ids(self) -> list[int]:
        names = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index", "media_token_id")
        found = [value for name in names for value in self._all(name) if isinstance(value, int)]
        return list(dict.fromkeys(found))

    def _image_shape(self, draft: Draft) -> tuple[int, ...]:
        """Images, one image in a list, clips, and patches in a row; then at other sizes."""
        channels = self.size("num_channels", self.size("in_channels", self.size("in_chans", 3)))
        side, patch = draft.size or self._side(), self.size("patch_size", 14)
        merge, frames = 2 * self.size("spatial_merge_size", 1), self.size("temporal_patch_size", 1)
        clip = self.size("num_frames", self.size("frames_per_clip", 2))
        layouts = (
            (self.batch, channels, side, side),
            (merge * merge, channels * frames * patch * patch),
            (self.batch, 1, channels, side, side),
            (self.batch, clip, channels, side, side),
            (self.batch, channels, clip, side, side),
            (1, merge * merge, channels * frames * patch * patch),
            (self.batch, channels, 32, 32),
            (self.batch, channels, 64, 64),
            (self.batch, channels, 224, 224),
            (self.batch, 1, side, side),
            (self.batch, 2, channels, 64, 64),
        )
        return layouts[draft.image]

    def _side(self) -> int:
        return self.size("image_size", self.size("img_size", 32))

    def _sound_shape(self, draft: Draft) -> tuple[int, ...]:
        """Spectrograms with either dimension first, and waves."""
        names = ("num_mel_bins", "n_mel_bins", "num_mels", "feature_size", "input_feat_per_channel", "input_dim",
                 "input_size")  # fmt: skip
        bins = draft.size or next((self.size(name, 0) for name in names if self.size(name, 0)), 80)
        frames = 2 * self.size("max_source_positions", 16)
        length = self.size("max_length", 64)
        layouts = (
            (self.batch, bins, frames),
            (self.batch, frames, bins),
            (self.batch, 1600),
            (self.batch, 1, 1600),
            (self.batch, 64, bins),
            (self.batch, bins, 64),
            (self.batch, length, bins),
            (self.batch, 1, length, bins),
            (self.batch, 16000),
            (self.batch, 1, 3840),
        )
        return layouts[draft.sound]

    def size(self, name: str, default: int) -> int:
        """The first field of this name, in the config of what is seen or heard before others."""
        for value in self._all(name):
            numbers = _ints(value)
            if numbers and numbers[-1] > 0:
                return numbers[-1]
        return default

    def _all(self, name: str) -> list[Any]:
        found = list(_named(self.config, name))
        return [value for path, value in sorted(found, key=lambda item: not re.search("vision|audio|image", item[0]))]


IMAGE_LAYOUTS = 11
SOUND_LAYOUTS = 10


def _named(config: Any, name: str, path: str = "") -> Iterator[tuple[str, Any]]:
    items = config if isinstance(config, Mapping) else vars(config) if config is not None else {}
    if name in items and items[name] is not None:
        yield path, items[name]
    for key, value in items.items():
        if hasattr(value, "to_dict"):
            yield from _named(value, name, f"{path}.{key}")


def _ints(value: Any) -> list[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
