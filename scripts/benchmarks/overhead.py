"""What parameterizing a model costs per training step, against the plain model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.clocks import find_clock
from benchmarks.ratio import Comparison, Ratio, interleave, paired_ratio
from benchmarks.steps import Mode, Sizes, group_count, make_step

LIMIT = 1.03
SUBJECT = "explicit / plain"
"""The comparison that the verdict is about; the others are controls and extras."""

Progress = Callable[[int], Any]


def measure(
    sizes: Sizes,
    mode: Mode,
    device: torch.device,
    *,
    pairs: int,
    steps: int,
    warmup: int,
    progress: Progress = lambda done: None,
) -> dict[str, Any]:
    """Ratios of whole training steps, as JSON values.

    `plain / plain` times two copies of the plain model: the noise floor. `folded / plain` must equal it, since a
    folded model is a plain model.

    Args:
        pairs: per comparison.
        steps: timed together on each side of a pair.
        warmup: untimed steps of every model before.
    """
    comparisons = _comparisons(sizes, mode, device)
    for compared in comparisons.values():
        for _ in range(warmup):
            compared.step()
            compared.reference()
    times = interleave(comparisons, find_clock(device), pairs=pairs, steps=steps, progress=progress)
    ratios = {name: paired_ratio(*both) for name, both in times.items()}
    return {
        "verdict": ratios[SUBJECT].verdict(LIMIT),
        "groups": {variant: group_count(sizes, variant) for variant in ("plain", "folded", "explicit")},
        "comparisons": {name: dataclasses.asdict(ratio) for name, ratio in ratios.items()},
    }


def _comparisons(sizes: Sizes, mode: Mode, device: torch.device) -> dict[str, Comparison]:
    plain, plain_clipped = make_step(sizes, "plain", mode, device)
    twin, _ = make_step(sizes, "plain", mode, device)
    folded, _ = make_step(sizes, "folded", mode, device)
    explicit, explicit_clipped = make_step(sizes, "explicit", mode, device)
    return {
        SUBJECT: Comparison(explicit, plain),
        "folded / plain": Comparison(folded, plain),
        "plain / plain": Comparison(twin, plain),
        "explicit / plain, both clipping": Comparison(explicit_clipped, plain_clipped),
    }


def table(mode: str, measured: Mapping[str, Any]) -> str:
    """The measured ratios of one mode as text."""
    lines = [f"{mode:36}  ratio   95 % bounds       ms / step"]
    for name, values in measured["comparisons"].items():
        ratio = Ratio(**values)
        milliseconds = f"{ratio.seconds * 1e3:8.2f} vs {ratio.reference_seconds * 1e3:.2f}"
        lines.append(f"  {name:34}  {ratio.value:.4f}  {ratio.low:.4f}..{ratio.high:.4f}  {milliseconds}")
    return "\n".join([*lines, f"  {SUBJECT} <= {LIMIT}: {measured['verdict']}"])
