"""What a coordinate check found: printed, saved, drawn, and as the exit code of a verb."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mutransfer.check.axes import MARGIN, AxisName
from mutransfer.check.few import FEW
from mutransfer.check.settings import Setting
from mutransfer.check.slopes import Listed, Slope
from mutransfer.check.verdict import Culprit, Softmax, Verdict
from mutransfer.errors import few
from mutransfer.records import jsonable, write_json

FORMAT = 1
"""Version of the JSON that `save` writes."""
EXIT_CODES: Mapping[Verdict, int] = {"pass": 0, "fail": 1, "undecided": 3}
SHOWN_CULPRITS = 5
_MARKS = {"inside": "ok", "outside": "OUTSIDE", "undecided": "?"}


@dataclass(frozen=True)
class Control:
    """How a parameterization that must not pass did under the same check."""

    name: str
    verdict: Verdict
    worst: str


@dataclass(frozen=True)
class CoordReport:
    """The coordinate check of one model, parameterization and optimizer.

    Attributes:
        verdict: "pass", "fail" or "undecided".
        doubt: why a check that finds nothing wrong cannot vouch that all is right; empty where it can.
        parameterization, source, optimizer, lr, lr_from, widths, depths, seeds, steps, batch: what was run.
        axis: "width" or "depth", whichever of the two varies.
        positions: the most vectors that a weight learns from in one step, in width one whose fan-in grows.
        slopes: per parameter use (judged) and per module, attention site and residual sum (for the plot).
        softmax: effective softmax scales, where head_dim grows.
        groups: eps and weight decay in the optimizer's groups, at the largest size over the smallest.
        listed: parameters that are not judged, and why.
        culprits: what lies wholly outside the law, the cause first.
        control: how the control did; None where the subject does not pass or is itself a control.
        implied: role -> exponents that the table's own cells imply, for information.
        cpu_seconds: of the whole check.
        model: the name of the model's class.
        base, base_depth: width or fields, and depth, at which all factors are 1; None where hand-written code was
            checked, and the depth where it does not vary.
        notes: what was done that was not asked for, and what the plan of the largest model notes.
        init: how the model was filled, see `mutransfer.parameterize`.
        settings: config key -> value of the model, base, parameterization and optimizer, where a config made them.
    """

    verdict: Verdict
    doubt: str
    parameterization: str
    source: str
    optimizer: str
    lr: float
    lr_from: str
    widths: tuple[int, ...]
    seeds: int
    steps: int
    batch: str
    positions: int
    slopes: tuple[Slope, ...]
    softmax: tuple[Softmax, ...]
    listed: tuple[Listed, ...]
    culprits: tuple[Culprit, ...]
    control: Control | None
    implied: Mapping[str, Mapping[str, float]]
    cpu_seconds: float
    axis: AxisName = "width"
    depths: tuple[int, ...] = ()
    groups: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()
    model: str = ""
    base_depth: int | Mapping[str, int] | str | None = None
    base: int | Mapping[str, int] | str | None = None
    init: str = "rescale"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those of the axis."""
        return self.depths if self.axis == "depth" else self.widths

    @property
    def judged(self) -> tuple[Slope, ...]:
        return tuple(slope for slope in self.slopes if slope.law is not None)

    def slope(self, name: str, kind: str = "change") -> Slope:
        """The measured exponent of one parameter use or module. Raises KeyError where there is none."""
        for slope in self.slopes:
            if slope.name == name and slope.kind == kind:
                return slope
        raise KeyError(f"No {kind} slope of {name!r} was measured.")

    @property
    def reason(self) -> str:
        """The verdict in one sentence."""
        if self.verdict == "pass":
            count = len(self.judged)
            lie = "the one interval lies" if count == 1 else f"all {count} intervals lie"
            return f"{lie} inside the law +-{MARGIN:g}"
        if self.verdict == "fail":
            first = self.culprits[0]
            if first.kind not in ("init", "change") or first.name not in {slope.name for slope in self.judged}:
                return f"{first.name}: {first.look_at}"
            return f"{first.name} ({first.kind}) is {first.measured:+.3g} where the law says {first.expected:+.3g}"
        if self.doubt:
            return self.doubt
        open_ = [slope.name for slope in self.judged if slope.status == "undecided"]
        if not open_:
            return "nothing could be judged"
        after = f"the line after {self.seeds} seeds: give more of them, or a larger range of {self.axis}s"
        if len(open_) == 1:
            return f"the interval of {open_[0]} straddles {after}"
        return f"{len(open_)} intervals, that of {open_[0]} among them, straddle {after}"

    def __str__(self) -> str:
        return "\n".join([*self._headline(), "", *_table(self._rows()), *self._remarks(), *self._blame()])

    def _headline(self) -> list[str]:
        varied = ("width", self.widths), ("depth", self.depths)
        sizes = ", ".join(f"{name}{'s' * (len(of) > 1)} {', '.join(map(str, of))}" for name, of in varied if of)
        return [
            f"coordinate check: {self.verdict.upper()}: {self.reason}",
            f"{self.model} in {self.parameterization} with {self.optimizer}, lr {self.lr:g} ({self.lr_from}), "
            f"{sizes}, {self.seeds} seeds, {self.steps} steps on {self.batch}, "
            f"{self.cpu_seconds:.1f} CPU-seconds",
        ]

    def _remarks(self) -> list[str]:
        lines = [
            f"softmax scale of {s.site}: x{s.measured:.4g}, the table says x{s.expected:.4g}" for s in self.softmax
        ]
        lines += [f"note: {note}" for note in self.notes]
        lines += self._behind_what_shrinks()
        lines += _not_judged(self.listed)
        if self.control is not None:
            lines.append(f"control {self.control.name}: {self.control.verdict} ({self.control.worst})")
        if self.verdict != "pass" and self.init == "keep":
            lines += self._sizes_of_kept()
        if self.positions * FEW > self.widths[0]:
            lines.append(
                f"note: {self.positions} positions a step are not far fewer than the smallest width {self.widths[0]}: "
                "updates align only partly, exponents come out low, and a rule that is too large by 1/2 may pass. Give "
                "fewer positions or larger widths."
            )
        return lines

    def _behind_what_shrinks(self) -> list[str]:
        """Where a forward pass makes activations that shrink, what meets them is held to its law relative to them."""
        behind = [slope for slope in self.judged if slope.met < -MARGIN and slope.kind == "init"]
        if not behind:
            return []
        names = few([slope.name for slope in behind])
        return [
            f"note: held relative to the activations met, which shrink with width (n^{behind[0].met:+.1f} before the "
            f"first, as behind a bottleneck of fixed size): {names}"
        ]

    def _sizes_of_kept(self) -> list[str]:
        """The first module of a kept model whose output does not keep its size, as a pretrained one's does."""
        at_init = (slope for slope in self.slopes if slope.what == "module" and slope.kind == "init")
        off = [slope for slope in at_init if slope.lowest > MARGIN or slope.highest < -MARGIN]
        first = min(off, key=lambda slope: slope.order, default=None)
        if first is None:
            return []
        return [
            f"note: at init the output of {first.name} goes as {self.axis}^{first.value:+.2f}; the law is of a model "
            f"whose activations have one size at every {self.axis}, as a trained one's: what is behind it is off too"
        ]

    def _blame(self) -> list[str]:
        shown = self.culprits[:SHOWN_CULPRITS]
        lines = [f"{standing(c, shown[0])}: {c.name} ({c.kind}): {c.look_at}" for c in shown]
        if len(self.culprits) > SHOWN_CULPRITS:
            lines.append(f"... and {len(self.culprits) - SHOWN_CULPRITS} more")
        if self.verdict != "pass" and self.implied:
            implied = (f"{role}: init {e['init']:+g}, change {e['change']:+g}" for role, e in self.implied.items())
            lines.append(f"the table's own cells imply: {'; '.join(implied)}")
        return lines

    def _rows(self) -> list[tuple[str, ...]]:
        by_name: dict[str, dict[str, Slope]] = {}
        shown = (slope for slope in self.slopes if slope.what == "parameter")
        for slope in sorted(shown, key=lambda slope: slope.order):
            by_name.setdefault(slope.name, {})[slope.kind] = slope
        rows: list[tuple[str, ...]] = [
            ("parameter", "place" if self.axis == "depth" else "role", "at init", "law", "", "change", "law", "")
        ]
        for name, kinds in by_name.items():
            group = next(iter(kinds.values())).group
            rows.append((name, group, *_cells(kinds.get("init")), *_cells(kinds.get("change"))))
        return rows

    def _repr_html_(self) -> str:
        header, *rows = self._rows()
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        title = html.escape(f"Coordinate check: {self.verdict}: {self.reason}")
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p><b>{title}</b></p>{table}" + (f"<ul>{notes}</ul>" if notes else "")

    def to_json(self) -> dict[str, Any]:
        """The whole report in JSON's types; `mutransfer.figures.coordinates` draws from it alone."""
        fields = asdict(self)
        fields["slopes"] = [asdict(slope) | {"status": slope.status} for slope in self.slopes]
        extra = {"format": FORMAT, "kind": "mutransfer coordinate check", "reason": self.reason, "margin": MARGIN}
        return {**extra, **jsonable(fields)}

    def save(self, path: str | Path) -> Path:
        """Writes the report as JSON. Raises RunError where the path cannot be written."""
        return write_json(path, self.to_json())

    def plot(self, path: str | Path) -> Path:
        """Draws contributions and activations against the size; the format follows the suffix (.svg, .png, .pdf)."""
        from mutransfer.figures.coordinates import save_coordinates

        return save_coordinates(self.to_json(), path)


