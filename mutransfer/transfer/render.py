"""A transfer report as text for the terminal and as a small table for a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from mutransfer.transfer.bootstrap import Interval
from mutransfer.transfer.result import ParameterizationTransfer, TransferReport

HEADER = ("parameterization", "verdict", "best per size", "drift", "regret", "loss gap")


def as_text(report: TransferReport) -> str:
    rows = [HEADER, *(_row(one, report.x) for one in report.parameterizations.values())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    own = [f"{key}: {_title(other)}" for key, other in report.hyperparameters.items()]
    return "\n".join([_title(report), "", *table, *below(report), *own])


def as_html(report: TransferReport) -> str:
    """Every name in it is escaped: records may come from others."""
    head = _cells(HEADER, "th")
    body = "".join(_cells(_row(one, report.x), "td") for one in report.parameterizations.values())
    lines = "".join(f"<li>{html.escape(line.strip())}</li>" for line in below(report) if line)
    return (
        f"<p><b>{html.escape(_title(report))}</b></p><div style='overflow-x:auto'><table>"
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div><ul>{lines}</ul>"
    )


def below(report: TransferReport) -> list[str]:
    """Reasons, notes and what to add, one sentence a line."""
    reasons = [f"{one.name}: {reason}" for one in report.parameterizations.values() for reason in one.reasons]
    why = [f"  {reason}." for reason in reasons if reason not in report.open]  # the title has said the others
    notes = [f"  {note}" for note in report.notes]
    add = [f"  Add: {line}" for line in report.extend]
    return ["", *why, *notes, *add] if why or notes or add else []


def _title(report: TransferReport) -> str:
    said = f"{', '.join(report.subject)}: {report.verdict} over {report.axis} "
    why = f"; {report.open}" if report.open else ""
    return f"{said}({report.x}, intervals at {report.level:.0%}){why}"


def _row(one: ParameterizationTransfer, x: str) -> tuple[str, ...]:
    best = ", ".join(f"{b.size:g}: {b.bound}{_value(b.lr.value, x)}" for b in one.optimum)
    name = f"{one.name} (control)" if one.is_control else one.name
    return (name, one.verdict, best, number(one.drift, ".2f"), number(one.regret, ".2%"), number(one.loss_gap, ".2%"))


def _value(value: float | None, x: str) -> str:
    if value is None:
        return "?"
    return f"2^{math.log2(value):.2f}" if x == "optimizer.lr" else f"{value:.3g}"


def number(part: Interval, form: str) -> str:
    """`0.03 [0.00, 0.08]`, without an interval where there is none."""
    if part.value is None:
        return "unknown"
    value = _or_diverges(part.value, form)
    if part.low is None or part.high is None:
        return value
    return f"{value} [{_or_diverges(part.low, form)}, {_or_diverges(part.high, form)}]"


def _or_diverges(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "diverges"


def _cells(row: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag} style='text-align:left'>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
