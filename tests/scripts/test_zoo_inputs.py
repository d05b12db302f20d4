"""Inputs that follow the width: hidden states do, images and sound do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from zoo.from_transformers import inputs_follow
from zoo.stages import examine
from zoo.subjects import Small, Subject

from mutransfer.errors import RoleError


class Decoder(nn.Module):
    """Reads hidden states of its own width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.read = nn.Linear(width, width), nn.Linear(width, 10)
        self.width = width

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.read(self.mix(hidden_states).relu())

    def example_inputs(self, batch: int = 1, generator: torch.Generator | None = None) -> tuple[torch.Tensor, ...]:
        return (torch.randn(batch, 8, self.width, generator=generator),)


def hidden(width: int, seed: int = 0) -> dict[str, Any]:
    return {"hidden_states": torch.randn(1, 8, width, generator=torch.Generator().manual_seed(seed))}


def run(width: int) -> Any:
    return lambda given: Decoder(width)(**given)


def test_hidden_states_follow_the_width_of_what_reads_them() -> None:
    assert inputs_follow(hidden(16), lambda: hidden(32), run(32)) is True


def test_what_the_wider_model_takes_as_it_is_does_not_follow() -> None:
    assert inputs_follow(hidden(16), lambda: hidden(32), run(16)) is False


@pytest.mark.parametrize("wider", [hidden(48), {"hidden_states": torch.ones(8, 32)}, {"states": torch.ones(1, 8, 32)}])
def test_what_is_not_twice_as_large_is_something_else(wider: dict[str, Any]) -> None:
    assert inputs_follow(hidden(16), lambda: wider, run(32)) is False


@pytest.mark.parametrize("name", ["pixel_values", "input_features"])
def test_a_model_that_asks_for_more_channels_or_bins_was_made_wider_in_the_wrong_place(name: str) -> None:
    own, wide = ({name: torch.ones(1, channels, 16)} for channels in (16, 32))
    assert inputs_follow(own, lambda: wide, run(32)) is False


def test_inputs_that_cannot_be_generated_do_not_follow() -> None:
    def fails() -> dict[str, Any]:
        raise RoleError("none")

    assert inputs_follow(hidden(16), fails, run(32)) is False


def small(at_width: Any) -> Small:
    return Small(16, Decoder, lambda seed: hidden(16, seed), at_width=at_width)


def test_a_model_is_given_inputs_of_its_own_width() -> None:
    row = examine(Subject("decoder", "test", lambda: small(hidden)), "convert")
    assert row["converted"] is True, row["reason"]
    assert row["roles"]["hidden"] == 1
    assert row["folded_is_explicit"] is True


def test_without_them_it_is_refused_with_a_sentence() -> None:
    row = examine(Subject("decoder", "test", lambda: small(None)), "convert")
    assert row["converted"] is False
    assert "though the base's runs on the same inputs" in row["reason"]
