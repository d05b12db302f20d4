"""The base, however it was given: a width, config fields, a module, a saved plan. All become sizes, laws and scales."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mutransfer.errors import ConfigError, MutransferError, ShapeError
from mutransfer.planning import rebuild
from mutransfer.planning.base_laws import (
    defaults_of,
    exact,
    is_vector,
    laws_by_values,
    laws_of_two,
    laws_of_vectors,
    off_zero,
    parameters_of,
    snapped,
)
from mutransfer.planning.constructors import read_laws
from mutransfer.planning.data import ParamPlan, PlanData
from mutransfer.planning.depths import depth_values, is_depth, with_lists
from mutransfer.planning.fields import HeadScaling, Path
from mutransfer.planning.forward import Forward
from mutransfer.planning.laws import Law, estimate, fits
from mutransfer.planning.rebuild import Build, Rebuilt
from mutransfer.planning.resize import differing_fields, given_fields, own_width, width_changes
from mutransfer.planning.sizes import Dim, Shapes, check_structure, compare, shapes_of
from mutransfer.planning.stacks import Stacks, compare_depths

BaseSpec = int | Mapping[str, Any] | nn.Module | str | pathlib.Path


@dataclass(frozen=True)
class Base:
    """What is known of the base.

    Attributes:
        dims: parameter name -> dimensions in base and model.
        laws: how each fresh tensor is filled at the base; empty where nothing tells.
        own_laws: the same in the model.
        build: makes the base, to trace its attention; None where it cannot be made.
        forward: of the base, where it is known without building.
        words: what the base is, for the printed plan.
        stacks: which of its tensors stands for which of the model's; dims and laws have the model's names.
        deeper: makes the base twice as deep, where its depth can be chosen.
    """

    dims: Mapping[str, tuple[Dim, ...]]
    laws: Mapping[str, Law]
    own_laws: Mapping[str, Law]
    build: Build | None
    forward: Forward | None
    words: str
    stacks: Stacks
    deeper: Build | None = None


def read_base(
    model: nn.Module,
    base: BaseSpec,
    *,
    factory: Callable[..., nn.Module] | None = None,
    depth: int | Mapping[str, int] | None = None,
    scale: HeadScaling = "heads",
    need_laws: bool = True,
) -> Base:
    """Reads the base in whatever form it was given.

    Args:
        depth: the base's, where it is given as a width; else the base has one.

    Raises:
        ConfigError, ShapeError: it does not fit the model, or the model cannot be made at the base's size.
    """
    if not isinstance(base, int | Mapping | nn.Module | str | pathlib.Path):
        raise ConfigError(
            f"base= is a {type(base).__name__}; give a width, a dict of config fields, a model, or a saved plan's path."
        )
    if isinstance(base, bool) or (isinstance(base, int) and base <= 0):
        raise ConfigError(f"base={base!r} must be a width, a positive whole number.")
    if factory is not None and not isinstance(base, int):
        raise ConfigError(
            "factory= makes models from a width: give base= as the base's width with it. A base that is a model, "
            "config fields or a saved plan has sizes of its own: leave factory= out with it."
        )
    if depth is not None and not isinstance(base, int):
        raise ConfigError("base_depth= goes with a base= that is a width; any other base has a depth of its own.")
    if isinstance(base, int) and factory is not None:
        return _rebuilt(shapes_of(model), rebuild.from_factory(shapes_of(model), factory, base, depth), need_laws)
    if isinstance(base, int | Mapping):
        return _from_config(model, base, depth, scale, need_laws)
    if isinstance(base, nn.Module):
        return _from_module(model, base, need_laws)
    return _from_file(model, pathlib.Path(base), need_laws)


def _from_config(
    model: nn.Module,
    base: int | Mapping[str, Any],
    depth: int | Mapping[str, int] | None,
    scale: HeadScaling,
    need_laws: bool,
) -> Base:
    if not rebuild.has_config(model):
        raise ShapeError(
            f"{type(model).__name__} cannot be built at another width: it has no .config, an object or a dict that its "
            "class takes. Give factory= (a function from width to model), or give base= as a model of the base's size."
        )
    if isinstance(base, int):
        depths = {} if depth is None else depth_values(model.config, depth)
        return _rebuilt(shapes_of(model), _at_width(model, base, depths, scale), need_laws)
    fields = given_fields(model.config, base)
    return _rebuilt(shapes_of(model), _with_fields(model, fields), need_laws)


def _at_width(model: nn.Module, width: int, depths: Mapping[Path, Any], scale: HeadScaling) -> Rebuilt:
    """Where a model multiplies its heads into its widths by itself, its number of heads does not follow the width."""
    following = width_changes(model.config, width, scale)
    try:
        return rebuild.from_config(model, following, depths)
    except ShapeError:
        fewer = width_changes(model.config, width, scale, heads=False)
        if fewer == following:
            raise
        with contextlib.suppress(MutransferError):
            return rebuild.from_config(model, fewer, depths)
        raise


def _with_fields(model: nn.Module, fields: Mapping[Path, Any]) -> Rebuilt:
    """By fields of the base; where they say nothing of its width, it is the model's."""
    depths = {path: value for path, value in fields.items() if is_depth(path, model.config)}
    widths = {path: value for path, value in fields.items() if path not in depths}
    if depths and not widths:
        widths = width_changes(model.config, own_width(model.config)[1])
    return rebuild.from_config(model, widths, with_lists(model.config, depths))


