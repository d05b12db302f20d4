"""What torch's words about a failed forward pass say of its arguments: each failure is torch's own, made here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mutransfer.planning.failures import LARGEST, Content, Form, other_forms


def words(run: Callable[[], object]) -> str:
    with pytest.raises((RuntimeError, ValueError, IndexError)) as failure:
        run()
    return f"{failure.type.__name__}: {failure.value}"


def unpacked(tensor: Tensor) -> int:
    batch, _frames, _channels, _side = tensor.shape
    return batch


@pytest.mark.parametrize(
    ("given", "run", "wanted"),
    [
        ((2, 8), lambda x: F.linear(x, torch.ones(5, 17)), (2, 17)),
        ((2, 8), lambda x: F.linear(x[:, 2:], torch.ones(5, 17)), (2, 19)),
        ((2, 8), lambda x: F.linear(x.repeat(1, 2), torch.ones(5, 32)), (2, 16)),
        ((2, 8, 9), lambda x: F.conv1d(x, torch.ones(4, 6, 3)), (2, 6, 9)),
        ((2, 9), lambda x: F.conv1d(x[:, None], torch.ones(4, 6, 3)), (2, 6, 9)),
        ((2, 8), lambda x: F.layer_norm(x, (5,)), (2, 5)),
        ((2, 8), lambda x: x + torch.ones(2, 33), (2, 33)),
        ((2, 8), lambda x: x.reshape(2, -1, 32), (2, 32)),
        ((2, 3, 8), unpacked, (2, 1, 3, 8)),
        ((2, 1, 3, 8, 8), lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3)), (2, 3, 8, 8)),
        ((2, 1, 8), lambda x: F.conv1d(x, torch.ones(4, 1, 30)), (2, 1, 32)),
        ((1, 4, 8), lambda x: x + torch.ones(9, 8), (1, 9, 8)),
        ((1, 4, 8), lambda x: torch.ones(1, 9, 8).add_(x), (1, 9, 8)),
        ((1, 4, 8), lambda x: x @ torch.ones(1, 5, 3), (1, 4, 5)),
        ((2, 4, 8), lambda x: torch.cat([torch.ones(2, 6, 9), x], 1), (2, 4, 9)),
        ((2, 4, 8, 8), lambda x: F.batch_norm(x, torch.ones(16), torch.ones(16)), (2, 16, 8, 8)),
        ((3, 2, 8), lambda x: torch.nn.LSTM(9, 4)(x), (3, 2, 9)),
    ],
)
@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode])
def test_the_size_that_a_failure_asks_for_is_offered(
    given: tuple[int, ...], run: Callable[[Tensor], object], wanted: tuple[int, ...], mode: Callable[[], Any]
) -> None:
    """Fake tensors fail in words of their own."""
    with mode():
        message = words(lambda: run(torch.ones(given)))
    assert ("x", Form(wanted)) in list(other_forms({"x": Form(given)}, message))


def test_sizes_that_fit_by_broadcasting_are_not_taken_for_the_ones_that_did_not() -> None:
    with FakeTensorMode():
        message = words(lambda: torch.ones(1, 4, 8) + torch.ones(9, 8))
    assert ("x", Form((1, 9, 8))) in list(other_forms({"x": Form((1, 4, 8))}, message))
    assert ("x", Form((9, 4, 8))) not in list(other_forms({"x": Form((1, 4, 8))}, message))


def test_a_length_becomes_a_multiple_of_what_the_words_name() -> None:
    offered = list(other_forms({"x": Form((1, 128, 32))}, "ValueError: must be a multiple of 100, but got 32."))
    assert ("x", Form((1, 128, 100))) in offered


def test_indices_become_whole_numbers_and_masks_true_and_false() -> None:
    table = torch.ones(4, 2)
    message = words(lambda: F.embedding(torch.ones(1, 3), table))
    assert ("x", Form((1, 3), Content.WHOLE)) in list(other_forms({"x": Form((1, 3))}, message))
    asked = other_forms({"m": Form((1, 3), Content.WHOLE)}, "RuntimeError: masked_fill_ only supports boolean masks")
    assert ("m", Form((1, 3), Content.TRUTH)) in list(asked)
    message = words(lambda: F.embedding(-torch.ones(1, 3).long(), table))
    assert ("x", Form((1, 3), Content.SHARE)) in list(other_forms({"x": Form((1, 3))}, message))


def test_nothing_is_offered_where_the_words_say_nothing_of_a_size() -> None:
    assert list(other_forms({"x": Form((2, 8))}, "RuntimeError: the moon is full")) == []


def test_no_form_is_offered_twice_or_is_huge_or_is_the_one_that_failed() -> None:
    forms = {"x": Form((2, 8)), "y": Form((2, 8))}
    message = words(lambda: F.linear(torch.ones(2, 8), torch.ones(5, LARGEST)))
    offered = list(other_forms(forms, message + words(lambda: torch.ones(2, 8) + torch.ones(2, 9))))
    assert len(offered) == len(set(offered)) > 0
    assert not set(offered) & set(forms.items())
    assert all(torch.Size(form.shape).numel() <= LARGEST for _, form in offered)
