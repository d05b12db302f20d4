"""Numbers may be written as expressions; nothing else is ever evaluated."""

from __future__ import annotations

import re

import pytest

from mutransfer.errors import ConfigError
from mutransfer.sweep.arithmetic import expand, number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2**-10", 2**-10),
        ("3e-4*2", 6e-4),
        ("1/64", 1 / 64),
        ("-(1 + 2) * 4", -12),
        ("+.5", 0.5),
        ("2**-1/2", 0.25),
    ],
)
def test_arithmetic_gives_the_number_that_python_would(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(("text", "value"), [("2**10", 1024), ("1024/16", 64), ("3*7-1", 20)])
def test_whole_numbers_stay_whole_so_that_they_can_be_widths(text: str, value: int) -> None:
    assert number(text) == value
    assert isinstance(number(text), int)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "abs(-1)",
        "lr",
        "True",
        "1j",
        "(1).real",
        "[1][0]",
        "1 if 1 else 2",
        "1 << 3",
        "5 // 2",
        "5 % 2",
        "'a'*3",
        "1,2",
        "(lambda: 1)()",
        "",
        "2**",
        "1/0",
        "(-8)**.5",
        "1" * 101,
        "(" * 60 + "1" + ")" * 30,
    ],
)
def test_everything_that_is_not_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a number"):
        number(text)


@pytest.mark.parametrize("text", ["2**2000", "2.0**1024", "1e308*10", "9**9**9", "-1e308-1e308"])
def test_what_a_float_cannot_hold_is_called_infinite(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text)) + " must be finite; the largest number is about 1.8e3"):
        number(text)
    assert number("2**1023") == 2.0**1023


def test_expressions_are_worked_out_inside_sweeps_lists_and_hydras_functions() -> None:
    assert expand("2**-2,[1/4,3*8]") == "0.25,[0.25,24]"
    assert expand("choice(2**3,2**4)") == "choice(8,16)"
    assert expand("${base}") == "${base}"
    assert expand("fast") == "fast"
