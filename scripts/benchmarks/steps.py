"""Whole training steps of one decoder, plain or parameterized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import mutransfer as mt
from benchmarks.ratio import Step
from mutransfer.train.data.protocol import cross_entropy
from mutransfer.train.models import build_model
from mutransfer.train.precision import find_precision

Variant = Literal["plain", "folded", "explicit"]
Mode = Literal["eager", "compiled"]
LR, DECAY, MAX_NORM = 2**-9, 0.1, 1.0


@dataclass(frozen=True)
class Sizes:
    """The decoder and its batch.

    Attributes:
        base: the width at which the multipliers are 1; another than `width`, so that they are not.
        batch: sequences per step, of `length` tokens each.
        precision: fp32 or bf16 (autocast).
    """

    width: int = 256
    base: int = 64
    depth: int = 4
    vocab: int = 8192
    head_dim: int = 64
    batch: int = 4
    length: int = 64
    precision: str = "fp32"

    @property
    def tokens(self) -> int:
        return self.batch * self.length


def make_step(sizes: Sizes, variant: Variant, mode: Mode, device: torch.device) -> tuple[Step, Step]:
    """One training step of a fresh model, and the same with gradient clipping.

    The plain model has stock fused AdamW and stock clipping; the others have the plan's.
    """
    torch.manual_seed(0)
    model = _build(sizes, sizes.width)
    optimizer: Optimizer
    if variant == "plain":
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
        parameters = list(model.parameters())
        return _steps(sizes, model, mode, optimizer, lambda: nn.utils.clip_grad_norm_(parameters, MAX_NORM))
    plan = mt.parameterize(model, "mup", base=sizes.base, factory=lambda w: _build(sizes, w), form=variant)
    optimizer = plan.make_optimizer(model.to(device), lr=LR, weight_decay=DECAY)
    return _steps(sizes, model, mode, optimizer, lambda: plan.clip_grad_norm_(model, MAX_NORM))


def _build(sizes: Sizes, width: int) -> nn.Module:
    section = {"name": "gpt", "width": width, "depth": sizes.depth, "head_dim": sizes.head_dim}
    return build_model({**section, "vocab_size": sizes.vocab, "seq_len": sizes.length})


def _steps(
    sizes: Sizes, model: nn.Module, mode: Mode, optimizer: torch.optim.Optimizer, clip: Any
) -> tuple[Step, Step]:
    device = next(model.parameters()).device
    forward: Any = torch.compile(model) if mode == "compiled" else model
    batch, precision = _batch(sizes, device), find_precision(sizes.precision)

    def step(clipping: Any = None) -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.context(device):
            loss = cross_entropy(forward, batch)
        loss.backward()
        if clipping is not None:
            clipping()
        optimizer.step()

    return step, lambda: step(clip)


def _batch(sizes: Sizes, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(sizes.vocab, (sizes.batch, sizes.length + 1), generator=generator).to(device)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def group_count(sizes: Sizes, variant: Variant) -> int:
    """How many parameter groups the optimizer of a variant has."""
    if variant == "plain":
        return 1
    model = _build(sizes, sizes.width)
    plan = mt.plan(model, "mup", base=sizes.base, factory=lambda w: _build(sizes, w), form=variant)
    return len(plan.param_groups(model, lr=LR, weight_decay=DECAY))
