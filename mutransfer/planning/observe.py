"""What is seen of a model and of its base, before any table says what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mutransfer.errors import MutransferError, RuleError
from mutransfer.planning.base import Base, BaseSpec, read_base
from mutransfer.planning.forward import Forward, forward_of
from mutransfer.planning.ops import Trace
from mutransfer.planning.options import Options
from mutransfer.planning.parts import with_uses_of_parts
from mutransfer.planning.trace import evaluating
from mutransfer.planning.trace_base import BaseTrace, trace_base, trace_model
from mutransfer.planning.untouched import untouched_rng


@dataclass(frozen=True)
class Observed:
    """Serves every plan whose options agree in depth rules or none, in `scale`, and in whether init is "table".

    Attributes:
        model: unchanged.
        known: of the base.
        inputs, traced, forward: of the model, in evaluation mode under depth rules.
        base: its trace on the same inputs or on its own; None where it is a saved plan, or where it takes neither the
            model's inputs nor any that can be guessed, and no attention or depth rule needs it.
        by_config: head_dim grows by the config alone, so that the model's code says what its softmax scale is.
    """

    model: nn.Module
    known: Base
    inputs: Any
    traced: Trace
    forward: Forward
    base: BaseTrace | None
    by_config: bool


def observe(
    model: nn.Module,
    options: Options,
    base: BaseSpec,
    *,
    base_depth: int | Mapping[str, int] | None = None,
    factory: Callable[..., nn.Module] | None = None,
    example_inputs: Any = None,
) -> Observed:
    """Traces the model and its base. See `mutransfer.parameterize` for the arguments and errors."""
    _refuse_wrong_depth(options, base, base_depth)
    if options.table.kind == "absolute":
        raise RuleError(f"{options.table.name!r} is absolute and takes no base.")
    deep, need_laws = options.table.depth is not None, options.init != "table"
    with untouched_rng():
        known = read_base(model, base, factory=factory, depth=base_depth, scale=options.scale, need_laws=need_laws)
        with evaluating(model, deep):
            inputs, found = trace_model(model, example_inputs, known.build)
            traced = with_uses_of_parts(found, model)
            forward = forward_of(traced)
            at_base = _trace_base(known, inputs, needed=deep or bool(forward.scales), evaluated=deep)
    by_config = options.scale == "head_dim" and isinstance(base, int) and factory is None
    return Observed(model, known, inputs, traced, forward, at_base, by_config)


def _refuse_wrong_depth(options: Options, base: BaseSpec, base_depth: Any) -> None:
    name = options.table.name
    if options.table.depth is None and base_depth is not None:
        raise RuleError(
            f"base_depth= is for tables with depth rules, and {name!r} is one of widths only. Leave it out."
        )
    if options.table.depth is not None and isinstance(base, int) and base_depth is None:
        raise RuleError(
            f"{name!r} has rules for depth, and base={base} is a width alone. Give base_depth= too, the base's number "
            "of blocks, or base= as a model or as config fields, whose depth is known."
        )


def _trace_base(known: Base, inputs: Any, *, needed: bool, evaluated: bool) -> BaseTrace | None:
    if known.build is None:
        return None
    try:
        return trace_base(known.build, inputs, evaluated=evaluated)
    except MutransferError:
        if needed:
            raise
    return None
