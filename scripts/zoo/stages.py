"""What is asked of one model: does it build, convert, train alike in both forms, and pass the checks?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import mutransfer as mt
from mutransfer.check.batches import Generated
from mutransfer.check.few import FEW, TOKENS
from mutransfer.convert.parameterize import observe_for, plan_of
from mutransfer.errors import MutransferError
from mutransfer.planning.observe import Observed
from mutransfer.planning.options import Options, make_options
from mutransfer.planning.sizes import Shapes, shapes_of, without_memory
from zoo import forms
from zoo.depth import depth_check, depth_columns
from zoo.subjects import NotBuiltError, Small, Subject

NARROWEST = FEW * TOKENS
"""Entries of what grows: the positions that a weight learns from should be far fewer."""
CHEAP = 20_000_000
"""Parameters of the widest model: where it has fewer, one more width is checked."""


def examine(subject: Subject, stage: str) -> dict[str, Any]:
    """One line of the zoo's results; never raises."""
    began = time.process_time()
    row: dict[str, Any] = {"model": subject.name, "source": subject.source, "stage": stage, "reason": ""}
    try:
        _examine(subject, stage, row)
    except NotBuiltError as error:
        row |= {"built": False, "reason": _sentence(error)}
    except MutransferError as error:
        row["reason"] = _sentence(error)
    except Exception as error:
        row["reason"] = f"CRASH {type(error).__name__}: {_sentence(error)}"
    return row | {"seconds": round(time.process_time() - began, 2)}


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:600]


def _examine(subject: Subject, stage: str, row: dict[str, Any]) -> None:
    row |= {"built": True, "shrunk": False}
    small = subject.small()
    row |= {"shrunk": True, **small.notes, **_build(small)}
    STAGES[stage](small, row)


def _build(small: Small) -> dict[str, Any]:
    sizes = [sum(p.numel() for p in small.make(k * small.width).parameters()) for k in (1, 2)]
    shapes = {n: list(t.shape) for n, t in _named(small.inputs(0)) if isinstance(t, torch.Tensor)}
    return {"width": small.width, "parameters": sizes[0], "grows": round(sizes[1] / sizes[0], 2), "inputs": shapes}


def _named(inputs: Any) -> list[tuple[str, Any]]:
    return list(inputs.items()) if isinstance(inputs, dict) else [(str(i), value) for i, value in enumerate(inputs)]


# Conversion


def _convert(small: Small, row: dict[str, Any]) -> None:
    """Every column by itself: one that fails says why beside it."""
    row["converted"] = False
    torch.manual_seed(0)
    fresh = small.make(2 * small.width)
    seen = observe_for(
        fresh, _options(), small.width, factory=small.make, example_inputs=small.inputs_at(2 * small.width)
    )
    plan = plan_of(seen, _options())
    roles = [line.role.value for line in plan]
    row |= {"converted": True, "tensors": len(plan), "form": plan.form}
    row["roles"] = {role: roles.count(role) for role in sorted(set(roles))}
    _column(row, "attention_scale", lambda: _attention(seen, plan))
    _column(row, "folded_is_explicit", lambda: _forms(seen, plan))
    if small.deep is not None:
        depth_columns(small, row, _column)


def _column(row: dict[str, Any], name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Adds what is measured, or why it could not be."""
    try:
        row |= measure()
    except MutransferError as error:
        row |= {name: False, f"{name}_reason": _sentence(error)}
    except Exception as error:
        row |= {name: False, f"{name}_reason": f"CRASH {type(error).__name__}: {_sentence(error)[:300]}"}


def _options(**changed: Any) -> Options:
    return make_options("mup", "adamw", **changed)


def _attention(seen: Observed, plan: Any) -> dict[str, Any]:
    """Whether every softmax scale can be set, by asking for half of it; nothing where there is no attention."""
    sites = len(plan.base_forward.scales)
    if sites:
        plan_of(seen, _options(hyperparameters={"attn_mult": 0.5}))
    return {"attention_sites": sites} | ({"attention_scale": True} if sites else {})


def _forms(seen: Observed, plan: Any) -> dict[str, Any]:
    """How far the losses of the folded and of the explicit form are apart."""
    other = plan_of(seen, _options(form="explicit" if plan.form == "folded" else "folded"))
    return forms.compare(seen.model, (plan, other), seen.inputs)


# Checks


def _check(small: Small, row: dict[str, Any]) -> None:
    """The width check under muP with AdamW, and what the standard parameterization shows under it. Where the inputs
    follow the width, the check generates them, as it does for a user."""
    given: dict[str, Any] = {"batches": lambda seed: Generated(small.inputs(seed), seed)}
    given["example_inputs"] = small.inputs(0)
    report = mt.coord_check(small.make, widths=widths_of(small), **(given if small.at_width is None else {}))
    row |= {"check": report.verdict, "widths": list(report.widths), **_found(report)}
    row |= {"sp": report.control.worst if report.control else "", "positions": report.positions}


def widths_of(small: Small) -> list[int]:
    """From where what grows has `NARROWEST` entries everywhere, or as near to that as is cheap at the widest: the
    bottleneck of a small model is much narrower than its width."""
    start = max(1, NARROWEST // _narrowest(small))
    fitting = (k for k in (start >> n for n in range(start.bit_length())) if _is_cheap(small, 4 * k))
    first = next(fitting, 1)
    return [small.width * first * k for k in ((1, 2, 4, 8) if _is_cheap(small, 8 * first) else (1, 2, 4))]


def _narrowest(small: Small) -> int:
    """The smallest size in a weight that grows with the width."""
    narrow, wide = (_shapes(small, k) for k in (1, 2))
    pairs = ((a, b) for name in narrow if len(narrow[name]) > 1 for a, b in zip(narrow[name], wide[name], strict=True))
    return min((a for a, b in pairs if b > a), default=NARROWEST)


def _is_cheap(small: Small, k: int) -> bool:
    return sum(torch.Size(shape).numel() for shape in _shapes(small, k).values()) < CHEAP


def _shapes(small: Small, k: int) -> Shapes:
    return shapes_of(without_memory(lambda: small.make(k * small.width)))


def _depth(small: Small, row: dict[str, Any]) -> None:
    """The depth check under CompleteP; nothing where no number of layers is known."""
    if small.deep is not None:
        report = depth_check(small)
        row |= {"depth_check": report.verdict, "depths": list(report.depths), **_found(report)}


def _found(report: Any) -> dict[str, Any]:
    first = report.culprits[0] if report.culprits else None
    worst = max(report.judged, key=lambda slope: abs(slope.off), default=None)
    return {
        "reason": "" if report.verdict == "pass" else report.reason,
        "culprit": f"{first.name} ({first.kind}) {first.measured:+.2f}" if first else "",
        "worst": f"{worst.name} ({worst.kind}) {worst.off:+.2f}" if worst else "",
        "seeds": report.seeds,
    }


STAGES: dict[str, Callable[[Small, dict[str, Any]], None]] = {
    "build": lambda small, row: None,
    "convert": _convert,
    "check": _check,
    "depth": _depth,
}
"""Each is asked by itself, in a line of its own."""
