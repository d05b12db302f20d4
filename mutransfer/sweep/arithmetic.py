"""Numbers written as expressions: `2**-10`, `3e-4*2`, `1/64`; parsed, never evaluated as code."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

from mutransfer.errors import ConfigError

Number = int | float

_LONGEST = 100
_LARGEST_EXACT = 2.0**128
_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: _quotient(left, right),
}
_EXPRESSION = re.compile(r"[\d.eE_+\-*/()\s]*\d[\d.eE_+\-*/()\s]*")
_PIECES = re.compile(r"([,\[\]{}:])")
_CALL = re.compile(r"(\s*[a-z]+\()(.*)(\)\s*)", re.DOTALL)


def number(text: str) -> Number:
    """The value of an arithmetic expression made of numbers, parentheses and + - * / ** only.

    Raises:
        ConfigError: anything else, or a value that is not finite.

    >>> number("2**-3")
    0.125
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"longer than {_LONGEST} characters")
        value = _value(ast.parse(text.strip(), mode="eval").body)
        if not math.isfinite(value):
            raise OverflowError
    except OverflowError:
        raise ConfigError(f"{text!r} must be finite; the largest number is about 1.8e308.") from None
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        raise ConfigError(
            f"{text[:_LONGEST]!r} is not a number. Write one such as 0.001, 3e-4*2 or 2**-10 (+ - * / ** only)."
        ) from None
    return value


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
    raise ValueError("neither a number nor one of + - * / **")


def _quotient(left: Number, right: Number) -> Number:
    """Whole where it is exact, so that a width may be written `1024/16`."""
    whole = isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0
    return left // right if whole else left / right


def _power(base: Number, exponent: Number) -> Number:
    """A power in floating point: `9**9**9` overflows at once where whole numbers would fill the memory."""
    power = float(base) ** float(exponent)
    if isinstance(power, complex):
        raise ValueError("a root of a negative number")
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0
    return base**exponent if whole and abs(power) < _LARGEST_EXACT else power


def expand(text: str) -> str:
    """The value of a numeric override with every expression in it replaced by its number.

    Lists, sweeps and Hydra's own functions keep their form.

    >>> expand("2**-2,[1/4, 3*8]"), expand("choice(2**3,2**4)")
    ('0.25,[0.25,24]', 'choice(8,16)')
    """
    if "^" in text:
        raise ConfigError(f"{text[:_LONGEST]!r} is not a number. Write a power with **, as in 2**-10.")
    if call := _CALL.fullmatch(text):
        return call[1] + expand(call[2]) + call[3]
    return "".join(_expand_piece(piece) for piece in _PIECES.split(text))


def _expand_piece(piece: str) -> str:
    if not _EXPRESSION.fullmatch(piece):
        return piece
    return repr(number(piece))
