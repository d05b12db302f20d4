"""A model and a data set that do not fit are told apart by a few examples, in terms of what the user has chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from mutransfer.errors import ConfigError
from mutransfer.train.data import Data, build_data
from mutransfer.train.fit import check_fit

TOKENS = {"name": "synthetic", "task": "tokens", "batch_size": 4, "seq_len": 8, "vocab_size": 50}
DIGITS = {"name": "digits", "batch_size": 4}
NUMBERS = {"name": "synthetic", "task": "regression", "batch_size": 4, "shape": [32], "outputs": 3}


class Decoder(nn.Module):
    """Logits for every token, by default as many as there are tokens."""

    def __init__(self, vocabulary: int = 50, logits: int = 50) -> None:
        super().__init__()
        self.embedding, self.readout = nn.Embedding(vocabulary, 16), nn.Linear(16, logits)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.readout(self.embedding(tokens))  # type: ignore[no-any-return]


class Returns(nn.Module):
    """A linear model whose output goes through a function of the user's."""

    def __init__(self, inputs: int, outputs: int, last: Callable[[torch.Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(inputs, outputs), last

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.linear(x))


def config(data: Mapping[str, Any], **model: Any) -> dict[str, Any]:
    model = {"name": "factory", "path": "mine:make", **model}
    return {"model": model, "data": data, "precision": {"name": "fp32"}, "device": "cpu"}


def build(data: Mapping[str, Any]) -> Data:
    return build_data(data, {"name": "factory"})


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (Decoder(), TOKENS),
        (Decoder(64, 64), TOKENS),  # a padded vocabulary
        (Returns(64, 10), DIGITS),
        (Returns(32, 3), NUMBERS),
    ],
)
def test_a_model_that_fits_its_data_passes(model: nn.Module, data: dict[str, Any]) -> None:
    check_fit(model, build(data), config(data))


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (Decoder(logits=20), TOKENS, r"returned a tensor of shape \(2, 8, 20\) .*logits of shape \(2, 8, 50\) is exp"),
        (Decoder(vocabulary=49), TOKENS, r"token ids up to 49, the model's forward pass failed \(IndexError"),
        (Returns(64, 9), DIGITS, r"\(2, 9\) for 2 examples, and a tensor of logits of shape \(2, 10\)"),
        (Returns(63, 10), DIGITS, r"on inputs of shape \(2, 64\) and type torch.float32 .*RuntimeError: mat1"),
        (Returns(64, 10, lambda y: {"logits": y}), DIGITS, "returned a dict"),
        (Returns(64, 10, lambda y: y[0]), DIGITS, r"returned a tensor of shape \(10,\)"),
        (Returns(32, 1), NUMBERS, r"\(2, 1\) .* shape \(2, 3\), the targets' own"),
        (Returns(32, 3, lambda y: y.unsqueeze(1)), NUMBERS, r"\(2, 1, 3\) .* shape \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_said_with_both_sides(model: nn.Module, data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_fit(model, build(data), config(data))
    assert str(caught.value).startswith(f"model.path=mine:make and data={data['name']} do not fit: ")


def test_a_model_without_a_path_is_called_by_its_name() -> None:
    wrong = {"model": {"name": "mlp"}, "data": DIGITS, "precision": {"name": "fp32"}, "device": "cpu"}
    with pytest.raises(ConfigError, match=r"^model=mlp and data=digits do not fit"):
        check_fit(Returns(64, 9), build(DIGITS), wrong)
