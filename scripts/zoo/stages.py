"""What is asked of one model: does it build, convert, train alike in both forms, and pass the check?"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

import mutransfer as mt
from mutransfer.check.batches import Generated
from mutransfer.check.measure import first_tensor
from mutransfer.errors import MutransferError
from zoo.subjects import NotBuiltError, Small, Subject

STAGES = ("build", "convert", "check")
COLUMNS = ("built", "shrunk", "converted", "folded_is_explicit", "check", "terminals", "depth_check")
STEPS, ALIKE = 3, 1e-9


def examine(subject: Subject, stage: str) -> dict[str, Any]:
    """One line of the zoo's results; never raises."""
    began = time.perf_counter()
    row: dict[str, Any] = {"model": subject.name, "source": subject.source, "stage": stage, "reason": ""}
    row |= dict.fromkeys(COLUMNS)
    try:
        _examine(subject, stage, row)
    except NotBuiltError as error:
        row |= {"built": False, "reason": _sentence(error)}
    except MutransferError as error:
        row["reason"] = _sentence(error)
    except Exception as error:
        row["reason"] = f"CRASH {type(error).__name__}: {_sentence(error)}"
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:600]


def _examine(subject: Subject, stage: str, row: dict[str, Any]) -> None:
    row |= {"built": True, "shrunk": False}
    small = subject.small()
    row |= {"shrunk": True, **small.notes, **_build(small)}
    if stage == "build":
        return
    row["converted"] = False
    row |= _convert(small)
    row["converted"] = True
    if stage == "check":
        row |= _check(small)
    row |= _forms(small)


def _build(small: Small) -> dict[str, Any]:
    sizes = [sum(p.numel() for p in small.make(k * small.width).parameters()) for k in (1, 2)]
    shapes = {n: list(t.shape) for n, t in _named(small.inputs(0)) if isinstance(t, torch.Tensor)}
    return {"width": small.width, "parameters": sizes[0], "grows": round(sizes[1] / sizes[0], 2), "inputs": shapes}


def _named(inputs: Any) -> list[tuple[str, Any]]:
    return list(inputs.items()) if isinstance(inputs, dict) else [(str(i), value) for i, value in enumerate(inputs)]


def _plan(small: Small, model: nn.Module, form: str = "auto") -> Any:
    return mt.plan(
        model,
        "mup",
        base=small.width,
        factory=small.make,
        example_inputs=small.inputs(0),
        form=form,  # type: ignore[arg-type]
    )


def _convert(small: Small) -> dict[str, Any]:
    began = time.perf_counter()
    plan = _plan(small, small.make(2 * small.width))
    roles = [line.role.value for line in plan]
    return {
        "tensors": len(plan),
        "roles": {role: roles.count(role) for role in sorted(set(roles))},
        "attention_sites": len(plan.base_forward.scales),
        "convert_seconds": round(time.perf_counter() - began, 2),
    }


def _forms(small: Small) -> dict[str, Any]:
    try:
        difference = _forms_differ(small)
    except Exception as error:  # the model itself may know no float64
        return {"forms": f"{type(error).__name__}: {_sentence(error)[:200]}"}
    return {"folded_is_explicit": difference <= ALIKE, "forms": f"{difference:.1e}"}


def _forms_differ(small: Small) -> float:
    """How far the losses of the folded and of the explicit form are apart, relatively, in float64."""
    torch.manual_seed(0)
    fresh = small.make(2 * small.width)
    losses = []
    for form in ("folded", "explicit"):
        plan, model = _plan(small, fresh, form), copy.deepcopy(fresh).double()
        plan.apply(model)
        losses.append(_losses(_in_float64(model), plan, small.inputs(0)))
    return max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))


def _in_float64(model: nn.Module) -> nn.Module:
    """Grouped matrix products know no float64: experts one after the other."""
    switch = getattr(model, "set_experts_implementation", None)
    if callable(switch):
        switch("eager")
    return model.eval()


def _losses(model: nn.Module, plan: Any, inputs: Any) -> list[float]:
    optimizer = plan.make_optimizer(model, lr=2**-8, weight_decay=0.1)
    losses = []
    doubled = {name: _double(value) for name, value in _named(inputs)}
    for _ in range(STEPS):
        optimizer.zero_grad()
        out = first_tensor(model(**doubled) if isinstance(inputs, dict) else model(*doubled.values()))
        assert out is not None
        target = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        loss = ((out - target) ** 2).mean()
        loss.backward()
        plan.clip_grad_norm_(model, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _check(small: Small) -> dict[str, Any]:
    report = mt.coord_check(
        small.make,
        widths=[small.width * k for k in (1, 2, 4)],
        batches=lambda seed: Generated(small.inputs(seed), seed),
        example_inputs=small.inputs(0),
    )
    first = report.culprits[0] if report.culprits else None
    worst = max(report.judged, key=lambda slope: abs(slope.off), default=None)
    return {
        "check": report.verdict,
        "reason": "" if report.verdict == "pass" else report.reason,
        "culprit": f"{first.name} ({first.kind}) {first.measured:+.2f}" if first else "",
        "worst": f"{worst.name} ({worst.kind}) {worst.off:+.2f}" if worst else "",
        "sp": report.control.worst if report.control else "",
        "positions": report.positions,
        "check_seeds": report.seeds,
    }
