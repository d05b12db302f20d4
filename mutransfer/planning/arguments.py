"""The arguments of a model's forward pass, made as large as its config and its documentation say they are."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mutransfer.planning.failures import Content, Form
from mutransfer.planning.fields import Kind, fields_of

TOKENS = 8
"""Positions a step: far fewer than the smallest width, since the tables assume full alignment."""

IDS = re.compile(r"(\w+_)?input_ids|attention_ids|input_tokens")
IMAGES = re.compile(r"(\w+_)?pixel_values(_\w+)?|images?|pixel_values0")
SOUND = re.compile(r"(audio_)?input_(values|features)|audio_(values|mel)|waveform|spectrogram|input_audio_embeds")
AUDIO_MASKS = re.compile(r"(input_features?|feature|audio|audio_mel)_(attention_)?mask")
COMPANIONS = re.compile(
    r"(image_)?grid_(thw|hw)|image_sizes|merge_sizes|mm_token_type_ids|bbox|spatial_shapes|pixel_attention_mask|"
    + AUDIO_MASKS.pattern
)
SERIES = re.compile(r"past_values|past_time_features|past_observed_mask|values|inputs_embeds")


@dataclass(frozen=True)
class Draft:
    """One way to call a model.

    Attributes:
        names: the arguments that are given.
        image, sound: which of the usual layouts.
        placeholders: how many tokens stand for each image or sound in the ids.
        size: an image's side or a spectrogram's bins, where a failure named it; 0 for the config's.
        forms: sizes and contents of single arguments, where a failure named them.
    """

    names: tuple[str, ...]
    image: int = 0
    sound: int = 0
    placeholders: int = 0
    size: int = 0
    forms: tuple[tuple[str, Form], ...] = ()


class Maker:
    """Knows a model's config, signature and documentation, and makes the arguments of a draft."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.config: Any = getattr(model, "config", None)
        self.seed = seed
        self.parameters = dict(inspect.signature(model.forward).parameters)
        self.words = inspect.getdoc(model.forward) or ""
        main = getattr(model, "main_input_name", "input_ids")
        self.main: list[str] = list(main) if isinstance(main, list | tuple) else [main]
        if {"grid_thw", "grid_hw"} & set(self.parameters) and "hidden_states" in self.parameters:
            self.media: tuple[str, ...] = ("hidden_states",)  # a vision tower's name for patches in a row
        else:
            self.media = tuple(name for name in self.parameters if IMAGES.fullmatch(name) or SOUND.fullmatch(name))
        self.batch = 4 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1

    def inputs(self, draft: Draft) -> dict[str, Any]:
        """The arguments of a draft, in the signature's order."""
        forms = dict(draft.forms)
        return {name: self._of_form(name, forms[name]) if name in forms else self._make(name, draft)
                for name in draft.names}  # fmt: skip

    def is_image(self, name: str) -> bool:
        """Whether an argument is an image or a clip."""
        return name in self.media and not SOUND.fullmatch(name)

    def is_tensor(self, name: str) -> bool:
        """Whether the signature says that an argument is a tensor, or nothing."""
        kind = self.parameters[name].annotation
        return kind is inspect.Parameter.empty or "Tensor" in str(kind)

    def documented(self, name: str) -> Form | None:
        """What the documentation of the forward pass says about an argument; None where it says no sizes."""
        found = re.search(
            rf"\b{name}\b[^\n]*?(\w*)Tensor`?[^\n]{{0,12}}of shape[^\n]{{0,3}}[(\[]([^)\]]*)[)\]]", self.words
        )
        if found is None:
            return None
        sizes = [word.strip("` ").removeprefix("config.") for word in found[2].split(",")]
        return Form(tuple(self._size_of(size) for size in sizes if size), self._content(name, found[1]))

    def _size_of(self, word: str) -> int:
        """A number, the batch, a size that the config has under this name, a length; or a product of these."""
        if "*" in word:
            return math.prod(self._size_of(factor.strip().removeprefix("config.")) for factor in word.split("*"))
        if word.isdigit():
            return int(word)
        return self.batch if "batch" in word else self.size(word, TOKENS)

    def _content(self, name: str, kind: str = "") -> Content:
        words = kind + str(self.parameters[name].annotation)
        whole = "Long" in words or "Int" in words
        return Content.TRUTH if "Bool" in words else Content.WHOLE if whole else Content.REAL

    def _of_form(self, name: str, form: Form) -> Tensor:
        """Noise, ordinary tokens, zeros for other whole numbers; a mask of ones, which leaves nothing out."""
        generator = torch.Generator().manual_seed(self.seed)
        if form.content is Content.REAL:
            return torch.randn(form.shape, generator=generator)
        if form.content is Content.SHARE:
            return torch.rand(form.shape, generator=generator)
        if form.content is Content.TRUTH or name.endswith("mask"):
            return torch.ones(form.shape, dtype=torch.bool if form.content is Content.TRUTH else torch.long)
        if IDS.fullmatch(name):
            return self._tokens(form.shape, generator)
        return torch.zeros(form.shape, dtype=torch.long)

    def _make(self, name: str, draft: Draft) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        if self.is_image(name):
            return torch.randn(self._image_shape(draft), generator=generator)
        if SOUND.fullmatch(name):
            return torch.randn(self._sound_shape(draft), generator=generator)
        if name in ("grid_thw", "image_grid_thw"):
            return torch.tensor([[1, *[2 * self._merge()] * 2]])
        if name in ("grid_hw", "image_grid_hw"):
            return torch.tensor([[2 * self._merge()] * 2])
        if name == "image_sizes":
            return torch.tensor([[self._side(), self._side()]])
        if name == "target_sizes":
            return torch.tensor([[2 * self._merge()] * 2])
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
            return torch.tensor([self._merge()])
        return self._of_tokens(name, draft, generator)

    def _of_tokens(self, name: str, draft: Draft, generator: torch.Generator) -> Any:
        ids = self._ids(draft, generator, decoder=name.startswith("decoder"))
        if IDS.fullmatch(name):
            return ids
        if name == "mm_token_type_ids":
            return torch.isin(ids, torch.tensor(self.placeholder_ids() or [-1])).long()
        if name == "bbox":
            return torch.tensor([0, 0, 4, 4]).expand(self.batch, ids.shape[1], 4).contiguous()
        documented = self.documented(name)
        if documented is not None and len(documented.shape) > 2 and documented.content is not Content.REAL:
            return self._of_form(name, documented)
        if name.endswith("mask"):
            return torch.ones_like(ids)
        if name in ("inputs_embeds", "hidden_states", "query_embeds"):
            return torch.randn(self.batch, TOKENS, self.size("hidden_size", 64), generator=generator)
        if name.endswith(("_ids", "labels")):
            return torch.zeros_like(ids)
        if documented is not None and not SERIES.fullmatch(name):
            return self._of_form(name, documented)
        length = self.size("context_length", TOKENS)
        channels = self.size("num_input_channels", 0)
        shape = (self.batch, length, channels) if channels else (self.batch, length)
        return torch.randn(shape, generator=generator)

    def _ids(self, draft: Draft, generator: torch.Generator, *, decoder: bool) -> Tensor:
        """Ordinary tokens, with the placeholders of a medium in their middle."""
        ids = self._tokens((self.batch, TOKENS), generator)
        holders = self.placeholder_ids()
        if decoder or not draft.placeholders or not holders:
            return ids
        medium = holders[0]
        middle = torch.full((self.batch, draft.placeholders), medium)
        return torch.cat([ids[:, : TOKENS // 2], middle, ids[:, TOKENS // 2 :]], dim=1)

    def _tokens(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return self._ordinary[torch.randint(len(self._ordinary), shape, generator=generator)]

    @functools.cached_property
    def _ordinary(self) -> Tensor:
        """The ids of no special token."""
        special = {v for f in fields_of(self.config) if f.kind is Kind.TOKEN_ID for v in ints(f.value)}
        vocabulary = min((v for f in self.all_named("vocab_size") for v in ints(f) if v > 8), default=64)
        return torch.tensor([i for i in range(1, vocabulary) if i not in special] or [0])

    def placeholder_ids(self) -> list[int]:
        names = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index", "media_token_id")
        found = [value for name in names for value in self.all_named(name) if isinstance(value, int)]
        return list(dict.fromkeys(found))

    def _image_shape(self, draft: Draft) -> tuple[int, ...]:
        """Images, one image in a list, clips, and patches in a row; then at other sizes."""
        channels = self.size("num_channels", self.size("in_channels", self.size("in_chans", 3)))
        side, patch = draft.size or self._side(), self.size("patch_size", 14)
        merge, frames = 2 * self._merge(), self.size("temporal_patch_size", 1)
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
            (1, channels, patch, patch * merge * merge),
            (merge * merge, channels, patch, patch),
        )
        return layouts[draft.image]

    def _merge(self) -> int:
        """A side of the square of patches that becomes one token."""
        return self.size("spatial_merge_size", self.size("pooling_kernel_size", 1))

    def _side(self) -> int:
        return self.size("image_size", self.size("img_size", 32))

    def _sound_shape(self, draft: Draft) -> tuple[int, ...]:
        """Spectrograms with either dimension first, and waves."""
        names = ("num_mel_bins", "n_mel_bins", "num_mels", "feature_size", "input_feat_per_channel", "input_feat_size",
                 "input_dim", "input_size")  # fmt: skip
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
        for value in self.all_named(name):
            numbers = ints(value)
            if numbers and numbers[-1] > 0:
                return numbers[-1]
        return default

    def all_named(self, name: str) -> list[Any]:
        found = list(_named(self.config, name))
        return [value for path, value in sorted(found, key=lambda item: not re.search("vision|audio|image", item[0]))]


IMAGE_LAYOUTS = 13
SOUND_LAYOUTS = 10


def _named(config: Any, name: str, path: str = "") -> Iterator[tuple[str, Any]]:
    items = config if isinstance(config, Mapping) else vars(config) if config is not None else {}
    if name in items and items[name] is not None:
        yield path, items[name]
    for key, value in items.items():
        if hasattr(value, "to_dict"):
            yield from _named(value, name, f"{path}.{key}")


def ints(value: Any) -> list[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
