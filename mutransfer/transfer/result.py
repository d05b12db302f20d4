"""What an analysis says: plain values, a verdict per parameterization, and the same as JSON, text and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mutransfer.records import jsonable
from mutransfer.transfer.bootstrap import Interval
from mutransfer.transfer.curves import Bound
from mutransfer.transfer.points import Point

Verdict = Literal["transfers", "does not transfer", "undecided"]
EXIT_CODES: Mapping[Verdict, int] = {"transfers": 0, "does not transfer": 1, "undecided": 3}
MAX_DRIFT, MAX_REGRET = 0.25, 0.005


@dataclass(frozen=True)
class Optimum:
    """The best value at one size.

    Attributes:
        lr: with its interval (of whichever hyperparameter is on the x axis).
        log2: the same in octaves.
        loss: interpolated between measured losses, in nats.
        curvature: relative loss lost by missing the best value by one octave.
        residual: octaves above the straight line through all sizes' optima.
        missing: values to add so that the optimum lies between tried ones; empty when it does.
        bound: "<=" or ">=" where it lies at an end of the tried values: there or beyond; else empty.
        between: values to add before seeds where an interval is too wide: the tried ones beside it lie far apart.
    """

    size: float
    lr: Interval
    log2: Interval
    loss: float
    curvature: Interval
    residual: float
    missing: tuple[float, ...] = ()
    bound: Bound = ""
    between: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        parts = {"log2": self.log2.to_json(), "loss": self.loss, "residual": self.residual}
        return (
            self.lr.to_json()
            | parts
            | {
                "interior": not self.missing,
                "missing": list(self.missing),
                "bound": self.bound,
            }
        )


@dataclass(frozen=True)
class Measured:
    """One size's losses as measured: `losses[seed][k]` belongs to `lrs[k]`; None where not run, inf where diverged."""

    lrs: tuple[float, ...]
    mean: tuple[float | None, ...]
    losses: Mapping[int, tuple[float | None, ...]]

    @property
    def lowest(self) -> int:
        """Index of the best value."""
        return min(range(len(self.lrs)), key=lambda k: math.inf if (mean := self.mean[k]) is None else mean)

    def to_json(self) -> dict[str, Any]:
        """Diverged trials are listed apart, since JSON has no infinity."""
        diverged = {seed: [v == float("inf") for v in row] for seed, row in self.losses.items()}
        return {"lr": self.lrs, "mean": self.mean, "losses": self.losses, "diverged": diverged}


@dataclass(frozen=True)
class ParameterizationTransfer:
    """One parameterization's transfer over the axis.

    Attributes:
        optimum: per size, smallest first.
        slope: of log2 of the best value against log2 size, in octaves per doubling.
        drift: its magnitude; the low end is 0 where the slope's interval contains 0.
        regret: relative loss lost at the largest size by using the smallest size's best value.
        curvature_slope: of log2 curvature against log2 size; positive: larger models are less forgiving.
        loss_gap: best loss at the largest size, relative to the best parameterization's.
        asymptotic_penalty: the same for the fitted limit of infinite size.
        missing: size -> values to add before optimum and regret can be told; empty when they can.
        reasons: why the verdict is what it is, one sentence each.
        open: why trials without a result leave it undecided; empty where none does.
    """

    name: str
    verdict: Verdict
    reasons: tuple[str, ...]
    optimum: tuple[Optimum, ...]
    slope: Interval
    drift: Interval
    regret: Interval
    curvature_slope: Interval
    loss_gap: Interval
    asymptotic_penalty: Interval
    missing: Mapping[float, tuple[float, ...]] = field(default_factory=dict)
    curves: Mapping[float, Measured] = field(default_factory=dict)
    is_control: bool = False
    open: str = ""

    def to_json(self) -> dict[str, Any]:
        named = ("slope", "drift", "regret", "curvature_slope", "loss_gap", "asymptotic_penalty")
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "control": self.is_control,
            "optimum": {_key(best.size): best.to_json() for best in self.optimum},
            **{name: getattr(self, name).to_json() for name in named},
            "missing": {_key(size): list(values) for size, values in self.missing.items()},
            "curvature": {_key(best.size): best.curvature.to_json() for best in self.optimum},
            "curves": {_key(size): curve.to_json() for size, curve in self.curves.items()},
        }


@dataclass(frozen=True)
class TransferReport:
    """Whether the best value of a small model is the best one of a larger model.

    Attributes:
        subject: the parameterizations that the verdict is about; with several, the verdict is the worst.
        axis: the direction of growth; `x` the hyperparameter on the x axis.
        level: of every interval.
        settings: parameterization -> what was held fixed, flat.
        followers: parameterization -> size -> fields of the model that followed the size, such as its number of heads.
        hyperparameters: the same analysis with muP's own hyperparameters on the x axis.
        commands: whole lines that run what is missing, where the sweep's config is known.
        open: why trials without a result leave the verdict undecided; empty where none does.
        failed: the points of the same settings whose trials failed.
    """

    verdict: Verdict
    subject: tuple[str, ...]
    parameterizations: Mapping[str, ParameterizationTransfer]
    axis: str = "width"
    x: str = "optimizer.lr"
    level: float = 0.9
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    followers: Mapping[str, Mapping[float, Mapping[str, Any]]] = field(default_factory=dict)
    hyperparameters: Mapping[str, TransferReport] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    open: str = ""
    failed: frozenset[Point] = frozenset()

    @property
    def extend(self) -> list[str]:
        """What to run next: the commands, or else the overrides of the sweep that change."""
        from mutransfer.transfer.grid import extension_overrides

        return list(self.commands) or [f"mutransfer sweep ... {line}" for line in extension_overrides(self)]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def __getitem__(self, name: str) -> ParameterizationTransfer:
        return self.parameterizations[name]

    def to_json(self) -> dict[str, Any]:
        """The content of transfer.json."""
        body = {
            "verdict": self.verdict,
            "open": self.open,
            "subject": self.subject[0] if len(self.subject) == 1 else list(self.subject),
            "level": self.level,
            "axis": self.axis,
            "x": self.x,
            "seeds": list(self.seeds),
            "thresholds": {"drift": MAX_DRIFT, "regret": MAX_REGRET},
            "parameterizations": {name: one.to_json() for name, one in self.parameterizations.items()},
            "extend": self.extend,
            "notes": list(self.notes),
            "settings": self.settings,
            "hyperparameters": {key: report.to_json() for key, report in self.hyperparameters.items()},
        }
        content: dict[str, Any] = jsonable(body)
        return content

    def __str__(self) -> str:
        from mutransfer.transfer.render import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from mutransfer.transfer.render import as_html

        return as_html(self)


def _key(size: float) -> str:
    return f"{size:g}"
