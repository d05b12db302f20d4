"""From sizes and uses to roles: input, hidden, output, vector or scalar, or an error that says what would settle it."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mutransfer.errors import RoleError, nearest
from mutransfer.planning.sizes import Dim
from mutransfer.planning.trace import Dims, Trace, Use
from mutransfer.rules.table import Role


@dataclass(frozen=True)
class Assignment:
    """A parameter's role and the size ratios that its rule reads.

    Attributes:
        role: see `Role`.
        uses: how the trace saw it, in words.
        fan_in: number of entries summed per output; 1 where nothing is contracted.
        m_in, m_out: ratios to the base, of the contracted dimensions and of the others.
        readouts: the uses as readout of a tensor that is looked up too (a tied embedding); else none.
        why: the reason in words.
    """

    role: Role
    uses: str
    fan_in: int
    m_in: float
    m_out: float
    why: str
    readouts: tuple[Use, ...] = ()


def assign_roles(
    dims: Mapping[str, tuple[Dim, ...]], trace: Trace, patterns: Mapping[str, str], *, strict: bool
) -> dict[str, Assignment]:
    """Every parameter's role, keyed by name.

    Args:
        dims: of every parameter.
        trace: of the model.
        patterns: the user's own roles, glob -> role; a later pattern wins.
        strict: raise where a role cannot be proven; else take what the sizes suggest and say so.

    Raises:
        RoleError: no proof, or a pattern that matches nothing.
    """
    given = _given_roles(trace.uses, patterns)
    return {
        name: _forced(name, dims[name], uses, given[name]) if name in given else _proven(name, dims[name], uses, strict)
        for name, uses in trace.uses.items()
    }


def _given_roles(names: Mapping[str, object], patterns: Mapping[str, str]) -> dict[str, Role]:
    given: dict[str, Role] = {}
    for pattern, role in patterns.items():
        if role not in set(Role):
            raise RoleError(f"There is no role {role!r}.{nearest(str(role), [r.value for r in Role])}")
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise RoleError(f"Role pattern {pattern!r} matched no parameter.{nearest(pattern, names)}")
        given |= dict.fromkeys(matched, Role(role))
    return given


def _proven(name: str, dims: Sequence[Dim], uses: Sequence[Use], strict: bool) -> Assignment:
    growing = frozenset(i for i, dim in enumerate(dims) if dim.grows)
    if not growing:
        return _assignment(Role.SCALAR, dims, _contracted(uses), uses, "no size of it grows with width")
    contractions = [use for use in uses if use.kind == "contraction"]
    roles = {_role_of_contraction(use, growing) for use in contractions}
    looked_up = any(use.kind == "lookup" for use in uses)
    if looked_up and roles == {Role.OUTPUT} and len(growing) == 1:
        why = "looked up by index, and contracted over the width as readout (tied)"
        return replace(_assignment(Role.INPUT, dims, frozenset(), uses, why), readouts=tuple(contractions))
    if len(roles) == 1 and not looked_up:
        return _assignment(next(iter(roles)), dims, contractions[0].contracted, uses, _why(contractions[0], growing))
    if not roles and len(growing) == 1 and uses and all(use.kind != "opaque" for use in uses):
        return _assignment(*_uncontracted(dims, looked_up), frozenset(), uses, _why_uncontracted(looked_up))
    if not strict:
        return _guess(dims, growing, uses)
    raise RoleError(_unproven(name, dims, growing, uses))


def _role_of_contraction(use: Use, growing: Dims) -> Role:
    into, out_of = growing & use.contracted, growing - use.contracted - use.batch
    if into and out_of:
        return Role.HIDDEN
    if into:
        return Role.OUTPUT
    return Role.INPUT if out_of else Role.SCALAR


def _uncontracted(dims: Sequence[Dim], looked_up: bool) -> tuple[Role, Sequence[Dim]]:
    table = looked_up or sum(dim.size > 1 for dim in dims) > 1
    return (Role.INPUT if table else Role.VECTOR), dims


def _why(use: Use, growing: Dims) -> str:
    axes = ", ".join(map(str, sorted(use.contracted)))
    into = "growing" if growing & use.contracted else "fixed"
    out_of = "growing" if growing - use.contracted - use.batch else "fixed"
    return f"contracts a {into} size (dimension {axes}) into a {out_of} one"


def _why_uncontracted(looked_up: bool) -> str:
    return "rows looked up by index" if looked_up else "added or multiplied elementwise, one size grows"


def _contracted(uses: Sequence[Use]) -> Dims:
    return next((use.contracted for use in uses if use.kind == "contraction"), frozenset())


def _assignment(role: Role, dims: Sequence[Dim], contracted: Dims, uses: Sequence[Use], why: str) -> Assignment:
    batch = next((use.batch for use in uses if use.kind == "contraction"), frozenset())
    out = [i for i in range(len(dims)) if i not in contracted and i not in batch]
    mixed = " (grows as a*k + b)" if any(dim.mixed for dim in dims) else ""
    return Assignment(
        role,
        _in_words(uses),
        math.prod(dims[i].size for i in contracted),
        math.prod(dims[i].ratio for i in contracted),
        math.prod(dims[i].ratio for i in out),
        why + mixed,
    )


def _in_words(uses: Sequence[Use]) -> str:
    return ", ".join(dict.fromkeys(use.kind for use in uses)) or "never used in the traced forward pass"


def _forced(name: str, dims: Sequence[Dim], uses: Sequence[Use], role: Role) -> Assignment:
    """A role that the user gave; without a contraction in the trace, torch's layout (out, in, ...) is taken."""
    contracted = _contracted(uses)
    if role in (Role.HIDDEN, Role.OUTPUT) and not contracted:
        if len(dims) < 2:
            raise RoleError(f"{name!r} has one dimension and cannot be {role.value}: give input, vector or scalar.")
        contracted = frozenset(range(1, len(dims)))
    if role in (Role.VECTOR, Role.INPUT) and any(dims[i].grows for i in contracted):
        contracted = frozenset()
    growing = frozenset(i for i, dim in enumerate(dims) if dim.grows)
    tied = role is Role.INPUT and any(use.kind == "lookup" for use in uses)
    readouts = [use for use in uses if use.kind == "contraction" and growing & use.contracted] if tied else []
    return replace(_assignment(role, dims, contracted, uses, "as given by roles="), readouts=tuple(readouts))


def _guess(dims: Sequence[Dim], growing: Dims, uses: Sequence[Use]) -> Assignment:
    """What sizes alone suggest, for strict=False: torch's layout, (out, in, ...)."""
    if len(growing) == 1:
        role, _ = _uncontracted(dims, looked_up=False)
        return _assignment(role, dims, frozenset(), uses, "UNPROVEN, guessed from its sizes")
    contracted = frozenset(range(1, len(dims)))
    return _assignment(Role.HIDDEN, dims, contracted, uses, "UNPROVEN, guessed from its sizes")


def _unproven(name: str, dims: Sequence[Dim], growing: Dims, uses: Sequence[Use]) -> str:
    shape = "x".join(str(dim.size) for dim in dims)
    axes = ", ".join(map(str, sorted(growing)))
    suggestion = "hidden" if len(growing) > 1 else "vector"
    return (
        f"The role of {name!r} ({shape}, dimensions {axes} grow with width) cannot be proven: it is "
        f"{_in_words(uses)}. Say what it is with roles={{{name!r}: {suggestion!r}}} "
        f"(one of {', '.join(r.value for r in Role)}), or give example_inputs= that reach it."
    )
