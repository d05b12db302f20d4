"""What the words of a failed forward pass say about its arguments: other sizes, dimensions, contents."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class Content(StrEnum):
    """What a tensor holds."""

    REAL = "real numbers"
    SHARE = "real numbers from 0 to 1"
    WHOLE = "whole numbers"
    TRUTH = "true or false"


@dataclass(frozen=True)
class Form:
    """A tensor's sizes and what it holds."""

    shape: tuple[int, ...]
    content: Content = Content.REAL


Forms = Mapping[str, Form]
Change = tuple[str, Form]
"""An argument's name, and the form that a failure asks of it."""

LAST = (
    r"mat1 and mat2 shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<want>\d+)x\d+\)",
    r"same reduction dim, but got \[\d+, (?P<got>\d+)\] X \[(?P<want>\d+), \d+\]",
    r"normalized_shape=\[(?P<want>\d+)\].*got input of size ?(?:torch.Size\()?\[(?:\d+, )*(?P<got>\d+)\]",
    r"must be equal to input_size. Expected (?P<want>\d+), got (?P<got>\d+)",
)
SECOND = (
    r"to have (?P<want>\d+) channels, but got (?P<got>\d+) channels",
    r"running_mean should contain (?P<got>\d+) elements not (?P<want>\d+)",
)
ANYWHERE = (
    r"size of tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<want>\d+)\)",
    r"size of tensor a \((?P<want>\d+)\) must match the size of tensor b \((?P<got>\d+)\)",
    r"[Ee]xpected size (?P<want>\d+) but got size (?P<got>\d+)",
    r"[Ee]xpected size for .* to be: (?P<want>\d+) but got: (?P<got>\d+)",
    r"[Ee]xpected size for .* to be: \[\d+, (?P<got>\d+)\] but got: \[\d+, (?P<want>\d+)\]",
    r"[Ee]xpected (?P<want>\d+) in dimension \d+ but got (?P<got>\d+)",
    r"shape of the mask \[(?P<got>\d+).* indexed tensor \[(?P<want>\d+)",
)
RANKS = (
    r"not enough values to unpack \(expected (?P<want>\d+), got (?P<got>\d+)\)",
    r"input\.dim\(\) = (?P<got>\d+) is not equal to len\(dims\) = (?P<want>\d+)",
    r"[Dd]imension out of range.*\[-(?P<got>\d+), \d+\], but got (?P<at>\d+)",
    r"too many indices for tensor of dimension (?P<got>\d+)",
)
BROADCAST = r"broadcast a dimension of length (?P<one>\d+) at (?P<at>-\d+)!.*broadcastable to \[(?P<other>[\d, ]*)\]"
"""What fake tensors say of two sizes that do not fit."""
TOO_MANY = r"too many values to unpack|Expected \d+D.* but got input of size"
TOO_SHORT = r"[Kk]ernel size can't be greater than actual input size"
FEW = 8
"""Columns that hold something else (a patch's row and column), at most."""
LONGEST = 10_000
LARGEST = 4_000_000
"""Numbers in an argument, at most."""
MOST_POSITIONS = 2048
"""Attention is quadratic in them: a longer dimension is a wave's, which has a few channels at most."""
INDICES = r"scalar types: Long|must be long|Long, Int|to be (an integer|long)|[Ii]nteger"


def other_forms(forms: Forms, message: str) -> Iterator[Change]:
    """What the arguments of a failed forward pass may have to be, the likeliest first; one argument at a time.

    Args:
        forms: of the tensors that it was given.
        message: the failure's words, torch's own mostly.
    """
    seen = set(forms.items())
    message = re.sub(BROADCAST, _as_of_values, message)
    for read in (_sizes, _multiples, _ranks, _lengths, _contents):
        for change in read(forms, message):
            if change not in seen and _is_cheap(change[1].shape):
                seen.add(change)
                yield change


def _is_cheap(shape: tuple[int, ...]) -> bool:
    numbers = math.prod(shape)
    return numbers <= LARGEST and (max(shape, default=0) <= MOST_POSITIONS or numbers <= FEW * max(shape))


def _sizes(forms: Forms, message: str) -> Iterator[Change]:
    """A dimension of the size that did not fit gets the one that does; or a dimension of that size is added."""
    for patterns, where in ((LAST, -1), (SECOND, 1), (ANYWHERE, None)):
        for got, want in _pairs(patterns, message):
            if got:
                yield from _resized(forms, got, want, where)
                yield from _one_more(forms, want, where)
                if not any(_axes(form, got, None) for form in forms.values()):
                    yield from _in_proportion(forms, got, want)
                if where == -1:
                    yield from _beside_columns(forms, got, want)


