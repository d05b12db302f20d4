"""One small decoder and its plan, and the batches that it trains on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_models import Decoder, token_batches

import mutransfer as mt


@pytest.fixture
def decoder() -> nn.Module:
    torch.manual_seed(0)
    return Decoder(32)


@pytest.fixture
def plan(decoder):
    return mt.parameterize(decoder, "mup", base=8, factory=Decoder)


@pytest.fixture
def batches():
    return token_batches(6)
