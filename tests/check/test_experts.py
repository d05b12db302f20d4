"""Experts that some batches do not reach are judged by those that reach them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import mutransfer as mt

WIDTHS, BASE, LR = [32, 64, 128], 32, 2**-12


class Mixture(nn.Module):
    """One of six experts for every vector, written as muP has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(64, width), nn.Linear(width, 6)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(6))
        self.head = nn.Linear(width, 16)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif name in ("head.weight", "router.weight"):
                nn.init.normal_(p, std=BASE**0.5 / width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        gates = self.router(x).softmax(-1)
        chosen, out = gates.argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, 6 * gates[rows, number, None] * expert(x[rows]))
        return self.head(torch.tanh(x + out))


def vectors(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 64, generator=generator), torch.randint(16, (8,), generator=generator)


def check(power: float) -> mt.CoordReport:
    """`power`: by which the experts' lr is wrong in width."""

    def optimizer(model: nn.Module, width: int) -> torch.optim.Optimizer:
        m, groups = width / BASE, []
        for name, p in model.named_parameters():
            lr = LR / m if p.ndim == 2 and name != "first.weight" else LR
            wrong = m**power if name.startswith("experts") and p.ndim == 2 else 1.0
            groups.append({"params": [p], "lr": lr * wrong})
        return torch.optim.Adam(groups)

    return mt.coord_check(Mixture, widths=WIDTHS, batches=vectors, make_optimizer=optimizer)


def test_every_expert_is_judged_though_no_batch_reaches_all() -> None:
    report = check(0.0)
    judged = {slope.parameter for slope in report.judged}
    assert {f"experts.{number}.weight" for number in range(6)} <= judged
    assert not [slope.name for slope in report.judged if slope.status == "outside"], str(report)


def test_experts_that_learn_too_fast_are_found() -> None:
    """Negative control."""
    report = check(1.0)
    assert report.verdict == "fail"
    assert report.culprits[0].name.startswith("experts.")
