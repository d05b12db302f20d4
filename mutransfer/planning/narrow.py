"""Widths, heads and images of a config, cut down together so that what was tied stays tied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer.planning.fields import (
    SMALLEST_WIDTH,
    Field,
    Kind,
    Path,
    inside,
    mapped,
    numbers,
    primary_field,
    stage_counts,
)


@dataclass(frozen=True)
class Sizes:
    """How small a proxy should be.

    Attributes:
        width, head_dim: of its widest part and of its heads.
        depth: layers of a stack, and the most that it keeps where layers differ in kind.
        stage_depth: layers of a stage, where there are more than two.
        vocabulary, experts, positions, queries: at most.
        patches: an image's side in patches.
        window, groups: at most, where windows must fit the image and groups the channels.
        apart: whether the configs inside have scales of their own, or all are divided by one factor.
        fewer_heads: whether numbers of heads are cut, or their sizes alone.
        by_factor: where a config has a factor on all its widths, that becomes 1 and they stay.
    """

    width: int = 64
    head_dim: int = 16
    depth: int = 2
    most_layers: int = 4
    stage_depth: int = 1
    vocabulary: int = 128
    experts: int = 4
    positions: int = 128
    queries: int = 8
    patches: int = 2
    window: int = 64
    groups: int = 64
    apart: bool = True
    fewer_heads: bool = True
    by_factor: bool = False


def narrowed(config: Any, fields: Sequence[Field], sizes: Sizes) -> dict[Path, Any]:
    """Widths over one divisor per config; a size that is another config's own width becomes that one's."""
    primaries = _primaries(config, fields)
    own = (size for field in fields if field.kind is Kind.WIDTH for size in numbers(field.value))
    widest = max(primaries.values(), default=0) or max(own, default=sizes.width)
    divisors = {o: (size if sizes.apart else widest) / sizes.width for o, size in primaries.items()}
    own_widths = {size: _divided(size, divisors[owner]) for owner, size in primaries.items()}
    values: dict[Path, Any] = {}
    for field in fields:
        divisor = _of_owner(field.owner, divisors, default=widest / sizes.width)
        if field.kind is Kind.WIDTH:
            tied = own_widths if sizes.apart and isinstance(field.value, int) else {}
            values[field.path] = _narrower(field.value, divisor, tied)
        elif field.kind is Kind.OUTWARD:
            values[field.path] = sizes.width if sizes.apart else _narrower(field.value, divisor, {})
        elif field.kind is Kind.IMAGE:
            values[field.path] = _image(field, fields, sizes)
    for owner in dict.fromkeys(_without_rope(field.owner) for field in fields):
        family = [field for field in fields if _without_rope(field.owner) == owner]
        divisor = _of_owner(owner, divisors, default=widest / sizes.width)
        values |= _heads(family, primaries.get(owner, 0), divisor, sizes)
        values |= _whole_heads(family, primaries.get(owner, 0), own_widths, values)
    values |= _feature_maps(fields, values) | _patches_of_images(fields, values)
    return values | (_by_factor(config, fields) if sizes.by_factor else {})


def _patches_of_images(fields: Sequence[Field], values: Mapping[Path, Any]) -> dict[Path, Any]:
    """A patch that is another part's whole image stays that."""
    images = {f.value: values[f.path] for f in fields if f.kind is Kind.IMAGE and isinstance(f.value, int)}
    patches = [f for f in fields if f.kind is Kind.PATCH and isinstance(f.value, int)]
    smallest = min((f.value for f in patches), default=0)
    return {f.path: images[f.value] for f in patches if f.value in images and f.value > smallest}


