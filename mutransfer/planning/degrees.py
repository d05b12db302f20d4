"""How a value goes with a factor on the parameter that it is made of: w / |w| does not, sign(w) * mean(|w|) does."""

from __future__ import annotations

from collections.abc import Mapping

from mutransfer.planning.calls import CONTRACTIONS, Call

_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "sign": 0.0, "sgn": 0.0}


def degree(call: Call, degrees: Mapping[int, float]) -> float:
    """The power of the factor in what a call makes, from those in its operands, by position."""
    if call.name == "pow":
        power = call.args[1]
        return degrees.get(0, 0.0) * (power if isinstance(power, int | float) else 1.0)
    if call.name in _POWERS:
        return degrees.get(0, 0.0) * _POWERS[call.name]
    if call.name == "div":
        return degrees.get(0, 0.0) - degrees.get(1, 0.0)
    if call.name in ("mul", "vdot", *CONTRACTIONS):
        return sum(degrees.values())
    return max(degrees.values(), default=0.0)
