"""Schedules are shapes, and they never touch the ratio between two groups' learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mutransfer.errors import ConfigError
from mutransfer.train.schedule import Schedule, base_lrs, set_lrs


def factors(**settings: Any) -> list[float]:
    schedule = Schedule(100, **settings)
    return [schedule(step) for step in range(100)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_is_linear_up_to_the_peak(kind: str) -> None:
    values = factors(schedule=kind, warmup=0.1)
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(values) == 1
    assert factors(schedule=kind, warmup=0.0)[0] == 1


def test_cosine_falls_from_the_peak_to_the_final_factor() -> None:
    values = factors(schedule="cosine", warmup=0.1, final_lr=0.1)
    assert values[10] == 1
    assert values[55] == pytest.approx(0.55)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert Schedule(100, "cosine", warmup=0.1, final_lr=0.1)(100) == pytest.approx(0.1)


def test_wsd_is_flat_and_then_falls_over_its_last_part() -> None:
    values = factors(schedule="wsd", warmup=0.1, decay=0.2)
    assert set(values[10:81]) == {1.0}
    assert values[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


def test_constant_stays_at_the_peak() -> None:
    assert set(factors(schedule="constant", warmup=0.05)[5:]) == {1.0}


def test_every_groups_ratio_survives_the_whole_schedule() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.8}, {"params": weights[1:], "lr": 0.1}])
    base, schedule = base_lrs(optimizer), Schedule(20, final_lr=0.1)
    seen = []
    for step in range(20):
        set_lrs(optimizer, base, schedule(step))
        large, small = (group["lr"] for group in optimizer.param_groups)
        assert large / small == pytest.approx(8)
        seen.append(large)
    assert max(seen) == pytest.approx(0.8)
    assert min(seen) < 0.2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"warmup": 1.5}, "train.warmup=1.5: it must be a number from 0 to 1"),
        ({"schedule": "wsd", "warmup": 0.5, "decay": 0.6}, "leave no steps between them"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Schedule(100, **settings)
