from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mutransfer.train.data import Data, build_data
from mutransfer.train.models import build_model


@pytest.fixture
def digits() -> Data:
    return build_data({"name": "digits", "batch_size": 16}, {"name": "mlp"})


@pytest.fixture
def make_run(digits: Data) -> Callable[..., tuple[nn.Module, torch.optim.Optimizer, Data]]:
    """A fresh small MLP on digits with its optimizer: (width, lr) -> (model, optimizer, data)."""

    def make(lr: float = 1e-2, **model: Any) -> tuple[nn.Module, torch.optim.Optimizer, Data]:
        torch.manual_seed(0)
        built = build_model({"name": "mlp", "width": 16, **model}, digits.info)
        return built, torch.optim.AdamW(built.parameters(), lr=lr), digits

    return make


@pytest.fixture
def config() -> dict[str, Any]:
    return {
        "model": {"name": "mlp", "width": 16},
        "optimizer": {"name": "adamw", "lr": 1e-2, "betas": [0.9, 0.95]},
        "train": {"steps": 12, "eval_batches": 2},
        "precision": {"name": "fp32"},
        "device": "cpu",
        "seed": 0,
    }
