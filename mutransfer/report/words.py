"""Numbers as a newcomer reads them: verdicts in sentences, intervals in units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LR = "optimizer.lr"
Json = Mapping[str, Any]


def hyperparameter(key: str) -> str:
    return "learning rate" if key == LR else key


def axis_of(check: Json) -> str:
    """What varies in a coordinate check: "width" or "depth"."""
    return str(check.get("axis", "width"))


def headline(report: Json) -> str:
    """One sentence about the subject."""
    names = subjects(report)
    ends = sizes(report["parameterizations"][names[0]])
    what, axis = hyperparameter(report["x"]), report["axis"]
    name, verb = " and ".join(names), ("transfer", "do") if len(names) > 1 else ("transfers", "does")
    there = f"the best {what} at {axis} {ends[0]}"
    if report["verdict"] == "transfers":
        return f"{name} {verb[0]}: {there} is still the best at {axis} {ends[-1]}."
    if report["verdict"] == "does not transfer":
        return f"{name} {verb[1]} not transfer: {there} is not the best at {axis} {ends[-1]}."
    why = f": {report['open']}" if report.get("open") else ""
    return f"Undecided: these trials do not settle whether {name} {verb[0]}{why}."


def subjects(report: Json) -> list[str]:
    subject = report["subject"]
    return [subject] if isinstance(subject, str) else list(subject)


def sizes(one: Json) -> list[str]:
    return list(one["optimum"])


def evidence(name: str, one: Json, report: Json) -> str:
    """What was measured for one parameterization, in two sentences."""
    axis, what = report["axis"], hyperparameter(report["x"])
    small, large = sizes(one)[0], sizes(one)[-1]
    drift, regret = one["drift"], one["regret"]
    if edges := open_ends(one):
        return (
            f"{name}'s best {what} lies at the edge of the tried values at {axis} {', '.join(edges)}: extend the grid."
        )
    moved = f"Each time the {axis} doubles, {name}'s best {what} moves by {octaves(drift)} octaves"
    lost = f"Training {axis} {large} at the best {what} of {axis} {small} costs {percent(regret)} of the best loss"
    if regret["value"] is None and regret["low"] is not None:
        lost = f"Training {axis} {large} at the best {what} of {axis} {small} diverges"
    elif regret["value"] is None:
        lost = f"What training {axis} {large} at the best {what} of {axis} {small} costs is not known"
        lost += f": {regret['reason']}" if regret.get("reason") else ""
    lines = report["thresholds"]
    return f"{moved} (allowed: {lines['drift']:g}). {lost} (allowed: {lines['regret']:.1%})."


def open_ends(one: Json) -> list[str]:
    """The sizes whose best value does not lie between tried ones: nothing else can be said before it does."""
    return [size for size, best in one["optimum"].items() if not best["interior"]]


def reasons(name: str, one: Json) -> list[str]:
    """What decided the verdict, where `evidence` does not say it already."""
    return [] if open_ends(one) else [f"{name}: {reason}." for reason in one["reasons"]]


def octaves(part: Json) -> str:
    return spread(part, ".2f")


def percent(part: Json) -> str:
    return spread(part, ".2%")


def spread(part: Json, form: str) -> str:
    """`0.03 [0.00, 0.08]`; without an interval where there is none."""
    if part["value"] is None:
        return "unknown" if part["low"] is None else "diverges"
    value = format(part["value"], form)
    if part["low"] is None:
        return value
    high = "diverges" if part["high"] is None else format(part["high"], form)
    return f"{value} [{part['low']:{form}}, {high}]"
