"""Inputs that a model's forward pass accepts, made from its config and signature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Ovis2Config, PretrainedConfig, T5Config, ViTConfig, WhisperConfig
from transformers.models.auto.modeling_auto import (
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)

from mutransfer.errors import RoleError
from mutransfer.planning.fields import with_values
from mutransfer.planning.generate import TOKENS, generate_inputs
from mutransfer.planning.shrink import Sizes, shrunk_values


def tiny(kind: Any, auto: Any) -> nn.Module:
    config = kind()
    model: nn.Module = auto.from_config(with_values(config, shrunk_values(config, Sizes()))).eval()
    return model


def inputs_of(model: nn.Module, seed: int = 0, **options: Any) -> dict[str, Any]:
    def run(inputs: dict[str, Any]) -> None:
        with torch.no_grad():
            model(**inputs)

    return generate_inputs(model, run, seed, **options)


def test_an_encoder_decoder_is_given_ids_for_both() -> None:
    inputs = inputs_of(tiny(T5Config, AutoModelForSeq2SeqLM))
    assert {"input_ids", "decoder_input_ids"} <= set(inputs)
    assert inputs["input_ids"].shape == (1, TOKENS)


def test_images_are_of_the_configs_size() -> None:
    model = tiny(ViTConfig, AutoModelForImageClassification)
    side = model.config.image_size
    assert inputs_of(model)["pixel_values"].shape == (1, 3, side, side)


def test_sound_is_as_long_as_the_model_wants_it() -> None:
    inputs = inputs_of(tiny(WhisperConfig, AutoModelForSpeechSeq2Seq))
    assert inputs["input_features"].ndim == 3


def test_images_among_text_get_their_placeholder_tokens() -> None:
    model = tiny(Ovis2Config, AutoModelForImageTextToText)
    inputs = inputs_of(model, whole=True)
    assert "pixel_values" in inputs
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) > 0


def test_text_alone_comes_first_where_it_will_do() -> None:
    model = tiny(Ovis2Config, AutoModelForImageTextToText)
    assert "pixel_values" not in inputs_of(model, whole=False)


class Counting(nn.Module):
    """Takes ids and keeps those that it was given."""

    def __init__(self, **special: int) -> None:
        super().__init__()
        self.config = PretrainedConfig(**special)
        self.config.vocab_size = 16

    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids


def test_ids_avoid_every_special_token() -> None:
    special = {"pad_token_id": 3, "bos_token_id": 4, "eos_token_id": 5, "image_token_id": 6}
    drawn = {int(i) for seed in range(40) for i in inputs_of(Counting(**special), seed)["input_ids"].flatten()}
    assert drawn == set(range(1, 16)) - set(special.values())


def test_contents_follow_the_seed() -> None:
    model = Counting()
    first, again, other = (inputs_of(model, seed)["input_ids"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Described(nn.Module):
    """Takes what its documentation says: sizes by words, numbers and fields of its config."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.config.feature_width = 24
        self.read = nn.Linear(24, 4)

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        """Reads features.

        Args:
            features (`torch.FloatTensor` of shape `(batch_size, num_features, feature_width)`): what is read.
            places (`torch.LongTensor` of shape `(batch_size, num_features, 2)`): row and column.
        """
        assert places.dtype == torch.long
        return self.read(features) + places.sum()


def test_arguments_of_unknown_names_are_made_as_the_documentation_says() -> None:
    inputs = inputs_of(Described())
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "features": (1, TOKENS, 24),
        "places": (1, TOKENS, 2),
    }


class Demanding(nn.Module):
    """Says nothing of what it takes, except by failing."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.step = nn.Linear(17, 8), nn.Embedding(4, 8)

    def forward(self, state: Tensor, step: Tensor, reward: Tensor | None = None) -> Tensor:
        out = self.state(state) + self.step(step)
        if reward is None:
            raise ValueError("reward must be given")
        return out + reward[:, None]


def test_sizes_contents_and_arguments_are_learned_from_failures() -> None:
    inputs = inputs_of(Demanding())
    assert inputs["state"].shape[-1] == 17
    assert inputs["step"].dtype == torch.long
    assert "reward" in inputs


def test_a_class_without_a_forward_pass_is_refused_as_such() -> None:
    class Parts(nn.Module):
        pass

    with pytest.raises(RoleError, match=r"Parts has no forward pass of its own"):
        inputs_of(Parts())


def test_what_no_guess_fits_is_refused_with_the_remedy() -> None:
    class Opaque(nn.Module):
        def forward(self, key: Tensor) -> Tensor:
            raise RuntimeError("wrong key")

    with pytest.raises(RoleError, match=r"No inputs for Opaque .*wrong key.*example_inputs="):
        inputs_of(Opaque())


class Segments(nn.Module):
    """Text in segments; beside an image the same argument says where that is."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig(vocab_size=16)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return input_ids if token_type_ids is None else input_ids + token_type_ids


class SegmentsAndImages(Segments):
    def forward(  # type: ignore[override]
        self, input_ids: Tensor, pixel_values: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        return input_ids


def test_text_in_segments_is_given_them() -> None:
    """Parameters of segments (XLNet's) are reached by nothing else."""
    assert set(inputs_of(Segments())) == {"input_ids", "token_type_ids"}
    assert "token_type_ids" not in inputs_of(SegmentsAndImages())


class Session:
    """What a processor makes of a video."""


class Following(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()

    def forward(self, session: Any, pixel_values: Tensor | None = None) -> Tensor | None:
        return pixel_values


Following.forward.__annotations__["session"] = Session


def test_an_object_that_other_code_makes_is_asked_for_at_once() -> None:
    tried: list[object] = []
    with pytest.raises(RoleError, match=r"takes 'session', a Session, .* Pass example_inputs= with one"):
        generate_inputs(Following(), tried.append)
    assert not tried
    assert "input_ids" in inputs_of(Segments())


class Windowed(nn.Module):
    """Images have their places among the ids, and something else is missing then."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig(vocab_size=16, image_token_id=15, image_size=8)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        places = int((input_ids == 15).sum())
        raise ValueError("its window is not set" if places == 1 else f"image tokens: {places}, features: 1")


def test_a_failure_says_what_is_missing_behind_the_placeholders() -> None:
    with pytest.raises(RoleError, match="at best ValueError: its window is not set"):
        inputs_of(Windowed(), whole=True)
