"""A check of width or of depth: the sizes, what is built at each, the law that it is held to, and its control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import nn

from mutransfer.check.axes import Axis, DepthAxis, WidthAxis
from mutransfer.check.builds import BuildDeep, builder, deep_builder
from mutransfer.check.embedding import branches_over_stream
from mutransfer.check.plans import Plans
from mutransfer.check.runs import Subject, Training, at_init
from mutransfer.check.subjects import (
    MakeOptimizer,
    converted,
    growing_lr,
    handwritten,
    keeps_lrs,
    one_lr,
)
from mutransfer.convert import Plan
from mutransfer.convert.parameterize import observe_for
from mutransfer.errors import RoleError
from mutransfer.planning.fields import HeadScaling
from mutransfer.planning.observe import Observed
from mutransfer.planning.options import Options
from mutransfer.planning.templates import Templates
from mutransfer.rules.depth import COMPLETEP
from mutransfer.rules.table import Parameterization, Role
from mutransfer.rules.tables import PARAMETERIZATIONS

CONTROL_SEEDS = 3
"""The control's exponents are off by 1/2 and more: few seeds show it, and how large branches are."""
DEPTH_WIDTH = 64
"""Of a depth check, where nothing tells another: 8 tokens are far fewer."""


@dataclass(frozen=True)
class Asked:
    """What `coord_check` was asked, beside the model.

    Attributes:
        table, lr: the parameterization, and the lr at the base.
        widths, depths: one of the two varies; where it is the depths, there is one width.
        base, base_depth: see `coord_check`.
        options: of `mutransfer.plan`: optimizer, form, init, scale, roles, hyperparameters.
        example_inputs: see `mutransfer.plan`.
        make_optimizer: of hand-written code.
    """

    table: Parameterization
    lr: float
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    base: Any
    base_depth: Any
    options: Mapping[str, Any]
    example_inputs: Any
    make_optimizer: MakeOptimizer | None

    @property
    def kept(self) -> bool:
        """Whether the values are the user's own."""
        return bool(self.options["init"] == "keep")

    @property
    def width_only(self) -> Parameterization:
        return replace(self.table, depth=None)

    @property
    def roles(self) -> dict[str, str]:
        """Those that are roles: with depth rules some may be places."""
        return {pattern: role for pattern, role in (self.options["roles"] or {}).items() if role in set(Role)}

    @property
    def width_options(self) -> dict[str, Any]:
        """For a plan without depth rules, which has no place and nothing that multiplies branches."""
        own = {k: v for k, v in (self.options["hyperparameters"] or {}).items() if k != "residual_mult"}
        return {**self.options, "roles": self.roles, "hyperparameters": own}

    @property
    def plain_options(self) -> dict[str, Any]:
        kept = {"init": "keep"} if self.kept else {}
        return {name: self.width_options[name] for name in ("optimizer", "scale", "roles")} | kept


@dataclass(frozen=True)
class Setup:
    """What is run.

    Attributes:
        axis: what varies, and the law.
        sizes: of it.
        subject, control: what is checked, and what must fail beside it.
        base: as the report says it; None where nothing is converted.
        notes: what was done that was not asked for, and those of the largest model's plan.
        same_values: the usual control differs from the subject in nothing but its learning rates.
    """

    axis: Axis
    sizes: tuple[int, ...]
    subject: Subject
    control: Subject
    widths: tuple[int, ...]
    depths: tuple[int, ...] = ()
    base: Any = None
    base_depth: Any = None
    notes: tuple[str, ...] = ()
    same_values: bool = False

    def must_fail(self) -> tuple[Subject, tuple[str, ...]]:
        """The control, and a note if it is not the usual one: where no lr should change (vectors alone are trained, as
        in IA3) that would be the subject itself, and an lr that grows with the size is right for nothing."""
        if not (self.same_values and keeps_lrs(self.subject, self.sizes[0], self.sizes[-1])):
            return self.control, ()
        note = f"every tensor has the same lr at every {self.axis.name}, so the control has one that grows with it"
        return growing_lr(self.subject, self.axis.name, self.sizes[0]), (note,)


def width_setup(given: Any, asked: Asked) -> Setup:
    """The widths of one model; depth rules do not vary with them, so that they are left out."""
    build = builder(given, asked.options["scale"])
    base = asked.widths[0] if asked.base is None else asked.base

    axis = WidthAxis(asked.table.law, asked.roles, asked.kept)
    setup = partial(Setup, axis, asked.widths, widths=asked.widths)
    if asked.make_optimizer is not None:
        subject = handwritten(asked.table.name, build, asked.make_optimizer)
        control = one_lr(build, asked.lr, asked.options["optimizer"])
        return setup(subject, control, same_values=True)

    def observe(_: int, model: nn.Module, options: Options) -> Observed:
        return observe_for(model, options, base, factory=build, example_inputs=asked.example_inputs)

    plans = Plans(build, observe)
    own, sp = plans.by(asked.width_only, asked.width_options), plans.by(PARAMETERIZATIONS["sp"], asked.plain_options)
    subject, control = converted(asked.table.name, build, own, asked.lr), converted("sp", build, sp, asked.lr)
    notes = own(asked.widths[-1]).notes
    return setup(subject, control, base=base, notes=notes, same_values=asked.kept)


