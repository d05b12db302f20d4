"""A grid of sizes and seeds: trained, held to the law, and extended until the verdict is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mutransfer.check.axes import Axis, Runs
from mutransfer.check.blocks import odd_blocks
from mutransfer.check.report import Control
from mutransfer.check.runs import LossNotFiniteError, Run, Settings, Subject, Training, run
from mutransfer.check.settings import read_settings
from mutransfer.check.slopes import Listed, parameter_slopes
from mutransfer.check.verdict import Findings, read_softmax
from mutransfer.errors import ConfigError
from mutransfer.rules.optimizers import Optimizer
from mutransfer.rules.table import Parameterization

MORE_SEEDS = 4
"""An undecided check goes on up to this many times the seeds that it was given."""


class DivergenceError(ConfigError):
    """An lr at which the training diverges."""


@dataclass(frozen=True)
class Judged:
    """What a grid of runs says against the law."""

    found: Findings
    listed: list[Listed]


@dataclass(frozen=True)
class Grid:
    """One grid of sizes and seeds, trained and judged by one law."""

    table: Parameterization
    optimizer: Optimizer
    axis: Axis
    sizes: tuple[int, ...]
    training: Training
    lower: str
    progress: Callable[[int, int], None] | None

    def until_decided(self, subject: Subject, seeds: int) -> tuple[Runs, Judged]:
        """Doubles the seeds until the verdict and its cause are decided, or the cap is reached."""
        runs: dict[int, list[Run]] = {size: [] for size in self.sizes}
        settings = subject.settings((self.sizes[0], self.sizes[-1]))
        wanted = seeds
        while True:
            self._extend(runs, subject, wanted)
            judged = self._judge(runs, settings)
            if _is_decided(judged.found) or wanted >= MORE_SEEDS * seeds:
                return runs, judged
            wanted = min(2 * wanted, MORE_SEEDS * seeds)

    def control(self, subject: Subject, seeds: int) -> Control:
        """How what must not pass does; a control that diverges does not pass."""
        runs: dict[int, list[Run]] = {size: [] for size in self.sizes}
        try:
            self._extend(runs, subject, seeds)
        except DivergenceError as error:
            return Control(subject.name, "fail", str(error))
        found = self._judge(runs, {}).found
        worst = max(found.judged, key=lambda slope: abs(slope.off))
        return Control(subject.name, found.verdict, f"{worst.name}: {worst.kind} {worst.value:+.2f}")

    def _extend(self, runs: dict[int, list[Run]], subject: Subject, seeds: int) -> None:
        planned = len(self.sizes) * seeds
        for seed in range(len(runs[self.sizes[0]]), seeds):
            for size in self.sizes:
                try:
                    runs[size].append(run(subject, size, seed, self.training))
                except LossNotFiniteError as error:
                    raise DivergenceError(
                        f"{subject.name!r} diverged: its loss is not finite at step {error.step} of {self.axis.name} "
                        f"{size}, seed {seed}, with {self.lower}."
                    ) from None
                if self.progress is not None:
                    self.progress(sum(len(done) for done in runs.values()), planned)

    def _judge(self, runs: Runs, settings: Mapping[int, Mapping[str, Settings]]) -> Judged:
        slopes, listed = parameter_slopes(runs, self.axis)
        softmax = [] if self.axis.kept else read_softmax(runs, self.table.attention)
        read = read_settings(runs, self.axis, self.table, self.optimizer, settings) if settings else []
        odd = [] if any(slope.status == "outside" for slope in slopes) else odd_blocks(runs, self.axis)
        return Judged(Findings(slopes, softmax, read, odd, self.axis.name), listed)


def _is_decided(found: Findings) -> bool:
    """A failure's cause is only known once it is known whether sizes at init are right, for they count first, and
    whether any lr is wrong, for it shows in eps and decay too."""
    inits = {slope.status for slope in found.judged if slope.kind == "init"}
    every = {slope.status for slope in found.judged}
    cause_open = any("outside" not in statuses and "undecided" in statuses for statuses in (inits, every))
    return found.verdict == "pass" or (found.verdict == "fail" and not cause_open)
