"""Benchmarks of mutransfer. See `python scripts/bench.py --help`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from benchmarks import overhead  # noqa: E402
from benchmarks.environment import describe  # noqa: E402
from benchmarks.steps import Sizes  # noqa: E402

from mutransfer.errors import MutransferError  # noqa: E402
from mutransfer.records import write_json  # noqa: E402
from mutransfer.train.device import find_device  # noqa: E402

MODES = ("eager", "compiled")
EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
EXAMPLES = """\
examples:
  python scripts/bench.py overhead                                  eager and compiled, about five minutes on one core
  python scripts/bench.py overhead --mode eager --pairs 120         a tighter interval
  python scripts/bench.py overhead --device cuda --steps 10 --batch 16 --length 512 --out overhead-gpu.json

Every comparison is made of interleaved pairs: each pair times both sides, and who goes first alternates. The number is
the median of the paired ratios with one-sided 95 % bounds; 'plain / plain' shows the noise. CPU time on a CPU (other
programs do not count), events on a CUDA device. Exit code: 0 the upper bound is within the limit, 1 the lower bound is
above it, 2 bad input, 3 undecided (more pairs will tell).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _overhead(options)
    except MutransferError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.py", description="Benchmarks of mutransfer.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser(
        "overhead",
        help="a training step of the explicit form against the plain model",
        description="What the explicit and the folded form of muP cost per training step, against the plain model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--mode", choices=(*MODES, "both"), default="both", help="with or without torch.compile")
    verb.add_argument("--pairs", type=_count(2), default=60, help="interleaved pairs per comparison (default 60)")
    verb.add_argument("--steps", type=_count(1), default=1, help="steps timed together on each side (default 1)")
    verb.add_argument("--warmup", type=_count(1), default=5, help="untimed steps of every model before (default 5)")
    verb.add_argument("--threads", type=_count(1), default=1, help="that torch may use (default 1)")
    verb.add_argument("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    verb.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    for field in dataclasses.fields(Sizes):
        kind: Any = str if field.name == "precision" else _count(1)
        verb.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"(default {field.default})")
    return parser


def _count(least: int) -> Any:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return count


def _overhead(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)})
    result: dict[str, Any] = {
        "benchmark": "overhead",
        "environment": describe(device),
        "config": dataclasses.asdict(sizes) | {name: getattr(options, name) for name in ("pairs", "steps", "warmup")},
        "limit": overhead.LIMIT,
        "modes": {},
    }
    for mode in MODES if options.mode == "both" else (options.mode,):
        result["modes"][mode] = _measure(sizes, mode, device, options)
        print(overhead.table(mode, result["modes"][mode]), flush=True)
        result["verdict"] = _worst([one["verdict"] for one in result["modes"].values()])
        if options.out is not None:
            write_json(options.out, result)
    return EXIT_CODES[result["verdict"]]


def _measure(sizes: Sizes, mode: Any, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    def progress(done: int) -> None:
        end = "\n" if done == options.pairs else ""
        print(f"\r{mode}: pair {done} of {options.pairs}", end=end, file=sys.stderr, flush=True)

    counts = {name: getattr(options, name) for name in ("pairs", "steps", "warmup")}
    return overhead.measure(sizes, mode, device, progress=progress, **counts)


def _worst(verdicts: Sequence[str]) -> str:
    return next(verdict for verdict in ("fail", "undecided", "pass") if verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
