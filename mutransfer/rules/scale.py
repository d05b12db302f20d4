"""Products of powers of size ratios, written as the papers write them: `m_in**-0.5`, `m_out / m_in`."""

from __future__ import annotations

import math
from dataclasses import dataclass

SYMBOLS = ("m_in", "m_out", "m_head", "m_depth", "m_uses")


@dataclass(frozen=True)
class Scale:
    """A monomial in size ratios to the base model, such as `m_in**-0.5` (fan-in over the base's fan-in).

    Cells carry no constants, so every cell is 1 at the base size; constants are hyperparameters.

    >>> str(m_out / m_in)
    'm_in^-1 m_out'
    >>> (m_out / m_in).at(m_in=4, m_out=2)
    0.5
    """

    powers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        merged: dict[str, float] = {}
        for symbol, power in self.powers:
            if symbol not in SYMBOLS:
                raise ValueError(f"Unknown size ratio {symbol!r}; known: {', '.join(SYMBOLS)}.")
            merged[symbol] = merged.get(symbol, 0.0) + power
        ordered = tuple((symbol, merged[symbol]) for symbol in SYMBOLS if merged.get(symbol))
        object.__setattr__(self, "powers", ordered)

    def __mul__(self, other: Scale) -> Scale:
        return Scale(self.powers + other.powers)

    def __truediv__(self, other: Scale) -> Scale:
        return self * other**-1

    def __rtruediv__(self, one: int) -> Scale:
        if one != 1:
            raise ValueError(f"A cell carries no constants ({one} was given): constants are hyperparameters.")
        return self**-1

    def __pow__(self, power: float) -> Scale:
        return Scale(tuple((symbol, exponent * power) for symbol, exponent in self.powers))

    def at(self, **ratios: float) -> float:
        """The value at the given ratios; a ratio that is not given is 1. Exactly 1.0 where all ratios are 1."""
        return float(math.prod(ratios.get(symbol, 1.0) ** power for symbol, power in self.powers))

    def exponent(self, symbol: str) -> float:
        return dict(self.powers).get(symbol, 0.0)

    def __str__(self) -> str:
        words = (symbol if power == 1 else f"{symbol}^{power:g}" for symbol, power in self.powers)
        return " ".join(words) or "1"


one = Scale()
m_in, m_out, m_head, m_depth, m_uses = (Scale(((symbol, 1.0),)) for symbol in SYMBOLS)
