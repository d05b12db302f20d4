"""Every error a user can meet. Each message says what is wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MutransferError(ValueError):
    """Bad input: the command line prints it as one sentence and exits with code 2."""


class RuleError(MutransferError):
    """A parameterization or optimizer that does not exist, or a table without the cell that was asked for."""


class RoleError(MutransferError):
    """A parameter whose role in the model cannot be proven, or a pattern that matches none."""


class ShapeError(MutransferError):
    """A base and a model that do not have the same structure, or sizes that do not fit together."""


class AlreadyParameterizedError(MutransferError):
    """A model that carries a plan already."""


class ConfigError(MutransferError):
    """A configuration value that is missing, unknown or out of range."""


class DataError(MutransferError):
    """A data set that cannot be read or is too small."""


class RunError(MutransferError):
    """A run directory that is missing, half-written or not writable."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """A hint for a mistyped name: `" Did you mean 'mup'?"`, or the list of known names where none is close.

    >>> nearest("mupp", ["mup", "sp"])
    " Did you mean 'mup'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    return f" Known: {', '.join(known)}." if known else ""


def few(names: Sequence[str], count: int = 3) -> str:
    """The first of some names, and how many more there are.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
