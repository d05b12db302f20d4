"""The parts that time training steps: tokens per second, and the overhead of `bench.py` on this device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import overhead
from benchmarks.clocks import find_clock
from benchmarks.parts import Part, Unit, as_json
from benchmarks.ratio import Comparison, interleave, paired_ratio
from benchmarks.steps import Mode, Sizes, make_step

MODES: tuple[Mode, ...] = ("eager", "compiled")


@dataclass(frozen=True)
class SpeedSettings:
    """What is timed.

    Attributes:
        sizes: of each decoder.
        pairs, steps, warmup: see `overhead.measure`.
        guess: seconds that one unit may take, compilation included.
    """

    sizes: tuple[Sizes, ...]
    pairs: int
    steps: int
    warmup: int
    guess: float = 90.0


THROUGHPUT = SpeedSettings(
    tuple(Sizes(width, batch=16, length=512, precision="bf16") for width in (256, 1024, 2048)), 10, 10, 10
)
OVERHEAD = SpeedSettings((Sizes(batch=16, length=512, precision="bf16"), Sizes(batch=16, length=512)), 60, 10, 20)


def throughput_part(settings: SpeedSettings, device: torch.device) -> Part:
    """One unit per decoder and mode, in which all forms are timed in turn."""
    return Part("throughput", as_json(settings), _units(settings, device, _tokens), dict, _show_tokens)


def overhead_part(settings: SpeedSettings, device: torch.device) -> Part:
    """`bench.py overhead`, one unit per decoder and mode."""
    return Part("overhead", as_json(settings), _units(settings, device, _overhead), dict, _show_overhead)


def _units(settings: SpeedSettings, device: torch.device, measure: Any) -> list[Unit]:
    return [
        Unit(
            f"width {sizes.width} {sizes.precision} {mode}",
            partial(measure, settings, sizes, mode, device),
            f"{mode} {sizes.width}",
            settings.guess,
        )
        for sizes in settings.sizes
        for mode in MODES
    ]


def _tokens(settings: SpeedSettings, sizes: Sizes, mode: Mode, device: torch.device) -> dict[str, Any]:
    torch.compiler.reset()
    plain, *forms = (make_step(sizes, form, mode, device)[0] for form in ("plain", "folded", "explicit"))
    compared = {name: Comparison(step, plain) for name, step in zip(("folded", "explicit"), forms, strict=True)}
    for step in (plain, *forms):
        for _ in range(settings.warmup):
            step()
    times = interleave(compared, find_clock(device), pairs=settings.pairs, steps=settings.steps)
    ratios = {name: paired_ratio(*both) for name, both in times.items()}
    seconds = {name: ratio.seconds for name, ratio in ratios.items()} | {"plain": ratios["folded"].reference_seconds}
    return {
        "tokens_per_second": {name: sizes.tokens / value for name, value in seconds.items()},
        "ratios": {name: dataclasses.asdict(ratio) for name, ratio in ratios.items()},
    }


def _overhead(settings: SpeedSettings, sizes: Sizes, mode: Mode, device: torch.device) -> dict[str, Any]:
    torch.compiler.reset()
    return overhead.measure(sizes, mode, device, pairs=settings.pairs, steps=settings.steps, warmup=settings.warmup)


def _show_tokens(summary: Mapping[str, Any]) -> str:
    return "\n".join(
        f"  {name}: "
        + ", ".join(f"{form} {rate:,.0f}" for form, rate in unit["tokens_per_second"].items())
        + " tokens/s"
        for name, unit in summary.items()
    )


def _show_overhead(summary: Mapping[str, Any]) -> str:
    return "\n".join(overhead.table(name, unit) for name, unit in summary.items())