def _feature_maps(fields: Sequence[Field], values: Mapping[Path, Any]) -> dict[Path, Any]:
    """The sides of feature maps that a config holds are cut with the image they are of: one inside it, or any."""
    images = [(f, max(numbers(f.value)), max(numbers(values[f.path]))) for f in fields if f.kind is Kind.IMAGE]
    cut: dict[Path, Any] = {}
    for field in fields:
        if field.kind is Kind.FEATURES and images:
            own = (image for image in images if image[0].owner[: len(field.owner)] == field.owner)
            _, old, new = next(own, images[0])
            cut[field.path] = mapped(field.value, lambda side, old=old, new=new: max(1, side * new // old))  # type: ignore[misc]
    return cut


def _by_factor(config: Any, fields: Sequence[Field]) -> dict[Path, Any]:
    """The factor on all widths of a config becomes 1, its own width and those of the configs around it follow; its
    other widths are multiplied by the factor and stay."""
    values: dict[Path, Any] = {}
    widths = [field for field in fields if field.kind is Kind.WIDTH]
    factors = (f for f in fields if f.kind is Kind.MULTIPLIER and isinstance(f.value, int | float))
    for factor in (f for f in factors if f.value > 1):
        primary = primary_field(inner_config(config, factor.owner))
        around = [f for f in widths if f.owner != factor.owner and f.owner == factor.owner[: len(f.owner)]]
        for field in (*around, *(f for f in widths if f.owner == factor.owner)):
            follows = field.owner != factor.owner or field.name == primary
            values[field.path] = _over(field.value, factor.value) if follows else field.value
        values[factor.path] = 1.0
    return values


def _over(value: Any, factor: float) -> Any:
    return mapped(value, lambda size: int(size / factor))


def _narrower(value: Any, divisor: float, tied: Mapping[int, int]) -> Any:
    return mapped(value, lambda size: tied.get(size) or _divided(size, divisor))


def _without_rope(owner: Path) -> Path:
    """The sections of a rotation are sized by the heads of the config around them."""
    return owner[:-1] if owner and owner[-1].startswith("rope") else owner


def _primaries(config: Any, fields: Sequence[Field]) -> dict[Path, int]:
    """The own width of every config inside that has one."""
    values = {field.path: field.value for field in fields}
    found = {}
    for owner in dict.fromkeys(field.owner for field in fields):
        name = primary_field(inner_config(config, owner))
        largest = max(numbers(values.get((*owner, name))), default=0) if name is not None else 0
        if largest >= SMALLEST_WIDTH:
            found[owner] = largest
    return found


def inner_config(config: Any, owner: Path) -> Any:
    for name in owner:
        config = inside(config, name)
    return config


def _of_owner(owner: Path, divisors: Mapping[Path, float], default: float) -> float:
    """A config without a width of its own follows the one around it."""
    for end in range(len(owner), -1, -1):
        if owner[:end] in divisors:
            return divisors[owner[:end]]
    return default


def _divided(size: int, divisor: float) -> int:
    """A size over the divisor; where that is no whole number, the next multiple of 16, which heads can share."""
    if size < SMALLEST_WIDTH or divisor <= 1:
        return size
    exact = size / divisor
    if exact == int(exact) and exact >= SMALLEST_WIDTH:
        return int(exact)
    step = 16 if exact > 12 else SMALLEST_WIDTH
    return step * math.ceil(exact / step)


def _heads(fields: Sequence[Field], width: int, divisor: float, sizes: Sizes) -> dict[Path, Any]:
    """Numbers of heads and their sizes: the width's divisor, split between the two."""
    values: dict[Path, Any] = {}
    dims = [field for field in fields if field.kind is Kind.HEAD_DIM]
    largest = max((field.value for field in dims if isinstance(field.value, int)), default=0)
    heads = [field for field in fields if field.kind is Kind.HEADS]
    queries = max((v for field in heads for v in numbers(field.value)), default=1)
    if not sizes.fewer_heads:
        return {field.path: _shorter(field.value, max(1, round(divisor))) for field in dims}
    by_dim = _power_of_two(largest / sizes.head_dim) if largest else 0
    for field in dims:
        values[field.path] = _shorter(field.value, by_dim or max(1, width // queries // sizes.head_dim))
    for field in heads:
        values[field.path] = mapped(field.value, lambda v: _fewer_heads(v, queries, divisor, by_dim, sizes))
    return values


def _whole_heads(
    fields: Sequence[Field], width: int, own_widths: Mapping[int, int], values: Mapping[Path, Any]
) -> dict[Path, Any]:
    """Heads that make up the width together still do, where the code takes their size from one as well as the other."""
    counts = [field for field in fields if field.kind is Kind.HEADS and isinstance(field.value, int)]
    most = max(counts, key=lambda field: field.value, default=None)
    if most is None or not width:
        return {}
    exact = [field for field in fields if field.kind is Kind.HEAD_DIM and field.value * most.value == width]
    narrow, heads = own_widths[width], values.get(most.path) or most.value
    return {field.path: narrow // heads for field in exact} if narrow % (2 * heads) == 0 else {}


def _shorter(value: Any, divisor: int) -> Any:
    """A head's size, or the sections of one, whose sum is kept in step."""
    if isinstance(value, int):
        return max(1, value // divisor) if value > 0 else value
    ends = [sum(value[: i + 1]) // divisor for i in range(len(value))]
    return type(value)(end - start for start, end in zip([0, *ends], ends, strict=False))


def _fewer_heads(heads: int, most: int, divisor: float, by_dim: int, sizes: Sizes) -> int:
    """As many as keep heads times head_dim in step with the width; several stay several."""
    if heads <= 1:
        return heads
    wanted = most * (by_dim or 1) / divisor if by_dim else sizes.width / sizes.head_dim
    fewest = min(most, max(2, _power_of_two(wanted)))
    return max(2, _power_of_two(heads * fewest / most)) if fewest < most else heads


def _power_of_two(ratio: float) -> int:
    return max(1, int(2 ** math.floor(math.log2(ratio) + 1e-9))) if ratio >= 1 else 1


def _image(field: Field, fields: Sequence[Field], sizes: Sizes) -> Any:
    """A few patches a side, where the config beside it has patches; else 32."""
    patches = [f for f in fields if f.kind is Kind.PATCH and f.owner == field.owner]
    patch = max((v for f in patches for v in numbers(f.value)), default=0)
    beside = [f for f in fields if f.owner == field.owner]
    side = patch * sizes.patches if patch else 16 * sizes.patches
    if stage_counts(beside):  # every stage halves it
        side = max(side, 16 * sizes.patches, 8 * patch)
    return mapped(field.value, lambda size: min(size, side) if size > 1 else size)
