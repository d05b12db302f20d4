"""The command line of the zoo."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from pathlib import Path

from zoo.pool import Row, append_row, read_rows, run_all
from zoo.stages import STAGES, examine
from zoo.subjects import subjects
from zoo.summary import summary

EPILOG = """\
One line of JSON per model is appended to the results; a model that has its line at this stage (or a later one) is
skipped, so the same command continues what was cut off. Every model runs in a process of its own, on one thread.

examples:
  python scripts/zoo.py --stage convert                     every model: builds, shrinks, converts?
  python scripts/zoo.py --stage check --only 'gpt*'         the coordinate check of some
  python scripts/zoo.py --summary                           what is known so far
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not options.summary:
        _run(options)
    rows = _latest(read_rows(options.out))
    print(summary([row for row in rows if _wanted(row["model"], row["source"], options.only)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo.py",
        description="Converts and checks every model of transformers, timm and torch.nn, made small.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=STAGES, default="check", help="how far (default check)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models, as 'gpt*' or 'timm/*'; commas between")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N models that are not done yet")
    parser.add_argument("--seconds", type=float, default=120.0, help="per model (default 120)")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/zoo.jsonl"), metavar="FILE")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--retry", action="store_true", help="also what is done but has a reason to complain")
    parser.add_argument("--summary", action="store_true", help="only print what is known")
    return parser


def _run(options: argparse.Namespace) -> None:
    done = set() if options.again else _done(_latest(read_rows(options.out)), options.stage, retry=options.retry)
    waiting = [s for s in subjects() if _wanted(s.name, s.source, options.only) and (s.source, s.name) not in done]
    waiting = waiting[: options.limit]
    rows = run_all(waiting, lambda subject: examine(subject, options.stage), options.jobs, options.seconds)
    for number, row in enumerate(rows, 1):
        append_row(options.out, {**row, "stage": options.stage})
        print(f"{number}/{len(waiting)} {_line(row)}", flush=True)


def _done(rows: Sequence[Row], stage: str, *, retry: bool) -> set[tuple[str, str]]:
    return {_key(row) for row in rows if _reached(row, stage) and not (retry and row["reason"])}


def _reached(row: Row, stage: str) -> bool:
    return STAGES.index(row.get("stage", "build")) >= STAGES.index(stage)


def _key(row: Row) -> tuple[str, str]:
    return row["source"], row["model"]


def _latest(rows: Sequence[Row]) -> list[Row]:
    return list({_key(row): row for row in rows}.values())


def _wanted(name: str, source: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(full, p) for p in patterns.split(",") for full in (name, f"{source}/{name}"))


def _line(row: Row) -> str:
    state = next((word for word in ("check", "converted", "shrunk", "built") if row.get(word) is not None), "reason")
    return f"{row['source']}/{row['model']}: {state} {row.get(state)} {row.get('seconds', '')} {row['reason'][:110]}"
