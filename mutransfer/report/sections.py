"""The parts of the page, each from the JSON of one verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer.report import words
from mutransfer.report.drawings import Drawing
from mutransfer.report.markup import Markup, items, join, table, tag, text
from mutransfer.report.matching import said
from mutransfer.report.words import Json
from mutransfer.transfer.values import TOGETHER

TONES = {"transfers": "good", "pass": "good", "does not transfer": "bad", "fail": "bad", "undecided": "open"}
SIGNS = {"good": "\u2713", "bad": "\u2717", "open": "?"}
CHECK_WORDS = {
    "pass": "every parameter's size and change keep to the law of its parameterization",
    "fail": "a parameter's size or change does not go with {axis} as the law says",
    "undecided": "the intervals are too wide to tell: add seeds or {axis}s",
}

PER_ROLE = ("value", "multiplier", "init")


@dataclass(frozen=True)
class Column:
    """One number of every parameterization."""

    key: str
    title: str
    form: str


COLUMNS = (
    Column("drift", "drift", ".2f"),
    Column("regret", "regret", ".2%"),
    Column("loss_gap", "loss gap", ".2%"),
    Column("curvature_slope", "curvature slope", "+.2f"),
    Column("asymptotic_penalty", "limit gap", ".2%"),
)


def verdict(report: Json) -> Markup:
    subjects, headline = words.subjects(report), words.headline(report)
    entries = report["parameterizations"]
    others = [name for name in entries if name not in subjects]
    lines = [tag("p", words.evidence(name, entries[name], report)) for name in subjects]
    every = [reason for name in subjects for reason in words.reasons(name, entries[name])]
    reasons = items(reason for reason in every if reason not in headline)
    compared = [_compared(name, entries[name], report) for name in others]
    why = "To settle it: " if report["verdict"] == "undecided" else "To complete the comparison: "
    add = items(join([why, tag("code", one)]) for one in report["extend"])
    return banner(report["verdict"], headline, *lines, reasons, *compared, add)


def banner(verdict: str, headline: str, *below: object) -> Markup:
    tone = TONES.get(verdict, "open")
    sign = tag("span", SIGNS[tone], class_="sign", aria_hidden="true")
    return tag("section", tag("h1", sign, tag("span", headline)), *below, class_=f"banner {tone}")


def _compared(name: str, one: Json, report: Json) -> Markup:
    kind = "the control " if one.get("control") else ""
    return tag(
        "p",
        f"For comparison, {kind}",
        tag("b", name),
        f": {one['verdict']}. {words.evidence(name, one, report)}",
        class_="soft",
    )


def foreign_check(difference: str) -> Markup:
    """A check that lies beside the sweep and is not about it."""
    return unshown_check(
        f"The check in this directory is not about this sweep: {difference}. Run `mutransfer check` again for it."
    )


def unshown_check(why: str) -> Markup:
    return tag("section", tag("h2", "Coordinate check: not shown"), tag("p", why))


def check_verdict(check: Json, *, first: bool) -> Markup:
    verdict = str(check["verdict"])
    meaning = CHECK_WORDS.get(verdict, "").format(axis=words.axis_of(check)).capitalize()
    sentence = f"Coordinate check: {verdict}. {meaning}."
    culprits = items([*([check["reason"]] if check.get("reason") else []), *map(_culprit, check.get("culprits", ()))])
    of = tag("p", _of(check), class_="soft")
    return banner(verdict, sentence, culprits, of) if first else tag("section", tag("h2", sentence), culprits, of)


def _of(check: Json) -> str:
    """What was checked, or that the check does not say it."""
    known = said(check)
    if not known:
        return "This check does not say which model and parameterization it is of."
    names = ("parameterization.name", "optimizer.name", "base")
    told = [f"{key.removesuffix('.name')} {known[key]}" for key in names if key in known]
    return f"Of {check.get('model') or 'a model'}: {', '.join(told)}."


def _culprit(one: Any) -> Markup:
    if not isinstance(one, Mapping):
        return text(one)
    numbers = f" ({one['kind']}): measured {one['measured']:+.2f}, law {one['expected']:+.2f}; look at: "
    return join([tag("code", one["name"]), numbers, one.get("look_at", "")])


def target(given: Json) -> Markup:
    """What to train the large model with, to copy."""
    rows = [
        (tag("code", v["key"]), *(f"{v[key]:.4g}" if key in v else "" for key in PER_ROLE), v["rule"], v["source"])
        for v in (*given["values"], *given["roles"])
    ]
    cautions = items(tag("b", f"Caution: {caution}.") for caution in given.get("cautions", ()))
    return tag(
        "section",
        tag("h2", "Train the large model with"),
        tag("pre", tag("code", given["command"]), class_="copy", tabindex="0", title="Click selects all of it"),
        cautions,
        tag(
            "details",
            tag("summary", "Where each number comes from"),
            table(("", "value", "multiplier", "init std x", "rule", "source"), rows, prose=True),
            tag("p", f"{TOGETHER[0].upper() + TOGETHER[1:]}.", class_="soft") if given["roles"] else "",
        ),
    )


def figures(heading: str, caption: object, drawings: Sequence[Drawing], *below: object) -> Markup:
    inner = [tag("figure", Markup(d.svg), id=d.name, style=f"max-width:{d.width}px") for d in drawings]
    drawn, said = tag("div", *inner, class_="figures"), tag("p", caption, class_="soft")
    beside = tag("div", drawn, said, class_="beside" if len(inner) == 1 else "above")
    return tag("section", tag("h2", heading), beside, *below)


def numbers(report: Json) -> Markup:
    """Everything that the verdict rests on, as a table."""
    entries: Mapping[str, Json] = report["parameterizations"]
    every = sorted({size for one in entries.values() for size in one["optimum"]}, key=float)
    columns = [c for c in COLUMNS if any(one[c.key]["value"] is not None for one in entries.values())]
    header = ("", "verdict", *(f"best at {size}" for size in every), *(c.title for c in columns))
    rows = [_row(name, one, every, columns, report["x"]) for name, one in entries.items()]
    title = f"Numbers, with {report['level']:.0%} intervals"
    return tag("section", tag("h2", title), table(header, rows), items(report["notes"]), _glossary(report))


def _row(name: str, one: Json, every: Sequence[str], columns: Sequence[Column], key: str) -> list[object]:
    optimum = [_best(one["optimum"][size], key) if size in one["optimum"] else "" for size in every]
    pill = tag("span", one["verdict"], class_=f"pill {TONES.get(one['verdict'], 'open')}")
    return [name, pill, *optimum, *(_cell(words.spread(one[c.key], c.form)) for c in columns)]


def _best(part: Json, key: str) -> Markup:
    bound = {"<=": "\u2264 ", ">=": "\u2265 "}.get(part.get("bound", ""), "")
    spread = words.octaves(part["log2"]) if key == words.LR else words.spread(part, ".3g")
    value, _, ends = spread.partition(" ")
    shown = join(["2", tag("sup", value)]) if key == words.LR else value
    return join([bound, shown, tag("small", ends) if ends and not bound else ""])  # a bound's spread says nothing


def _cell(spread: str) -> Markup:
    """The value, and its interval below it."""
    value, _, ends = spread.partition(" ")
    return join([value, tag("small", ends)]) if ends else text(value)


def _glossary(report: Json) -> Markup:
    axis, what = report["axis"], words.hyperparameter(report["x"])
    penalties = [one["asymptotic_penalty"].get("reason") for one in report["parameterizations"].values()]
    limit = next((f" Not given here: {reason}." for reason in penalties if reason), "")
    meanings = (
        ("octave", "a factor of two."),
        ("drift", f"how far the best {what} moves each time the {axis} doubles, in octaves; 0 is perfect transfer."),
        ("regret", f"how much worse the largest model gets when it is trained at the smallest model's best {what}."),
        ("loss gap", "best loss at the largest size against the best parameterization's."),
        ("curvature slope", f"how the price of missing the best {what} grows with {axis}; above 0: less forgiving."),
        ("limit gap", f"the loss gap, extrapolated to infinite {axis}.{limit}"),
    )
    inner = [part for word, meaning in meanings for part in (tag("dt", word), tag("dd", meaning))]
    return tag("details", tag("summary", "What these words mean"), tag("dl", *inner))


def slopes(check: Json) -> Markup:
    judged = [one for one in check["slopes"] if one.get("law") is not None]
    rows = [(tag("code", s["name"]), s["kind"], _row_of(s), words.spread(s, "+.2f"), f"{s['law']:+g}") for s in judged]
    if not rows:
        return Markup("")
    axis = words.axis_of(check)
    row = "place" if axis == "depth" else "role"
    shown = table(("parameter", "of", row, f"exponent in {axis}", "law"), rows)
    return tag("details", tag("summary", f"All {len(rows)} exponents"), shown)


def _row_of(slope: Json) -> str:
    """The row of the table that a tensor is held to."""
    return str(slope.get("place") or slope.get("role") or "")


def environment(given: Mapping[str, Any], command: str) -> Markup:
    rows = [(name, str(value)) for name, value in given.items()]
    return tag(
        "section",
        tag("h2", "Made by"),
        tag("pre", tag("code", command or "(no command was recorded)"), class_="copy", tabindex="0"),
        table(("", ""), rows, prose=True) if rows else "",
    )
