"""Models whose constructors fix every width: the layers that they are made of are made narrower or wider.

The library asks its user for a factory there; this is how the zoo comes by one without a line per model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, TypeVar

from torch import nn

from mutransfer.errors import ShapeError
from mutransfer.planning.fields import SMALLEST_WIDTH, mapped
from mutransfer.planning.sizes import compare, shapes_of, without_memory

SIZES: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),
    nn.LayerNorm: ("normalized_shape",),
    nn.GroupNorm: ("num_channels",),
}
"""The class that a layer's constructor goes through -> its arguments that are widths."""
DIVISORS = (8, 4, 2, 1)
"""By how much a constructor's own widths are cut, the most first."""

Build = Callable[[], nn.Module]
Made = TypeVar("Made")


def divisor_of(build: Build, run: Callable[[nn.Module], object], kept: Collection[int] = ()) -> int:
    """The largest divisor of all layers' sizes at which a model runs, and twice as wide as that, too.

    Args:
        build: makes the model at its constructor's own widths.
        run: its forward pass; raises whatever it likes where that fails.
        kept: see `layers_times`.

    Raises:
        ShapeError: it runs at none: something that it does with a width is no layer's size.
    """
    failures: list[Exception] = []
    for divisor in DIVISORS:
        try:
            at = [functools.partial(times, Fraction(k, divisor), kept, build) for k in (1, 2, 3)]
            probes = [shapes_of(without_memory(make)) for make in at]
            compare(probes[0], probes[0], probes)
            for make in at[:2]:
                run(make().eval())
            return divisor
        except Exception as error:  # whatever a foreign constructor or forward pass raises
            failures.append(error)
    last = failures[-1]
    raise ShapeError(
        f"With other sizes of all its layers the model does not run ({type(last).__name__}: {last}): a tensor of its "
        "own or its forward pass has a width as a number. Give factory=, a function from width to model."
    ) from last


def times(ratio: Fraction, kept: Collection[int], build: Callable[[], Made]) -> Made:
    """What `build` makes, with `ratio` times all layers' sizes."""
    with layers_times(ratio, kept):
        return build()


@contextmanager
def layers_times(ratio: Fraction, kept: Collection[int] = ()) -> Iterator[None]:
    """Within it every layer is made with `ratio` times its sizes; a depthwise convolution has as many groups.

    What else a model makes of its widths, tables of its own or a reshape by a number, does not follow: such a model
    does not run then.

    Args:
        ratio: of every size, so that what stands side by side stays as wide as what reads it.
        kept: sizes that are no widths (classes, channels of the input); so are those below `SMALLEST_WIDTH`.

    Raises:
        ShapeError: a layer's size times the ratio is no whole number.
    """
    own = {kind: kind.__init__ for kind in SIZES}  # type: ignore[misc]
    try:
        for kind, names in SIZES.items():
            kind.__init__ = _scaled(own[kind], names, ratio, frozenset(kept))  # type: ignore[misc]
        yield
    finally:
        for kind, init in own.items():
            kind.__init__ = init  # type: ignore[misc]


def _scaled(
    init: Callable[..., None], names: tuple[str, ...], ratio: Fraction, kept: frozenset[int]
) -> Callable[..., None]:
    signature = inspect.signature(init)

    def times_ratio(size: int) -> int:
        if size < SMALLEST_WIDTH or size in kept:
            return size
        if (size * ratio).denominator != 1:
            raise ShapeError(f"A layer of size {size} is not of a whole size at {ratio} times that.")
        return int(size * ratio)

    @functools.wraps(init)
    def made(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        sizes = given.arguments
        depthwise = "groups" in sizes and sizes["groups"] == sizes["in_channels"]
        for name in (*names, *(("groups",) if depthwise else ())):
            sizes[name] = mapped(sizes[name], times_ratio)
        init(*given.args, **given.kwargs)

    return made
