"""A schedule that sets one learning rate for all groups is found before it does, and the remedy is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

import mutransfer as mt
from mutransfer.errors import ConfigError


@pytest.fixture
def optimizer(plan, decoder):
    return plan.make_optimizer(decoder, lr=2**-8)


def _transformers(name):
    def make(optimizer):
        from transformers import get_scheduler

        own = {"min_lr_rate": 0.1} if name == "cosine_with_min_lr" else {}
        return get_scheduler(name, optimizer, 10, 100, scheduler_specific_kwargs=own)

    return make


KEEPS = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warmup from zero": lambda o: schedulers.LambdaLR(o, lambda step: min(1.0, step / 10)),
    "step": lambda o: schedulers.StepLR(o, 3),
    "linear": schedulers.LinearLR,
    "polynomial": lambda o: schedulers.PolynomialLR(o, 50, 2.0),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.99),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 100),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 10, 2),
    "plateau": schedulers.ReduceLROnPlateau,
    "one cycle, lists": lambda o: schedulers.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=20),
    "warmup, then cosine": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=5), schedulers.CosineAnnealingLR(o, 50)], [5]
    ),
    "transformers' linear": _transformers("linear"),
    "transformers' cosine above a floor": _transformers("cosine_with_min_lr"),
}
BREAKS = {
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 10_000, eta_min=1e-5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 10, eta_min=1e-5),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1e-3, total_steps=20),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-4, 1e-3, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, min_lr=1e-5, patience=100),
    "LambdaLR": lambda o: schedulers.LambdaLR(
        o, [lambda step, k=k: 1 / (1 + k * step) for k in range(len(o.param_groups))]
    ),
}


@pytest.mark.parametrize("name", sorted(KEEPS))
def test_schedules_that_multiply_pass(name, optimizer):
    mt.check_schedule(KEEPS[name](optimizer))


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_schedules_that_set_one_number_are_named_with_the_remedy(name, optimizer):
    with pytest.raises(ConfigError, match=f"{name} does not keep the ratios.*Use .*LambdaLR"):
        mt.check_schedule(BREAKS[name](optimizer))


def test_one_behind_a_warmup_of_any_length_is_found(optimizer):
    warmup = schedulers.LinearLR(optimizer, 0.1, total_iters=5000)
    cosine = schedulers.CosineAnnealingLR(optimizer, 10_000, eta_min=1e-5)
    with pytest.raises(ConfigError, match="CosineAnnealingLR"):
        mt.check_schedule(schedulers.SequentialLR(optimizer, [warmup, cosine], [5000]))


def test_ratios_that_are_lost_already_are_read_off_the_optimizer(optimizer):
    mt.check_schedule(optimizer)
    BREAKS["OneCycleLR"](optimizer)
    with pytest.raises(ConfigError, match="A schedule does not keep the ratios"):
        mt.check_schedule(optimizer)


@pytest.mark.parametrize("name", ["cosine", "one cycle, lists", "plateau"])
def test_looking_ahead_changes_nothing(name, optimizer):
    schedule = KEEPS[name](optimizer)
    before = copy.deepcopy((schedule.state_dict(), [g["lr"] for g in optimizer.param_groups]))
    mt.check_schedule(schedule)
    assert (schedule.state_dict(), [g["lr"] for g in optimizer.param_groups]) == before


def test_learning_rates_in_tensors_are_left_alone(plan, decoder):
    optimizer = plan.make_optimizer(decoder, lr=torch.tensor(2**-8))
    mt.check_schedule(KEEPS["cosine"](optimizer))
    assert sorted({float(g["lr"]) for g in optimizer.param_groups})[-1] == 2**-8
    with pytest.raises(ConfigError, match="CosineAnnealingLR"):
        mt.check_schedule(schedulers.CosineAnnealingLR(optimizer, 50, eta_min=1e-4))


def test_the_bound_method_of_a_model_is_a_schedule_too(optimizer):
    """Nothing that a schedule refers to is copied."""

    class Owner(nn.Module):
        def factor(self, step: int) -> float:
            return 1 / (1 + step)

        def __deepcopy__(self, memo):
            raise AssertionError("a whole model would be copied")

    mt.check_schedule(schedulers.LambdaLR(optimizer, Owner().factor))


def test_anything_else_is_called_no_schedule():
    with pytest.raises(ConfigError, match="is no schedule"):
        mt.check_schedule(0.1)
