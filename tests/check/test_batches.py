"""The batch that a seed repeats: its form is found once a size, its contents are the seed's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mutransfer.check import batches
from mutransfer.check.batches import Batches


@pytest.fixture
def guessed(monkeypatch):
    """The widths of the models whose inputs were guessed, one for each time."""
    seen, guess = [], batches.find_inputs

    def counted(model, given):
        seen.append(model.in_features)
        return guess(model, given)

    monkeypatch.setattr(batches, "find_inputs", counted)
    return seen


def test_inputs_are_guessed_once_a_size(guessed):
    made = Batches(None, None)
    drawn = {(n, seed): made.of(nn.Linear(n, 2), n, seed).inputs[0] for seed in range(3) for n in (4, 8)}
    assert guessed == [4, 8]
    assert {tuple(drawn[n, 0].shape)[1] for n in (4, 8)} == {4, 8}
    assert not torch.equal(drawn[4, 0], drawn[4, 1])


def test_a_seed_has_one_batch():
    first, again = (Batches(None, None).of(nn.Linear(4, 2), 4, 7).inputs[0] for _ in range(2))
    assert torch.equal(first, again)


def test_given_batches_are_used_again_from_the_start(guessed):
    made = Batches(["a", "b"], None)
    assert [made.of(nn.Linear(4, 2), 4, seed) for seed in range(3)] == ["a", "b", "a"]
    assert guessed == []


def test_generated_inputs_have_the_precision_of_the_model():
    assert Batches(None, None).of(nn.Linear(4, 2).double(), 4, 0).inputs[0].dtype == torch.float64