def standing(culprit: Culprit, first: Culprit) -> str:
    """What one culprit is beside the first: an exponent follows from one that is as far off, and what the optimizer's
    groups say follows from a wrong lr alone."""
    if culprit is first:
        return "culprit"
    if culprit.kind in ("eps", "decay"):
        return "perhaps its consequence" if first.kind == "change" else "wrong too"
    exponents = first.kind in ("init", "change") and culprit.kind in ("init", "change")
    farther = abs(culprit.measured - culprit.expected) > abs(first.measured - first.expected) + MARGIN
    return "wrong too, and farther off" if exponents and farther else "perhaps its consequence"


def _cells(slope: Slope | None) -> tuple[str, str, str]:
    if slope is None:
        return "-", "", ""
    spread = f"{slope.value:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}]"
    if slope.law is None:
        return spread, "-", ""
    law = f"{slope.law:+g}" if slope.at_most is None else f"<={slope.at_most:+g}"
    return spread, law, _MARKS[slope.status]


def _not_judged(listed: Sequence[Listed]) -> list[str]:
    """One line a reason: all of a frozen model have the same one."""
    names: dict[str, list[str]] = {}
    for item in listed:
        names.setdefault(item.why, []).append(item.parameter)
    return [f"not judged: {few(of)}: {why}" for why, of in names.items()]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    columns = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, columns, strict=True)).rstrip() for row in rows]