def depth_width(given: Any, scale: HeadScaling) -> int:
    """The one width of a depth check that is given none: the config's own, if there is a config."""
    return deep_builder(given, scale)[1] or DEPTH_WIDTH


def depth_setup(given: Any, asked: Asked, training: Training) -> Setup:
    """The depths of one model at one width, parameters pooled by template."""
    deep, _ = deep_builder(given, asked.options["scale"])
    width = asked.widths[0]
    base_depth = asked.depths[0] if asked.base_depth is None else asked.base_depth
    models = _Models(asked, deep, width, width if asked.base is None else asked.base, base_depth)
    return models.as_they_are() if asked.make_optimizer is not None else models.converted(training)


@dataclass(frozen=True)
class _Models:
    """One width at every depth."""

    asked: Asked
    deep: BuildDeep
    width: int
    base: Any
    base_depth: Any

    def as_they_are(self) -> Setup:
        """Hand-written code; only its places are planned."""
        asked = self.asked
        assert asked.make_optimizer is not None
        subject = handwritten(asked.table.name, self._build, asked.make_optimizer)
        control = growing_lr(subject, "depth", asked.depths[0])
        axis = self._axis(self._plans.by(self._deep_table, {**asked.plain_options, "init": "keep"}))
        return Setup(axis, asked.depths, subject, control, (self.width,), asked.depths)

    def converted(self, training: Training) -> Setup:
        asked = self.asked
        deepens = asked.table.depth is not None
        options = asked.options if deepens else asked.width_options
        plans = self._plans.by(asked.table, options)
        axis = self._axis(plans if deepens else self._plans.by(self._deep_table, asked.plain_options))
        subject = self._subject(asked.table.name, plans)
        raised, notes = self._raised(subject, axis, training)
        if raised:
            own = dict(options["hyperparameters"] or {}) | raised
            plans = self._plans.by(asked.table, {**options, "hyperparameters": own})
            subject = self._subject(asked.table.name, plans)
        plain = self._plans.by(asked.width_only, {**asked.plain_options, "hyperparameters": raised})
        control = self._subject("no depth rules", plain)
        sizes, notes = ((self.width,), asked.depths), (*notes, *plans(asked.depths[-1]).notes)
        of = self.base, self.base_depth
        return Setup(axis, asked.depths, subject, control, *sizes, *of, notes, same_values=asked.kept)

    @property
    def _deep_table(self) -> Parameterization:
        """A table without depth rules is held to CompleteP's law, under which the learning rate transfers."""
        table = self.asked.table
        return table if table.depth is not None else replace(table, depth=COMPLETEP)

    def _build(self, depth: int) -> nn.Module:
        return self.deep(self.width, depth)

    @cached_property
    def _plans(self) -> Plans:
        """A table of widths only takes a base of the model's own depth."""

        def observe(depth: int, model: nn.Module, options: Options) -> Observed:
            of: dict[str, Any] = {"factory": self.deep, "base_depth": self.base_depth}
            if options.table.depth is None:
                of = {"factory": lambda width: self.deep(width, depth)}
            return observe_for(model, options, self.base, example_inputs=self.asked.example_inputs, **of)

        return Plans(self._build, observe)

    def _subject(self, name: str, plans: Callable[[int], Plan]) -> Subject:
        return converted(name, self._build, plans, self.asked.lr)

    def _axis(self, plans: Callable[[int], Plan]) -> DepthAxis:
        """The places are those of the deepest model."""
        table, depths = self._deep_table.depth, self.asked.depths
        assert table is not None
        names = [[name for name, _ in self._build(depth).named_parameters()] for depth in (depths[0], depths[-1])]
        templates = Templates.between(*names)
        places = {templates.of(line.name): line.place for line in plans(depths[-1])}
        return DepthAxis(table.law, templates, places, self.asked.kept)

    def _raised(
        self, subject: Subject, axis: DepthAxis, training: Training
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """The hyperparameter that makes the embedding as large as the base's branches together, where it is smaller."""
        asked = self.asked
        if asked.kept:
            return {}, ()
        shown = [at_init(subject, asked.depths[0], seed, training) for seed in range(CONTROL_SEEDS)]
        ratio = max(branches_over_stream(one, axis.places, axis.templates) for one in shown)
        if ratio <= 1:
            return {}, ()
        own = float((asked.options["hyperparameters"] or {}).get("embedding_mult", 1.0))
        raised = {"embedding_mult": own * ratio}
        why = f"at the base the branches together are {ratio:.3g} times the stream that they are added to"
        try:
            self._plans.by(asked.width_only, {**asked.plain_options, "hyperparameters": raised})(asked.depths[0])
        except RoleError as error:
            return {}, (f"{why}, and the embedding cannot be raised: {error}",)
        return raised, (f"{why}, so that the embedding is raised: embedding_mult is {own * ratio:.3g}",)
