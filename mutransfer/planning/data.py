"""The Plan as frozen data: one printable, JSON-able line per parameter, keyed by parameter name."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from mutransfer.errors import RuleError, ShapeError, nearest
from mutransfer.planning import render
from mutransfer.planning.forward import Forward
from mutransfer.planning.laws import Law
from mutransfer.records import jsonable, read_json, write_json
from mutransfer.rules.depth import Place
from mutransfer.rules.table import Role

FORMAT = 2
"""Version of the JSON that `save` writes."""

Form = Literal["auto", "folded", "explicit"]
Init = Literal["rescale", "table", "keep"]


@dataclass(frozen=True)
class ParamPlan:
    """What is done to one parameter. Factors multiply the value that the user gives for the base model.

    Attributes:
        name: as in `model.named_parameters()`; `aliases` are the other names of a tied tensor.
        shape, base_shape: sizes in the model and at the base.
        role: input, hidden, output, vector or scalar; `uses` says how the trace saw it ("lookup, contraction").
        fan_in: number of entries summed per output; 1 where nothing is contracted.
        m_in, m_out: size ratios to the base, of the contracted dimensions and of the others.
        init_law, base_law: how a fresh tensor is filled, in the model and at the base.
        init_std: its standard deviation once the plan is applied; 0 for a constant.
        init_factor: what a fresh tensor is multiplied by.
        multiplier: in the forward pass; 1 when folded.
        fold: the stored tensor over the one that the table describes: its own multiplier, another tensor's, the inverse
            of a constant in the forward pass, or 1.
        carried: the part of the fold that acts for another tensor: a tied readout's multiplier, a softmax scale.
        lr, eps, weight_decay: factors on the optimizer's values.
        clip: weight of its gradient in the global norm, see `Plan.clip_grad_norm_`.
        place: where it stands in a residual stack, and `m_depth`: how much deeper that is than the base's; outside
            and 1 under a table of widths only.
        offset: a number that it enters with (1 of a gain that is 1 + w): the fold is on their sum.
        growing: the dimensions that follow the width.
        frozen: it does not require a gradient; it is initialised but never grouped.
        why: the reason in words.
    """

    name: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    role: Role
    uses: str
    fan_in: int
    m_in: float
    m_out: float
    init_law: Law
    base_law: Law
    init_std: float
    init_factor: float
    multiplier: float
    fold: float
    lr: float
    eps: float
    weight_decay: float
    clip: float
    carried: float = 1.0
    place: Place = Place.OUTSIDE
    m_depth: float = 1.0
    offset: float = 0.0
    growing: tuple[int, ...] = ()
    aliases: tuple[str, ...] = ()
    frozen: bool = False
    why: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        values = dict(data)
        for key in ("shape", "base_shape", "growing", "aliases"):
            values[key] = tuple(values[key])
        for key in ("init_law", "base_law"):
            values[key] = Law.from_json(values[key])
        values |= {"role": Role(values["role"]), "place": Place(values["place"])}
        return cls(**values)


@dataclass(frozen=True)
class Rows:
    """Some entries along one dimension of a tensor, in a pattern that repeats: the queries of every head, say.

    Attributes:
        axis: the dimension.
        sizes: how many entries lie together, in one period of the pattern.
        own: which of those are meant.
    """

    axis: int
    sizes: tuple[int, ...]
    own: tuple[bool, ...]

    @classmethod
    def of(cls, axis: int, own: Sequence[bool]) -> Self:
        """Those for which `own` is true, one for each entry along the dimension."""
        size = len(own)
        divisors = (period for period in range(1, size + 1) if size % period == 0)
        period = next(p for p in divisors if list(own[:p]) * (size // p) == list(own))
        runs = [(meant, len(list(run))) for meant, run in itertools.groupby(own[:period])]
        return cls(axis, tuple(length for _, length in runs), tuple(bool(meant) for meant, _ in runs))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["axis"]), tuple(map(int, data["sizes"])), tuple(map(bool, data["own"])))

    @property
    def period(self) -> int:
        return sum(self.sizes)

    def __str__(self) -> str:
        ends = list(itertools.accumulate(self.sizes))
        runs = zip(self.own, self.sizes, ends, strict=True)
        words = ", ".join(f"{end - size}:{end}" for own, size, end in runs if own)
        return f"{words} of every {self.period} along dimension {self.axis}"


@dataclass(frozen=True)
class SwapPlan:
    """A multiplier in the forward pass: which module is given another class.

    Attributes:
        module: its path in the model.
        parameter: the local name of the parameter that the multiplier belongs to.
        multiplier: on that parameter's contribution, or for an attention's softmax scale.
        side: "module" (the layer's input or output is scaled), "parameter" (the parameter is, where it is read),
            "rows" (some of the parameter's rows are, where it is read), or "output" (all that the module returns is).
        rows: which those are.
    """

    module: str
    parameter: str
    multiplier: float
    side: Literal["module", "parameter", "rows", "output"]
    rows: Rows | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        rows = data.get("rows")
        return cls(**{**data, "rows": None if rows is None else Rows.from_json(rows)})


@dataclass(frozen=True)
class AttentionPlan:
    """A softmax scale that is set on a module.

    Attributes:
        module, attribute: where; the attribute was proven to be the scale by changing it and tracing again.
        value: the attribute's new value.
        scale: the softmax scale that results, the factor on q k.
        head_dim, base_head_dim: the size that q and k are contracted over.
        why: the reason in words.
    """

    module: str
    attribute: str
    value: float
    scale: float
    head_dim: int
    base_head_dim: int
    why: str


@dataclass(frozen=True)
class PlanData:
    """One model's plan.

    Attributes:
        parameterization, optimizer: registry names.
        source: paper and table.
        form: "folded" (init and lr only, the forward pass untouched) or "explicit"; what "auto" came to.
        init: "rescale", "table" or "keep".
        base: what the base was given as, in words.
        params: one line per parameter, in the model's order.
        swaps, attention: what changes in the forward pass.
        base_forward: what the base's forward pass does with width beside its parameters, so that a saved plan can
            be a base.
        hyperparameters: muP's own, those that are not 1.
        notes: what a user should know and would not see.
    """

    parameterization: str
    optimizer: str
    source: str
    form: str
    init: str
    base: str
    params: tuple[ParamPlan, ...]
    swaps: tuple[SwapPlan, ...] = ()
    attention: tuple[AttentionPlan, ...] = ()
    base_forward: Forward = field(default_factory=lambda: Forward({}))
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> ParamPlan:
        for line in self.params:
            if name == line.name or name in line.aliases:
                return line
        raise KeyError(f"The plan has no parameter {name!r}.{nearest(name, self.names())}")

    def __iter__(self) -> Iterator[ParamPlan]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def names(self) -> list[str]:
        return [line.name for line in self.params]

    def __str__(self) -> str:
        return render.as_text(self)

    def _repr_html_(self) -> str:
        return render.as_html(self)

    def explain(self, name: str) -> str:
        """One parameter's line in full sentences."""
        return render.explain(self[name])

    def diff(self, other: PlanData) -> str:
        """What differs from another plan, one line per changed value; empty where the two train alike."""
        return render.diff(self, other)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "kind": "mutransfer plan", **jsonable(dataclasses.asdict(self))}

    def save(self, path: str | Path) -> Path:
        """Writes the plan as JSON. Raises RunError where the path cannot be written."""
        return write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote. Raises RunError or ShapeError for anything else; nothing in the file is run."""
        return cls.from_json(read_json(path), origin=str(path))

    @classmethod
    def from_json(cls, data: Any, *, origin: str = "this JSON") -> Self:
        if not isinstance(data, Mapping) or data.get("kind") != "mutransfer plan":
            raise ShapeError(f"{origin} is not a plan. Give a file that plan.save() wrote.")
        if data.get("format") != FORMAT:
            raise RuleError(
                f"{origin} has plan format {data.get('format')!r}; this version reads {FORMAT}. Make the plan again."
            )
        values = {k: v for k, v in data.items() if k not in ("format", "kind")}
        try:
            values["params"] = tuple(ParamPlan.from_json(p) for p in values["params"])
            _refuse_senseless(values["params"])
            values["swaps"] = tuple(SwapPlan.from_json(s) for s in values["swaps"])
            values["attention"] = tuple(AttentionPlan(**a) for a in values["attention"])
            values["base_forward"] = Forward.from_json(values["base_forward"])
            values["notes"] = tuple(values["notes"])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShapeError(f"{origin} is a damaged plan ({error}). Make the plan again.") from None


def _refuse_senseless(lines: Sequence[ParamPlan]) -> None:
    """Raises ValueError for a factor that no plan has, or a parameter with two lines."""
    for line in lines:
        for name in ("lr", "eps", "weight_decay", "clip", "init_factor", "multiplier", "fold"):
            value = getattr(line, name)
            if not 0 <= float(value) < math.inf:
                raise ValueError(f"{line.name!r} has {name} {value!r}")
    counts = Counter(line.name for line in lines)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} has several lines")
