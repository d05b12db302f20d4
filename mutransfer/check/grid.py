"""A grid of widths and seeds: trained, held to the law, and extended until the verdict is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mutransfer.check.report import Control
from mutransfer.check.runs import LossNotFiniteError, Run, Subject, Training, run
from mutransfer.check.slopes import Listed, Runs, Slope, parameter_slopes
from mutransfer.check.verdict import Softmax, Verdict, judge, read_softmax
from mutransfer.errors import ConfigError
from mutransfer.rules.table import Parameterization

MORE_SEEDS = 4
"""An undecided check goes on up to this many times the seeds that it was given."""


class DivergenceError(ConfigError):
    """An lr at which the training diverges."""


@dataclass(frozen=True)
class Judged:
    """What a grid of runs says against the law."""

    slopes: list[Slope]
    listed: list[Listed]
    softmax: list[Softmax]
    verdict: Verdict


@dataclass(frozen=True)
class Grid:
    """One grid of widths and seeds, trained and judged by one law."""

    table: Parameterization
    widths: tuple[int, ...]
    training: Training
    roles: Mapping[str, str]
    lr: float
    progress: Callable[[int, int], None] | None

    def until_decided(self, subject: Subject, seeds: int) -> tuple[Runs, Judged]:
        """Doubles the seeds until the verdict and its cause are decided, or the cap is reached."""
        runs: dict[int, list[Run]] = {width: [] for width in self.widths}
        wanted = seeds
        while True:
            self._extend(runs, subject, wanted)
            judged = self._judge(runs)
            if _is_decided(judged) or wanted >= MORE_SEEDS * seeds:
                return runs, judged
            wanted = min(2 * wanted, MORE_SEEDS * seeds)

    def control(self, subject: Subject, seeds: int) -> Control:
        """How what must not pass does; a control that diverges does not pass."""
        runs: dict[int, list[Run]] = {width: [] for width in self.widths}
        try:
            self._extend(runs, subject, seeds)
        except DivergenceError as error:
            return Control(subject.name, "fail", str(error))
        judged = self._judge(runs)
        worst = max(judged.slopes, key=lambda slope: abs(slope.off))
        return Control(subject.name, judged.verdict, f"{worst.name}: {worst.kind} {worst.value:+.2f}")

    def _extend(self, runs: dict[int, list[Run]], subject: Subject, seeds: int) -> None:
        planned = len(self.widths) * seeds
        for seed in range(len(runs[self.widths[0]]), seeds):
            for width in self.widths:
                try:
                    runs[width].append(run(subject, width, seed, self.training))
                except LossNotFiniteError as error:
                    raise DivergenceError(
                        f"{subject.name!r} diverged: its loss is not finite at step {error.step} of width {width}, "
                        f"seed {seed}, with lr {self.lr:g}. Give a smaller lr=."
                    ) from None
                if self.progress is not None:
                    self.progress(sum(len(done) for done in runs.values()), planned)

    def _judge(self, runs: Runs) -> Judged:
        slopes, listed = parameter_slopes(runs, self.table.law, self.roles)
        softmax = read_softmax(runs, self.table.attention)
        return Judged(slopes, listed, softmax, judge(slopes, softmax))


def _is_decided(judged: Judged) -> bool:
    """A failure's cause is only known once it is known whether sizes at init are right: they count first."""
    inits = {slope.status for slope in judged.slopes if slope.kind == "init"}
    cause_open = judged.verdict == "fail" and "outside" not in inits and "undecided" in inits
    return judged.verdict != "undecided" and not cause_open
