"""Base shapes as microsoft/mup saves them (`.bsh`): which width of a factory or a config they are."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import yaml
from torch import nn

from mutransfer.errors import RunError, ShapeError
from mutransfer.planning import rebuild
from mutransfer.planning.fields import HeadScaling
from mutransfer.planning.resize import own_width, width_changes
from mutransfer.planning.sizes import without_memory

BaseShapes = Mapping[str, tuple[int | None, ...]]
"""Parameter name -> sizes at the base; None for one that does not grow with width."""
Sizes = Mapping[str, tuple[int, ...]]


def is_bsh(base: Any) -> TypeGuard[str | pathlib.Path]:
    return isinstance(base, str | pathlib.Path) and pathlib.Path(base).suffix == ".bsh"


def read_bsh(path: str | pathlib.Path) -> BaseShapes:
    """Reads what mup's `make_base_shapes` or `save_base_shapes` wrote; nothing in the file is run.

    Raises:
        RunError: it cannot be read.
        ShapeError: it holds something else.
    """
    path = pathlib.Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist.") from None
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not (isinstance(found, dict) and found and all(map(_is_row, found.values()))):
        raise ShapeError(f"{path} holds no base shapes. Give a file that mup.make_base_shapes(..., savefile=) wrote.")
    wrapped = all(str(name).startswith("module.") for name in found)  # saved from inside DataParallel
    return {str(name).removeprefix("module." if wrapped else ""): tuple(row) for name, row in found.items()}


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and all(size is None or (type(size) is int and size > 0) for size in row)


def width_of_bsh(
    model: nn.Module,
    path: str | pathlib.Path,
    *,
    factory: Callable[..., nn.Module] | None = None,
    depth: Any = None,
    scale: HeadScaling = "heads",
) -> int:
    """The width at which the factory, or else the model's own config, makes a model of these base shapes.

    A `.bsh` file holds sizes only, and an init law comes from nowhere else than the model's constructor.

    Args:
        model: that is to be parameterized.
        path: of a `.bsh` file.
        factory: as in `mutransfer.parameterize`.
        depth: the base's number of blocks, where the factory takes one.

    Raises:
        RunError, ShapeError: no base shapes, nothing to build the base with, or no width of that size.
    """
    shapes = read_bsh(path)
    name = pathlib.Path(path).name
    if factory is None and not rebuild.has_config(model):
        raise ShapeError(
            f"{name} holds the base's sizes and not its init. Give factory= (a function from width to model) with it; "
            f"{type(model).__name__} has no config to be rebuilt from."
        )
    reason = ""
    for width, made in _candidates(model, shapes, factory, depth, scale):
        difference = _difference(shapes, made)
        if difference is None:
            return width
        reason = reason or f" At width {width}, {difference}."
    maker = "factory=" if factory is not None else f"the config of {type(model).__name__}"
    raise ShapeError(
        f"No width at which {maker} makes a model fits {name}.{reason} Give base= as the base's width, or as a model "
        "of the base's size."
    )


def _candidates(
    model: nn.Module,
    shapes: BaseShapes,
    factory: Callable[..., nn.Module] | None,
    depth: Any,
    scale: HeadScaling,
) -> Iterator[tuple[int, Sizes]]:
    """Widths that stand in the file, and the sizes of the models that they make; those that make none are left out."""
    growing = sorted({size for row in shapes.values() for size in row if size is not None})
    for width in growing if factory is not None else _widths_by_ratio(model, shapes):
        try:
            if factory is not None:
                sizes = (width,) if depth is None else (width, depth)
                made = without_memory(lambda sizes=sizes: factory(*sizes))  # type: ignore[misc]
                yield width, {name: tuple(p.shape) for name, p in made.named_parameters()}
            else:
                rebuilt = rebuild.from_config(model, width_changes(model.config, width, scale))
                yield width, {name: rebuilt.shapes[name] for name, _ in model.named_parameters()}
        except Exception:  # whatever a foreign constructor raises at a size that it cannot have
            continue


def _widths_by_ratio(model: nn.Module, shapes: BaseShapes) -> list[int]:
    """The config's own width, times how much smaller a growing size of the model is at the base."""
    own = own_width(model.config)[1]
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = set()
    for name, row in shapes.items():
        for at_base, size in zip(row, sizes.get(name, ()), strict=False):
            if at_base is not None and own * at_base % size == 0:
                found.add(own * at_base // size)
    return sorted(found)


def _difference(shapes: BaseShapes, made: Sizes) -> str | None:
    """What is not as in the file, in words."""
    for name in (*shapes, *made):
        if name not in made or name not in shapes:
            where = "the file" if name in shapes else "the model"
            return f"{name!r} is in {where} only"
        if len(made[name]) != len(shapes[name]) or any(
            at_base not in (None, size) for at_base, size in zip(shapes[name], made[name], strict=True)
        ):
            return f"{name!r} is {list(made[name])} and {list(shapes[name])} in the file"
    return None
