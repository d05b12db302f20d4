"""The zoo in a table: how many of each source built, shrank, converted and passed, and why the others did not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
TARGETS = (
    ("built", "builds by itself", lambda row: True, None),
    ("answered", "converted or a sentence", lambda row: row.get("built") is not False, 100),
    ("shrunk", "shrunk", lambda row: row.get("built") is not False, None),
    ("converted", "converted", lambda row: row.get("built") is not False, 95),
    ("attention_scale", "attention scale", lambda row: "attention_scale" in row, None),
    ("folded_is_explicit", "folded = explicit", lambda row: "folded_is_explicit" in row, None),
    ("all_verified", "terminals verified", lambda row: _has_stacks(row), None),
    ("completep", "CompleteP converted", lambda row: _has_stacks(row), 90),
    ("check", "width check passed", lambda row: row.get("check") is not None, 95),
    ("depth_check", "depth check passed", lambda row: row.get("depth_check") is not None, 90),
)  # fmt: skip
"""Column, words, of which rows, and the percentage that is wanted."""
REASONS = ("reason", "attention_scale_reason", "folded_is_explicit_reason", "branches_reason", "terminals_reason",
           "completep_reason", "check_reason", "depth_reason")  # fmt: skip


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last line of every model and stage."""
    return list({(row["source"], row["model"], row["stage"]): row for row in rows}.values())


def merged(rows: Iterable[Row]) -> list[Row]:
    """One row per model, of all its stages; a later stage's reason has the stage's name."""
    models: dict[tuple[str, str], Row] = {}
    for row in latest(rows):
        known = models.setdefault((row["source"], row["model"]), {})
        own = {key: value for key, value in row.items() if not (key in ("built", "shrunk") and known)}
        if row["stage"] in ("check", "depth"):
            own[f"{row['stage']}_reason"] = own.pop("reason")
        known |= own
    return [_judged(row) for row in models.values()]


def _judged(row: Row) -> Row:
    """With the columns that follow from others."""
    crashed = row.get("reason", "").startswith(("CRASH", "TIME", "DIED"))
    return row | {"answered": not crashed, "all_verified": row.get("terminals") == row.get("branches")}


def _has_stacks(row: Row) -> bool:
    """Whether there are residual branches that repeat, or its layers have a number and what they add was not found."""
    return row.get("branches") is False or bool(row.get("branches"))


def summary(rows: Sequence[Row]) -> str:
    """Counts and percentages per source, then reasons grouped by sentence."""
    return "\n".join([*_table(rows), *(line for column in REASONS for line in _reasons(rows, column))])


def _table(rows: Sequence[Row]) -> list[str]:
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    lines = [f"{'':24}" + "".join(f"{source:>18}" for source in (*by_source, "all", "wanted"))]
    for column, words, of, wanted in TARGETS:
        cells = [_share(group, column, of) for group in (*by_source.values(), rows)]
        cells.append(f"{wanted}%" if wanted else "")
        lines.append(f"{words:24}" + "".join(f"{cell:>18}" for cell in cells))
    return lines


def _share(rows: Iterable[Row], column: str, of: Callable[[Row], object]) -> str:
    eligible = [row for row in rows if of(row)]
    good = sum(row.get(column) in (True, "pass") for row in eligible)
    return f"{good}/{len(eligible)} {100 * good / len(eligible):.1f}%" if eligible else "-"


def _reasons(rows: Iterable[Row], column: str) -> list[str]:
    """Sentences with names and numbers taken out, the most frequent first."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get(column):
            groups[pattern(row[column])].append(row)
    lines = ["", f"{column}:"] if groups else []
    for words, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = ", ".join(row["model"] for row in group[:12])
        lines.append(f"{len(group):4}  {words}\n      {names}")
    return lines


def pattern(reason: str) -> str:
    """What refusals of one kind have in common."""
    bare = re.sub(r"'[^']*'", "'...'", reason)
    bare = re.sub(r"\b[A-Z]\w*[a-z]\w*(Config|Model|For\w+|Backbone|Encoder)\b", "CLASS", bare)
    bare = re.sub(r"\b[\w*]+(\.[\w*]+)+", "NAME", bare)
    return re.sub(r"[+-]?\d[\d.xe-]*", "N", bare)[:200]
