"""What one forward pass shows: every parameter's own contribution, and every module's activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mutransfer.check.few import FewPositions
from mutransfer.check.flow import SoftmaxScale, Sum, rms
from mutransfer.check.shadow import ShadowMode, Use
from mutransfer.planning.carriers import scaled
from mutransfer.planning.data import Rows
from mutransfer.planning.trace import unfused

Forward = Callable[[nn.Module], Any]
InRows = Mapping[str, Sequence[tuple[Rows, float]]]
"""Parameter -> rows of it, and what they are multiplied by."""


What = Literal["parameter", "module", "logits", "stream"]
Site = tuple[What, str]
"""A module's output, an attention's logits, or the residual stream after an addition, and where."""


@dataclass(frozen=True)
class Snapshot:
    """One forward pass, measured.

    Attributes:
        uses: every use of every parameter in execution order, with its own contribution.
        sizes: place -> RMS of what is there.
        moved: place -> RMS of its change since init (empty at init).
        scales: attention site -> how its logits are scaled.
        sums: every addition of a branch to the residual stream, in order.
        outputs: what is at each place, kept at init only, for `moved` later.
    """

    uses: tuple[Use, ...]
    sizes: Mapping[Site, float]
    moved: Mapping[Site, float]
    scales: Mapping[str, SoftmaxScale]
    sums: tuple[Sum, ...] = ()
    outputs: Mapping[Site, Tensor] = field(default_factory=dict, repr=False)


@torch.no_grad()
def measure(
    model: nn.Module,
    forward: Forward,
    before: Mapping[str, Tensor] | None = None,
    initial: Snapshot | None = None,
    *,
    in_rows: InRows = MappingProxyType({}),
    few: FewPositions | None = None,
) -> Snapshot:
    """Runs `forward(model)` once and measures it; parameters, buffers and the random state stay as they are.

    Args:
        model: with the parameters W_t.
        forward: anything that calls the model on the batch.
        before: parameter name -> W_0; None at init, where the whole W_0 is the contribution.
        initial: the snapshot at init, for the change of activations.
        in_rows: parameter -> its rows that the forward pass multiplies for a softmax scale, and by what: that is no
            part of the parameter's own contribution.
        few: with the positions that the weights learn from, where these are not all.
    """
    path: list[str] = []
    outputs: dict[Site, Tensor] = {}
    shadows = {n: (p, p.detach() if before is None else p.detach() - before[n]) for n, p in model.named_parameters()}
    for name, parts in in_rows.items():
        for rows, factor in parts:
            shadows[name] = shadows[name][0], scaled(shadows[name][1], rows, 1 / factor)
    few = few or FewPositions(model)
    mode = ShadowMode(
        shadows,
        model.buffers(),
        initial=before is None,
        module=lambda: path[-1] if path else "",
        here=lambda: few.here,
    )
    with _buffers_kept(model), unfused(), torch.random.fork_rng(), _watched(model, path, outputs, mode), few, mode:
        forward(model)
    outputs |= {("logits", site): logits for site, logits in mode.flows.logits.items()}
    outputs |= {("stream", site): stream for site, stream in mode.flows.stream.items()}
    sizes = {place: rms(out) for place, out in outputs.items()}
    kept = outputs if before is None else {}
    moved = {} if initial is None else _moved(outputs, initial.outputs)
    return Snapshot(mode.finish(), sizes, moved, mode.flows.scales, tuple(mode.flows.sums), kept)


def _moved(outputs: Mapping[Site, Tensor], initial: Mapping[Site, Tensor]) -> dict[Site, float]:
    same = (place for place, out in outputs.items() if place in initial and initial[place].shape == out.shape)
    return {place: rms(outputs[place] - initial[place]) for place in same}


@contextmanager
def _watched(model: nn.Module, path: list[str], outputs: dict[Site, Tensor], mode: ShadowMode) -> Iterator[None]:
    """Keeps the running module's name on top of `path`, and a copy of each module's first output."""
    handles = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: path.append(name)

    def leave(_: nn.Module, __: Any, out: Any) -> None:
        tensor = first_tensor(out)
        if tensor is not None and ("module", path[-1]) not in outputs:
            mode.paused = True
            outputs["module", path[-1]] = tensor.detach().float().clone()
            mode.paused = False
        path.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """A measurement must not count as a step of a BatchNorm's running statistics."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def first_tensor(out: Any, fits: Callable[[Tensor], bool] = lambda _: True) -> Tensor | None:
    """A module's output proper: the tensor itself, a model output's logits, or the first floating tensor in it; of
    those that fit."""
    if isinstance(out, Tensor):
        return out if out.is_floating_point() and fits(out) else None
    logits = getattr(out, "logits", None)
    if isinstance(logits, Tensor) and fits(logits):
        return logits
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, list | tuple) else ()
    return next((tensor for value in values if (tensor := first_tensor(value, fits)) is not None), None)