def _rebuilt(model: Shapes, rebuilt: Rebuilt, need_laws: bool) -> Base:
    """Where the laws are not needed (init="table"), a matrix that is drawn off zero is drawn anew around it."""
    stacks = stacks_of(rebuilt.shapes, model)
    probes = [probe if set(probe) == set(model) else stacks.seen_from_model(probe) for probe in rebuilt.probes]
    dims = compare(model, stacks.seen_from_model(rebuilt.shapes), probes)
    base_laws = stacks.seen_from_model(read_laws(rebuilt.base))
    same = dict(model) == dict(rebuilt.shapes)
    own_laws = base_laws if same else exact(read_laws(rebuilt.model), base_laws, dims)
    if not need_laws:
        drawn_anew = {name for name, law in base_laws.items() if off_zero(law) and not is_vector(dims[name])}
        base_laws, own_laws = (
            {name: law for name, law in laws.items() if name not in drawn_anew} for laws in (base_laws, own_laws)
        )
    return Base(dims, base_laws, own_laws, rebuilt.base, None, rebuilt.words, stacks, rebuilt.deeper)


def stacks_of(base: Mapping[str, Any], model: Mapping[str, Any]) -> Stacks:
    """Which tensor of the base stands for which of the model: by name, or where their depths differ, by template.

    Raises:
        ShapeError: base and model are of different structure.
    """
    if set(base) == set(model):
        return Stacks.of_one_depth(model)
    stacks = compare_depths(base, model)
    if not stacks.deeper:
        check_structure(dict.fromkeys(model, ()), dict.fromkeys(base, ()))
    return stacks


def _from_module(model: nn.Module, base: nn.Module, need_laws: bool) -> Base:
    words = f"{type(base).__name__} with {sum(p.numel() for p in base.parameters()):,} parameters"
    if rebuild.has_config(model) and rebuild.has_config(base) and type(model) is type(base):
        try:
            return _from_two_configs(model, base, words, need_laws)
        except MutransferError:
            pass  # the constructor cannot be rerun: the two models themselves are all there is
    shapes, base_shapes = shapes_of(model), shapes_of(base)
    if shapes == base_shapes:
        raise ShapeError(
            "The base has exactly the model's sizes and neither can be built at another width, so nothing shows which "
            "sizes are widths. Give factory= (a function from width to model) with base= as a width."
        )
    stacks = stacks_of(base_shapes, shapes)
    dims = compare(shapes, stacks.seen_from_model(base_shapes))
    if not need_laws:
        laws, own = laws_of_vectors(model, dims, stacks.seen_from_model(laws_by_values(base)))
        return Base(dims, laws, own, lambda: base, None, words, stacks)
    if any(p.is_meta for module in (base, model) for p in module.parameters()):
        raise ShapeError(
            "Base or model is on the meta device and cannot be built again, so its init is unknown. Give factory= "
            "(a function from width to model), a base with real weights, or init='table'."
        )
    laws, own = laws_of_two(base, model, dims, stacks)
    return Base(dims, laws, own, lambda: base, None, words, stacks)


def _from_two_configs(model: nn.Module, base: nn.Module, words: str, need_laws: bool) -> Base:
    """Base and model of one class with configs: what differs between the configs is the width."""
    fields = differing_fields(model.config, base.config) or width_changes(model.config, own_width(model.config)[1])
    made = dataclasses.replace(_with_fields(model, fields), shapes=shapes_of(base), words=words)
    return _rebuilt(shapes_of(model), made, need_laws)


def _from_file(model: nn.Module, path: pathlib.Path, need_laws: bool) -> Base:
    saved = PlanData.load(path)
    shapes = shapes_of(model)
    lines = {name: line for line in saved for name in (line.name, *line.aliases)}
    stacks = stacks_of(lines, shapes)
    of_base = stacks.seen_from_model(lines)
    rows = compare(shapes, {name: line.base_shape for name, line in of_base.items()})
    dims = {name: _growing_as(of_base[name], row) for name, row in rows.items()}
    laws = {name: line.base_law for name, line in of_base.items()}
    if not need_laws:
        laws, own = laws_of_vectors(model, dims, laws)
        return Base(dims, laws, own, None, saved.base_forward, f"of {path.name}", stacks)
    values, defaults = parameters_of(model), defaults_of(model)
    if any(p.is_meta for p in values.values()):
        raise ShapeError("The model is on the meta device and its init is unknown: give base= as a width, or factory=.")
    own = {}
    for name, value in values.items():
        if name in defaults and fits(defaults[name], value):
            own[name] = defaults[name]
        else:
            own[name] = snapped(name, estimate(value), laws[name], dims[name])
    return Base(dims, laws, own, None, saved.base_forward, f"of {path.name}", stacks)


def _growing_as(line: ParamPlan, row: Sequence[Dim]) -> tuple[Dim, ...]:
    """Dimensions that are of one size in base and model grow where the saved plan says that they do."""
    return tuple(dataclasses.replace(dim, grows=dim.grows or axis in line.growing) for axis, dim in enumerate(row))
