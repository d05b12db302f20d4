"""What has to be measured on a GPU, in parts that can be cut short and continued. See `bash scripts/gpu.sh --help`."""

from __future__ import annotations

import time

STARTED = time.monotonic()  # importing torch counts towards the budget

import argparse  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from benchmarks.coordinates import CheckSettings, check_part  # noqa: E402
from benchmarks.environment import describe  # noqa: E402
from benchmarks.parts import Budget, Part, run_part  # noqa: E402
from benchmarks.speed import OVERHEAD, THROUGHPUT, SpeedSettings, overhead_part, throughput_part  # noqa: E402
from benchmarks.steps import Sizes  # noqa: E402
from benchmarks.sweep import SweepSettings, sweep_part  # noqa: E402

from mutransfer.errors import ConfigError, MutransferError  # noqa: E402


@dataclass(frozen=True)
class Entry:
    """A part by name: what it measures, and its settings on a GPU and in a dry run."""

    about: str
    make: Callable[[Any, torch.device], Part]
    settings: Any
    dry: Any


TINY = Sizes(width=32, base=16, depth=1, vocab=64, head_dim=8, batch=2, length=8)
PARTS = {
    "check": Entry(
        "coordinate check at widths 256 to 4096: muP must pass, SP must fail",
        check_part,
        CheckSettings(),
        CheckSettings((64, 128, 256), 64, 1, 16, 64, 8, 2, guess=0.1),
    ),
    "overhead": Entry(
        "a training step of the explicit form against the plain model (bench.py)",
        overhead_part,
        OVERHEAD,
        SpeedSettings((TINY,), pairs=3, steps=1, warmup=1, guess=0.1),
    ),
    "throughput": Entry(
        "tokens per second: plain, folded and explicit; eager and compiled",
        throughput_part,
        THROUGHPUT,
        SpeedSettings((TINY,), pairs=3, steps=1, warmup=1, guess=0.1),
    ),
    "sweep": Entry(
        "learning rates over widths 256 to 2048, muP and SP, bf16, compiled: does the optimum transfer?",
        sweep_part,
        SweepSettings(),
        SweepSettings(16, (16, 32), (-8, -6, -4), -8, -6, (0,), 1, 8, 2, 16, 4, eval_batches=1, guess=0.1),
    ),
}
EXIT_CODES = {"done": 0, "failed": 1, "left": 3}
EPILOG = """\
Each part writes DIR/PART.json after every unit of work (a trial, a check, a timing), with the device's name. A call
ends before its budget does and says what is left; the same command continues from the JSON and repeats nothing.
--dry runs the same code at toy sizes on a CPU, compiled without a code generator.

examples:
  bash scripts/gpu.sh all --budget 540 --out results/gpu
  bash scripts/gpu.sh sweep --budget 540 --out results/gpu      again and again, until it says that nothing is left
  bash scripts/gpu.sh check --budget 120 --dry

Exit code: 0 all is done, 1 a unit failed, 2 bad input, 3 some is left. Python: $PYTHON, .venv/bin/python, python3.
"""


def main(arguments: Sequence[str] | None = None, started: float | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _run(options, Budget(options.budget, started))
    except MutransferError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parts = "\n".join(f"  {name:12}{entry.about}" for name, entry in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="gpu.sh",
        description=f"Measures on one GPU.\n\nparts:\n{parts}\n  {'all':12}all of them, in this order (default)",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", choices=(*PARTS, "all"), default="all", metavar="PART")
    parser.add_argument("--budget", type=_seconds, default=540.0, metavar="SECONDS", help="of this call (default 540)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results (default runs/gpu, or runs/gpu-dry)")
    parser.add_argument("--dry", action="store_true", help="toy sizes on a CPU")
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _run(options: argparse.Namespace, budget: Budget) -> int:
    if not options.dry and not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device here. Run this on a machine with a GPU, or give --dry.")
    device = torch.device("cpu" if options.dry else "cuda")
    folder = options.out or Path("runs", "gpu-dry" if options.dry else "gpu")
    environment = {**describe(device), "dry": options.dry}
    statuses = []
    with _compiler(options.dry):
        for name in PARTS if options.part == "all" else (options.part,):
            entry = PARTS[name]
            part = entry.make(entry.dry if options.dry else entry.settings, device)
            statuses.append(run_part(part, folder, environment, budget))
    return EXIT_CODES[next(status for status in ("failed", "left", "done") if status in statuses)]


@contextmanager
def _compiler(dry: bool) -> Iterator[None]:
    """A dry run compiles up to the code generator, whose C++ would take most of a minute."""
    if not dry:
        yield
        return
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        yield


if __name__ == "__main__":
    sys.exit(main(started=STARTED))