def _resized(forms: Forms, got: int, want: int, where: int | None) -> Iterator[Change]:
    for name, form in forms.items():
        yield from ((name, _with(form, axis, want)) for axis in _axes(form, got, where))


def _one_more(forms: Forms, want: int, where: int | None) -> Iterator[Change]:
    for name, form in forms.items():
        if len(form.shape) < 3 and (where is None or form.content is Content.REAL):
            end = 1 if where == 1 else len(form.shape)
            yield name, replace(form, shape=(*form.shape[:end], want, *form.shape[end:]))


def _in_proportion(forms: Forms, got: int, want: int) -> Iterator[Change]:
    """Where the model made a multiple of an input's size, and that did not fit."""
    for name, form in forms.items():
        multiples = [axis for axis, size in enumerate(form.shape) if size > 1 and size * want % got == 0]
        yield from ((name, _with(form, axis, form.shape[axis] * want // got)) for axis in multiples)


def _beside_columns(forms: Forms, got: int, want: int) -> Iterator[Change]:
    """Where a few columns are taken off first."""
    for name, form in forms.items():
        if form.shape and 0 < form.shape[-1] - got <= FEW:
            yield name, _with(form, len(form.shape) - 1, form.shape[-1] - got + want)


def _as_of_values(found: re.Match[str]) -> str:
    """The same of two tensors with values."""
    other = found["other"].split(", ")[int(found["at"])]
    return f"The size of tensor a ({found['one']}) must match the size of tensor b ({other})"


def _pairs(patterns: tuple[str, ...], message: str) -> Iterator[tuple[int, int]]:
    for pattern in patterns:
        found = re.search(pattern, message)
        if found:
            yield int(found["got"]), int(found["want"])


def _axes(form: Form, size: int, where: int | None) -> list[int]:
    """The dimensions of a size, that at `where` first."""
    wanted = None if where is None or not form.shape else where % len(form.shape)
    axes = [axis for axis, own in enumerate(form.shape) if own == size]
    return sorted(axes, key=lambda axis: axis != wanted)


def _with(form: Form, axis: int, size: int) -> Form:
    return replace(form, shape=(*form.shape[:axis], size, *form.shape[axis + 1 :]))


def _multiples(forms: Forms, message: str) -> Iterator[Change]:
    """A size that is no multiple of another number in the words becomes one."""
    reshaped = re.search(r"shape '\[(.*)\]' is invalid for input of size", message)
    if not reshaped and not re.search("multiple|divisible", message):
        return
    numbers = [int(word) for word in re.findall(r"\d+", reshaped[1] if reshaped else message)]
    for step in sorted((n for n in numbers if n > 1), reverse=True):
        for name, form in forms.items():
            for axis, size in enumerate(form.shape):
                if size % step and (reshaped or size in numbers):
                    yield name, _with(form, axis, math.ceil(size / step) * step)


def _ranks(forms: Forms, message: str) -> Iterator[Change]:
    """One dimension more, of size 1, after the batch or at the end; or one less."""
    for pattern in RANKS:
        found = re.search(pattern, message)
        for name, form in forms.items() if found else ():
            if found and len(form.shape) == int(found["got"]):
                yield name, replace(form, shape=(*form.shape[:1], 1, *form.shape[1:]))
                yield name, replace(form, shape=(*form.shape, 1))
    if re.search(TOO_MANY, message):
        for name, form in forms.items():
            for axis in range(1, len(form.shape)) if len(form.shape) > 2 else ():
                yield name, replace(form, shape=(*form.shape[:axis], *form.shape[axis + 1 :]))


def _lengths(forms: Forms, message: str) -> Iterator[Change]:
    """A signal that is shorter than a kernel becomes a few times as long."""
    if re.search(TOO_SHORT, message):
        for name, form in forms.items():
            if form.content is Content.REAL and len(form.shape) > 1 and form.shape[-1] < LONGEST:
                yield name, _with(form, len(form.shape) - 1, 4 * form.shape[-1])


def _contents(forms: Forms, message: str) -> Iterator[Change]:
    """Numbers that were to be whole, or true and false."""
    if re.search(INDICES, message):
        yield from ((n, replace(f, content=Content.WHOLE)) for n, f in forms.items() if f.content is Content.REAL)
    if re.search("index out of range|indices should be|negative", message):
        yield from ((n, replace(f, content=Content.SHARE)) for n, f in forms.items() if f.content is Content.REAL)
    if re.search("[Bb]ool", message):
        yield from ((n, replace(f, content=Content.TRUTH)) for n, f in forms.items() if f.content is not Content.TRUTH)
