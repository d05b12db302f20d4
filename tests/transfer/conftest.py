from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mutransfer.records import TrialRecord
from mutransfer.transfer import Point

Sweep = Callable[..., list[Point]]


@pytest.fixture
def planted() -> Sweep:
    """A sweep whose truth is known: loss = 2.2 + 0.03 u^2 + cubic u^3 at u octaves from the optimum, plus noise."""

    def make(
        rng: np.random.Generator,
        *,
        drift: float = 0.0,
        cubic: float = 0.0,
        seeds: int = 2,
        noise: float = 0.005,
        sizes: tuple[int, ...] = (32, 64, 128, 256),
        name: str = "mup",
        offset: float = 0.0,
    ) -> list[Point]:
        points = []
        for doublings, size in enumerate(sizes):
            best = -6 + offset + drift * doublings
            x = np.arange(np.floor(min(best, -6 + offset)) - 2, np.floor(max(best, -6 + offset)) + 4)
            u = x - best
            mean = 2.2 + 0.03 * u**2 + cubic * u**3
            losses = mean + rng.normal(0, 0.02, (seeds, 1)) + rng.normal(0, noise, (seeds, len(x)))
            points += [Point(name, size, 2.0 ** x[k], s, losses[s, k]) for s in range(seeds) for k in range(len(x))]
        return points

    return make


@pytest.fixture
def trial() -> Callable[..., TrialRecord]:
    """A finished trial of a decoder, as a sweep would record it."""

    def make(
        name: str,
        width: int,
        log2_lr: float,
        seed: int = 0,
        loss: float | None = 2.0,
        status: Any = "done",
        **more: Any,
    ) -> TrialRecord:
        config: dict[str, Any] = {
            "model": {
                "name": "gpt",
                "width": width,
                "depth": more.get("depth", 2),
                "heads": width // 16,
                "base_width": 32,
            },
            "base": 32,
            "parameterization": {"name": name, "form": "auto", "init": "rescale", "scale": "heads"},
            "hp": {
                "output_mult": more.get("output_mult", 1.0),
                "residual_mult": more.get("residual_mult", 1.0),
                "lr": {"input": more.get("lr_input", 8.0)},
            },
            "optimizer": {"name": "adamw", "lr": 2.0**log2_lr},
            "seed": seed,
        }
        if "base_depth" in more:
            config["base_depth"] = more["base_depth"]
        key = f"{name}-{width}-{log2_lr}-{seed}-{sorted(more.items())}"
        environment = {"data_sha256": more.get("sha", "abc"), "torch": "2.13.0"}
        return TrialRecord(key, config, status, val_loss=loss, environment=environment)

    return make
