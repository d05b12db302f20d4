"""The command line of the zoo."""

from __future__ import annotations

import argparse
import fnmatch
import subprocess
from collections.abc import Sequence
from pathlib import Path

from zoo.pool import Row, append_row, read_rows, run_all
from zoo.stages import STAGES, examine
from zoo.subjects import subjects
from zoo.summary import latest, merged, summary

EPILOG = """\
One line of JSON per model and stage is appended to the results; a model that has its line at this stage is skipped, so
the same command continues what was cut off. Every model runs in a process of its own, on one thread.

stages:
  build     made small by the shrinker, inputs found, wider by two
  convert   muP in both forms, attention scale, residual branches, CompleteP
  check     the width check
  depth     the depth check

examples:
  python scripts/zoo.py --stage convert                     every model: builds, shrinks, converts?
  python scripts/zoo.py --stage check --only 'gpt*'         the coordinate check of some
  python scripts/zoo.py --summary                           what is known so far
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not options.summary:
        _run(options)
    print(summary([row for row in merged(read_rows(options.out)) if _wanted(row["model"], row["source"], options)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo.py",
        description="Converts and checks every model of transformers, timm and torch.nn, made small.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=STAGES, default="convert", help="what is asked (default convert)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models, as 'gpt*' or 'timm/*'; commas between")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N models that are not done yet")
    parser.add_argument("--seconds", type=float, default=300.0, help="of computing per model (default 300)")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/zoo.jsonl"), metavar="FILE")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--retry", action="store_true", help="also what is done but has a reason to complain")
    parser.add_argument("--summary", action="store_true", help="only print what is known")
    return parser


def _run(options: argparse.Namespace) -> None:
    done = set() if options.again else _done(read_rows(options.out), options.stage, retry=options.retry)
    waiting = [s for s in subjects() if _wanted(s.name, s.source, options) and (s.source, s.name) not in done]
    waiting = waiting[: options.limit]
    beside = {"stage": options.stage, "commit": _commit()}
    rows = run_all(waiting, lambda subject: examine(subject, options.stage), options.jobs, options.seconds)
    for number, row in enumerate(rows, 1):
        append_row(options.out, {**row, **beside})
        print(f"{number}/{len(waiting)} {_line(row)}", flush=True)


def _commit() -> str:
    """Of the code that is measured."""
    root = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return found.stdout.strip()


def _done(rows: Sequence[Row], stage: str, *, retry: bool) -> set[tuple[str, str]]:
    own = [row for row in latest(rows) if row["stage"] == stage]
    return {(row["source"], row["model"]) for row in own if not (retry and row["reason"])}


def _wanted(name: str, source: str, options: argparse.Namespace) -> bool:
    patterns = options.only.split(",")
    return any(fnmatch.fnmatchcase(full, p) for p in patterns for full in (name, f"{source}/{name}"))


def _line(row: Row) -> str:
    shown = ("depth_check", "check", "converted", "shrunk", "built")
    state = next((word for word in shown if row.get(word) is not None), "reason")
    return f"{row['source']}/{row['model']}: {state} {row.get(state)} {row.get('seconds', '')} {row['reason'][:110]}"
