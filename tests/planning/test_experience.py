"""What one search for inputs teaches the next, at another size of the same model; and which changes lead nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from mutransfer.errors import RoleError
from mutransfer.planning.failures import MOST_POSITIONS, Content, Form, other_forms
from mutransfer.planning.generate import RECALLED, Experience, generate_inputs


class Seeing(nn.Module):
    """Takes an image, but only where its heads are wide enough."""

    def __init__(self, head_dim: int, words: str = "The size of tensor a ({}) must match the size of tensor b (32)"):
        super().__init__()
        self.config = PretrainedConfig(image_size=16)
        self.stem = nn.Identity()
        self.head_dim, self.words, self.runs = head_dim, words, 0

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        self.runs += 1
        if self.head_dim < 32:
            raise RuntimeError(self.words.format(self.head_dim))
        hidden: Tensor = self.stem(pixel_values)
        return hidden


def search(model: Seeing, experience: Experience | None) -> dict[str, Any]:
    return generate_inputs(model, lambda inputs: model(**inputs), experience=experience)


def runs_of_a_second(second: Seeing, experience: Experience | None) -> int:
    with pytest.raises(RoleError, match="No inputs"):
        search(Seeing(8), experience)
    with pytest.raises(RoleError, match="No inputs"):
        search(second, experience)
    return second.runs


def test_a_size_that_fails_as_the_last_one_is_told_by_a_few_drafts() -> None:
    assert runs_of_a_second(Seeing(12), Experience()) <= RECALLED < runs_of_a_second(Seeing(12), None)


def test_a_size_that_fails_otherwise_is_searched_in_full() -> None:
    other = "expected a batch of {}"
    full = runs_of_a_second(Seeing(12, other), None)
    assert abs(runs_of_a_second(Seeing(12, other), Experience()) - full) <= RECALLED < full


class Sectioned(Seeing):
    """Images fail alike at every size, and farther on; text only where heads are narrow."""

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:  # type: ignore[override]
        self.runs += 1
        if pixel_values is not None:
            self.stem(pixel_values)
            raise RuntimeError("there is no grid")
        if self.head_dim < 32:
            raise RuntimeError(f"split_sizes of 32, not {self.head_dim}")
        return input_ids


def test_one_draft_of_every_way_to_fail_is_recalled() -> None:
    experience = Experience()
    with pytest.raises(RoleError, match="No inputs"):
        search(Sectioned(8), experience)
    assert len({failed.way for failed in experience.failed}) == len(experience.failed) > 1
    assert set(search(Sectioned(64), experience)) == {"input_ids"}


def test_a_size_at_which_the_model_runs_is_found_after_others_that_failed() -> None:
    experience = Experience()
    with pytest.raises(RoleError, match="No inputs"):
        search(Seeing(8), experience)
    assert search(Seeing(64), experience)["pixel_values"].shape == search(Seeing(64), None)["pixel_values"].shape


def test_what_was_accepted_comes_first() -> None:
    experience = Experience()
    own = search(Seeing(64), experience)
    again = Seeing(128)
    assert search(again, experience).keys() == own.keys()
    assert again.runs == 1


class Reading(nn.Module):
    """Fails at a size of its own, whatever it is given; its words name the length of what it is given, or not."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.config = PretrainedConfig(vocab_size=16)
        self.named, self.longest = named, 0

    def forward(self, input_ids: Tensor) -> Tensor:
        self.longest = max(self.longest, input_ids.shape[1])
        got, want = (input_ids.shape[1], 2 * input_ids.shape[1]) if self.named else (64, 128)
        raise RuntimeError(f"The size of tensor a ({got}) must match the size of tensor b ({want})")


@pytest.mark.parametrize("named", [False, True])
def test_a_change_after_which_the_same_is_said_is_not_changed_further(named: bool) -> None:
    model = Reading(named=named)
    with pytest.raises(RoleError, match="No inputs"):
        generate_inputs(model, lambda inputs: model(**inputs))
    assert (model.longest > 64) is named


def test_more_positions_than_attention_can_take_are_not_tried() -> None:
    words = "Given groups=1, weight of size [64, 80, 1], expected input[1, 1, 16000] to have 80 channels, but got 1"
    wave = {"input_features": Form((1, 1, 16000), Content.REAL)}
    assert not any(80 in form.shape for _, form in other_forms(wave, words + " channels instead"))
    short = {"input_features": Form((1, 1, MOST_POSITIONS), Content.REAL)}
    assert ("input_features", Form((1, 80, MOST_POSITIONS))) in other_forms(short, words + " channels instead")
    assert torch.Size((1, 80, MOST_POSITIONS)).numel() < 4_000_000
