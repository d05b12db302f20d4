"""A hand-written model keeps its sizes in a config of any kind, and is made again from it."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping

import pytest
import torch
from torch import nn

import mutransfer as mt


class Config:
    def __init__(self, **fields):
        vars(self).update(fields)


class Net(nn.Module):
    """Takes its config alone; of whatever kind it is."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        fields = config if isinstance(config, Mapping) else vars(config)
        width, depth = fields["d_model"], fields["n_layers"]
        self.read, self.out = nn.Linear(8, width), nn.Linear(width, 4)
        self.blocks = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x):
        return self.out(torch.relu(self.blocks(torch.relu(self.read(x)))))


class Wrapped(Net):
    """Takes more than a config."""

    def __init__(self, config, name):
        super().__init__(config)


KINDS = [Config, types.SimpleNamespace, argparse.Namespace, dict]
INPUTS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_of_any_kind_tells_how_the_base_is_made(kind):
    config = kind(d_model=64, n_layers=2)
    plan = mt.plan(Net(config), "mup", base=16, example_inputs=INPUTS)
    assert plan["blocks.0.weight"].lr == pytest.approx(16 / 64)
    assert plan["out.weight"].role == "output"


def test_the_models_own_config_is_left_as_it_is():
    config = {"d_model": 64, "n_layers": 2}
    mt.plan(Net(config), "mup", base={"d_model": 16}, example_inputs=INPUTS)
    assert config == {"d_model": 64, "n_layers": 2}


def test_a_class_that_takes_more_than_its_config_is_refused_with_the_remedy():
    with pytest.raises(mt.errors.ShapeError, match=r"Wrapped cannot be built with .*factory="):
        mt.plan(Wrapped(Config(d_model=64, n_layers=2), "net"), "mup", base=16, example_inputs=INPUTS)


@pytest.mark.parametrize("config", [None, 64, "base", (64, 2), Config])
def test_what_holds_no_fields_is_no_config(config):
    net = Net(Config(d_model=64, n_layers=2))
    net.config = config
    with pytest.raises(mt.errors.ShapeError, match=r"no \.config, an object or a dict that its class takes"):
        mt.plan(net, "mup", base=16, example_inputs=INPUTS)
