"""The zoo in a table: how many of each source built, shrank, converted and passed, and why the others did not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
COUNTED = (
    ("built", "built", lambda row: True),
    ("shrunk", "shrunk", lambda row: row.get("built")),
    ("converted", "converted", lambda row: row.get("built")),
    ("folded_is_explicit", "folded = explicit", lambda row: row.get("folded_is_explicit") is not None),
    ("check", "check passed", lambda row: row.get("check") is not None),
    ("terminals", "terminals verified", lambda row: row.get("terminals") is not None),
    ("depth_check", "depth check", lambda row: row.get("depth_check") is not None),
)


def summary(rows: Sequence[Row]) -> str:
    """Counts and percentages per source, then reasons grouped by sentence."""
    return "\n".join([*_table(rows), "", *_reasons(rows), "", *_failed(rows)])


def _table(rows: Sequence[Row]) -> list[str]:
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    lines = [f"{'':22}" + "".join(f"{source:>22}" for source in (*by_source, "all"))]
    for column, words, of in COUNTED:
        cells = []
        for group in (*by_source.values(), rows):
            eligible = [row for row in group if of(row)]
            good = sum(row.get(column) in (True, "pass") for row in eligible)
            cells.append(f"{good}/{len(eligible)} {100 * good / len(eligible):.1f}%" if eligible else "-")
        lines.append(f"{words:22}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def _reasons(rows: Iterable[Row]) -> list[str]:
    """Sentences with names and numbers taken out, the most frequent first."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("reason") and row.get("check") is None:
            groups[pattern(row["reason"])].append(row)
    lines = []
    for words, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = ", ".join(row["model"] for row in group[:12])
        lines.append(f"{len(group):4}  {words}\n      {names}")
    return lines


def pattern(reason: str) -> str:
    """What refusals of one kind have in common."""
    bare = re.sub(r"'[^']*'", "'...'", reason)
    bare = re.sub(r"\b[A-Z]\w*[a-z]\w*(Config|Model|For\w+|Backbone|Encoder)\b", "CLASS", bare)
    return re.sub(r"\d[\d.x]*", "N", bare)[:200]


def _failed(rows: Iterable[Row]) -> list[str]:
    checked = [row for row in rows if row.get("check") not in (None, "pass")]
    counts = Counter(row["check"] for row in checked)
    lines = [f"not passed: {dict(counts)}"] if checked else []
    return lines + [
        f"  {row['model']:28} {row['check']:10} culprit {row.get('culprit', '')}; {row['reason'][:140]}"
        for row in checked
    ]
