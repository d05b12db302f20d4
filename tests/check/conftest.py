from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mutransfer.rules.optimizers import OPTIMIZERS
from mutransfer.rules.scale import Scale, m_in, m_out
from mutransfer.rules.table import Parameterization, Role
from mutransfer.train.models import build_model

GROWING: dict[Role, Scale] = {
    Role.INPUT: m_out,
    Role.HIDDEN: m_in,
    Role.OUTPUT: m_in,
    Role.VECTOR: m_out,
    Role.SCALAR: m_in * m_out,
}
"""The size ratio that is not 1 for a role's tensors (for a scalar's, both are)."""


def corrupt(
    table: Parameterization,
    role: Role,
    cell: str,
    power: float,
    optimizer: str = "adamw",
    *,
    ratio: Scale | None = None,
) -> Parameterization:
    """The table with one cell wrong by a factor ratio^power."""
    factor = (ratio or GROWING[role]) ** power
    family = OPTIMIZERS[optimizer].family if cell == "lr" else None
    return table.with_cell(role, cell, lambda right: right * factor, family=family)


def mlp(width: int) -> nn.Module:
    """Every role has a drawn tensor: torch draws biases too."""
    hidden = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(width, 16))


def gpt(width: int, **settings: object) -> nn.Module:
    return build_model({"name": "gpt", "width": width, "vocab_size": 64, "seq_len": 8, **settings})


def resnet(width: int) -> nn.Module:
    return build_model({"name": "resnet", "width": width, "channels": 3, "outputs": 32, "image_size": 8, "stages": 2})


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    return SimpleNamespace(
        mlp=mlp, gpt=gpt, resnet=resnet, vectors=torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    )


@pytest.fixture(scope="session")
def corrupted() -> Callable[..., Parameterization]:
    return corrupt
