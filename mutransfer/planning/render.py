"""A plan as text, as HTML for a notebook, in sentences, and against another plan."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mutransfer.planning.data import ParamPlan, PlanData, SwapPlan

COLUMNS = ("parameter", "role", "shape", "fan_in", "m_in", "m_out", "init std", "mult", "lr", "eps", "decay", "clip")
COMPARED = ("role", "init_std", "init_factor", "multiplier", "lr", "eps", "weight_decay", "clip", "frozen")


def as_text(plan: PlanData) -> str:
    rows = [(*_cells(group[0], label), group[0].why) for label, group in blocks(plan.params)]
    header = (*COLUMNS, "why")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)) for row in [header, *rows]]
    return "\n".join([_title(plan), "", *(line.rstrip() for line in lines), *_below(plan)])


def as_html(plan: PlanData) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag} style='text-align:left'>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(row((*_cells(group[0], label), group[0].why), "td") for label, group in blocks(plan.params))
    notes = "".join(f"<li>{html.escape(line.strip())}</li>" for line in _below(plan) if line)
    return (
        f"<p><b>{html.escape(_title(plan))}</b></p><div style='overflow-x:auto'><table>"
        f"<thead>{row((*COLUMNS, 'why'), 'th')}</thead><tbody>{body}</tbody></table></div><ul>{notes}</ul>"
    )


def explain(line: ParamPlan) -> str:
    parts = [
        f"{line.name} {_shape(line.shape)} is {line.role.value}: seen as {line.uses}; {line.why}.",
        f"Its fan-in is {line.fan_in}, {_number(line.m_in)} times the base's; its fan-out {_number(line.m_out)} times.",
        f"A fresh draw is multiplied by {_number(line.init_factor)}, so its std is {_number(line.init_std)}.",
        f"In the forward pass it is multiplied by {_number(line.multiplier)}.",
        f"lr x {_number(line.lr)}, eps x {_number(line.eps)}, weight decay x {_number(line.weight_decay)}, "
        f"gradient-norm weight {_number(line.clip)}.",
    ]
    if line.aliases:
        parts.append(f"The same tensor is also {', '.join(line.aliases)}.")
    return " ".join(parts)


def diff(one: PlanData, other: PlanData) -> str:
    lines = []
    for name in ("parameterization", "optimizer", "form", "base"):
        if getattr(one, name) != getattr(other, name):
            lines.append(f"{name}: {getattr(one, name)} -> {getattr(other, name)}")
    others = {line.name: line for line in other.params}
    for line in one.params:
        if line.name not in others:
            lines.append(f"{line.name}: only in the first")
            continue
        lines += [f"{line.name}: {change}" for change in _changes(line, others.pop(line.name))]
    return "\n".join([*lines, *(f"{name}: only in the second" for name in others)])


def _changes(one: ParamPlan, other: ParamPlan) -> list[str]:
    pairs = ((field, getattr(one, field), getattr(other, field)) for field in COMPARED)
    return [f"{field} {_number(a)} -> {_number(b)}" for field, a, b in pairs if _number(a) != _number(b)]


def blocks(params: Sequence[ParamPlan]) -> list[tuple[str, list[ParamPlan]]]:
    """Parameters that differ only in their block's index and are planned alike, together, in the model's order.

    Each with a name of its own: `*` for every block, `{0,2}` for some of them.
    """
    names = [line.name.split(".") for line in params]
    counted = _counted(names)
    groups: dict[tuple[object, ...], list[ParamPlan]] = {}
    alike: dict[str, list[list[str]]] = {}
    for line, parts in zip(params, names, strict=True):
        template = _template(parts, counted)
        groups.setdefault((template, line.frozen, *_cells(line, "")), []).append(line)
        alike.setdefault(template, []).append(parts)
    labelled = [(_label(group, alike[str(key[0])]), group) for key, group in groups.items()]
    said = Counter(label for label, _ in labelled)
    return [row for label, group in labelled for row in ([(label, group)] if said[label] == 1 else _single(group))]


def _single(group: list[ParamPlan]) -> list[tuple[str, list[ParamPlan]]]:
    return [(line.name, [line]) for line in group]


def _counted(names: Sequence[Sequence[str]]) -> set[tuple[str, ...]]:
    """The paths behind which an index counts blocks: 0, 1, 2, ... without a gap, as a Sequential of layers leaves
    where it holds an activation."""
    found: dict[tuple[str, ...], set[int]] = {}
    for parts in names:
        for at, part in enumerate(parts[:-1]):
            if part.isdigit():
                found.setdefault(tuple(parts[:at]), set()).add(int(part))
    return {path for path, indices in found.items() if len(indices) > 1 and max(indices) == len(indices) - 1}


def _template(parts: Sequence[str], counted: Collection[tuple[str, ...]]) -> str:
    starred = [at for at, part in enumerate(parts[:-1]) if part.isdigit() and tuple(parts[:at]) in counted]
    return ".".join("*" if at in starred else part for at, part in enumerate(parts))


def _label(group: Sequence[ParamPlan], alike: Sequence[Sequence[str]]) -> str:
    """The name of the group among all parameters of one template."""
    if len(group) == 1:
        return group[0].name
    own = zip(*(line.name.split(".") for line in group), strict=True)
    return f"{'.'.join(map(_part, own, zip(*alike, strict=True)))} x{len(group)}"


def _part(own: Sequence[str], every: Sequence[str]) -> str:
    values = list(dict.fromkeys(own))
    if len(values) == 1:
        return values[0]
    return "*" if set(values) == set(every) else "{" + ",".join(values) + "}"


def _cells(line: ParamPlan, label: str) -> tuple[str, ...]:
    numbers = (line.m_in, line.m_out, line.init_std, line.multiplier, line.lr, line.eps, line.weight_decay, line.clip)
    role = f"{line.role.value} (frozen)" if line.frozen else line.role.value
    return (label, role, _shape(line.shape), str(line.fan_in), *(_number(n) for n in numbers))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _number(value: object) -> str:
    """Short, and exact where it is a power of two that a reader would write so."""
    if not isinstance(value, float):
        return str(value)
    if value and math.isfinite(value) and not 1e-3 <= abs(value) < 1e4 and math.log2(abs(value)).is_integer():
        return f"{'-' if value < 0 else ''}2^{int(math.log2(abs(value)))}"
    return f"{value:.4g}"


def _title(plan: PlanData) -> str:
    return (
        f"{plan.parameterization} for {plan.optimizer}, {plan.form} form, base {plan.base}, init {plan.init}  "
        f"[{plan.source}]"
    )


def _swapped(swap: SwapPlan) -> str:
    rows = f" ({swap.rows})" if swap.rows else ""
    return f"{swap.module or '(model)'}.{swap.parameter}{rows}"


def _below(plan: PlanData) -> list[str]:
    lines = [f"  forward: {_swapped(s)} x {_number(s.multiplier)}" for s in plan.swaps]
    lines += [f"  attention: {a.module}.{a.attribute} = {_number(a.value)}; {a.why}" for a in plan.attention]
    lines += [f"  {name} = {_number(value)}" for name, value in plan.hyperparameters.items()]
    lines += [f"  note: {note}" for note in plan.notes]
    return ["", *lines] if lines else []
