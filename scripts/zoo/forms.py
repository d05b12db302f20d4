"""Whether the folded and the explicit form of a plan train alike: their losses over a few steps, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mutransfer.planning.calls import tensors_in

STEPS, ALIKE = 3, 1e-9


def compare(fresh: nn.Module, plans: tuple[Any, Any], inputs: Any) -> dict[str, Any]:
    """How far the losses under two plans are apart, relatively; in evaluation mode where the model does not run in
    training on these inputs, and only said so where no output of it has a gradient."""
    for training in (True, False):
        try:
            runs = [_losses(copy.deepcopy(fresh).double().train(training), plan, inputs) for plan in plans]
            break
        except Exception:  # whatever a foreign forward pass raises
            if not training:
                raise
    if not all(runs):
        return {"forms": "no output has a gradient"}
    difference = max(abs(a - b) / abs(a) for a, b in zip(*runs, strict=True))
    return {"folded_is_explicit": difference <= ALIKE, "forms": f"{difference:.1e}"}


def _losses(model: nn.Module, plan: Any, inputs: Any) -> list[float]:
    plan.apply(model)
    switch = getattr(model, "set_experts_implementation", None)
    if callable(switch):
        switch("eager")  # grouped products know no float64: experts one after the other
    optimizer = plan.make_optimizer(model, lr=2**-8, weight_decay=0.1)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        with _Float64():
            out = _with_gradient(model(**_doubled(inputs)) if isinstance(inputs, Mapping) else model(*_doubled(inputs)))
        if out is None:
            return []
        target = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        loss = ((out - target) ** 2).mean()
        with _Float64():
            loss.backward()
        plan.clip_grad_norm_(model, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


class _Float64(TorchDispatchMode):
    """Whatever precision the forward pass asks for, it gets float64; where it asks for none, too."""

    def __enter__(self) -> Any:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.set_default_dtype(self._before)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*map(_widened, args), **{key: _widened(value) for key, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _with_gradient(out: Any) -> Tensor | None:
    """A model output's logits, or else the first tensor in it that has a gradient."""
    logits = getattr(out, "logits", None)
    found: Iterator[Tensor] = (t for t in tensors_in((logits, out)) if t.requires_grad)
    return next(found, None)


def _doubled(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _doubled(value) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return type(inputs)(map(_doubled, inputs))
    return inputs.double() if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs
