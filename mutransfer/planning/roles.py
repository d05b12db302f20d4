"""From sizes and uses to roles: input, hidden, output, vector or scalar, or an error that says what would settle it."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from mutransfer.errors import RoleError, nearest
from mutransfer.planning.graph import attention_biases, entrances, exits
from mutransfer.planning.layout import Dims
from mutransfer.planning.ops import Trace, Use
from mutransfer.planning.sizes import Dim
from mutransfer.rules.table import Role

NOT_REACHED = "not reached by the example inputs, taken from its own module"
"""In the reason of a parameter that the traced forward pass does not use."""
GIVEN = "as given by roles="
"""The reason of a parameter whose role the user gave."""


@dataclass(frozen=True)
class Assignment:
    """A parameter's role and the size ratios that its rule reads.

    Attributes:
        role: see `Role`.
        uses: how the trace saw it, in words.
        fan_in: number of entries summed per output; 1 where nothing is contracted.
        m_in, m_out: ratios to the base, of the contracted dimensions and of the others.
        why: the reason in words.
        readouts: the uses as readout of a tensor that is looked up too (a tied embedding); else none.
        outermost: role input with nothing wide in front of it, or output with no wide contraction after it: the
            layers that muP's own embedding and output multipliers mean, and not a router or a squeeze inside.
    """

    role: Role
    uses: str
    fan_in: int
    m_in: float
    m_out: float
    why: str
    readouts: tuple[Use, ...] = ()
    outermost: bool = True


def assign_roles(
    dims: Mapping[str, tuple[Dim, ...]],
    trace: Trace,
    patterns: Mapping[str, str],
    *,
    strict: bool,
    untouched: Collection[str] = (),
) -> dict[str, Assignment]:
    """Every parameter's role, keyed by name.

    Args:
        dims: of every parameter.
        trace: of the model.
        patterns: the user's own roles, glob -> role; a later pattern wins.
        strict: raise where a role cannot be proven; else take what the sizes suggest and say so.
        untouched: parameters that are neither written nor trained: their roles need no proof.

    Raises:
        RoleError: no proof, or a pattern that matches nothing.
    """
    given = _given_roles(trace.uses, patterns)
    growing = {name for name in trace.uses if _growing(dims[name])}
    first, last = entrances(trace, growing), exits(trace, growing)
    biases = attention_biases(trace, growing)
    assigned: dict[str, Assignment] = {}
    unproven: list[str] = []
    for name, uses in trace.uses.items():
        forced = name in given
        idle = name in untouched
        own = _forced(name, dims[name], uses, given[name]) if forced else _proven(name, dims, trace.uses)
        if own is None:
            own = _guess(name, dims, trace.uses)
            unproven += [] if idle else [name]
        if idle and not forced:
            own = replace(own, why="frozen and kept as it is: nothing is done to it")
        assigned[name] = replace(own, outermost=_outermost(own.role, uses, first, last, biases))
    if unproven and strict:
        raise RoleError(_unproven(unproven, dims, trace.uses))
    return assigned


def _outermost(
    role: Role, uses: Sequence[Use], first: Collection[int], last: Collection[int], biases: Collection[int]
) -> bool:
    if role is Role.INPUT:
        entering = (use for use in uses if use.op not in biases)
        return any(use.kind == "lookup" or use.additive or use.op in first for use in entering)
    return any(use.op in last for use in uses)


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


_Dims = Mapping[str, tuple[Dim, ...]]
_Uses = Mapping[str, tuple[Use, ...]]


def _proven(name: str, dims: _Dims, uses: _Uses) -> Assignment | None:
    own = dims[name]
    growing = _growing(own)
    found = _found(name, dims, uses)
    if not growing:
        return _assignment(Role.SCALAR, own, _contracted(found), found, "no size of it grows with width")
    contractions = [use for use in found if use.kind == "contraction"]
    roles = {_role_of_contraction(use, growing) for use in contractions}
    looked_up = any(use.kind == "lookup" for use in found)
    opaque = any(use.kind == "opaque" for use in found)
    enters = looked_up or (Role.INPUT in roles and not opaque)
    if len(growing) == 1 and enters and roles - {Role.INPUT} == {Role.OUTPUT}:
        return _tied(own, found, growing)
    role = next(iter(roles)) if len(roles) == 1 else None
    if role is not None and not opaque and (role is Role.INPUT or not looked_up):
        return _assignment(role, own, contractions[0].contracted, found, _why(contractions[0], growing))
    if not roles and len(growing) == 1 and found and not opaque:
        return _assignment(_uncontracted(own, found), own, frozenset(), found, _why_uncontracted(looked_up))
    return None


def _found(name: str, dims: _Dims, uses: _Uses) -> list[Use]:
    """The uses of a parameter; an opaque one among them where one of them proves nothing, or is hidden by its size."""
    growing = _growing(dims[name])
    found = [_as_embedding(use, growing, dims, uses) for use in uses[name]]
    mixed = any(use.kind == "contraction" and _role_of_contraction(use, growing) is None for use in found)
    hidden = any(dim.grows and dim.size == 1 for dim in dims[name])
    return [*found, Use("opaque")] if growing and (mixed or hidden) else found


def _tied(dims: Sequence[Dim], found: Sequence[Use], growing: Dims) -> Assignment:
    """Embedding and readout at once: rows are looked up, or mixed by what the forward pass says of each (a projection
    from a table of low rank), and elsewhere they are contracted over the width."""
    readouts = [use for use in found if use.kind == "contraction" and growing & use.contracted]
    entering = [use for use in found if use.kind == "contraction" and use not in readouts]
    first = _why(entering[0], growing) if entering else "looked up by index"
    why = f"{first}, and contracted over the width as readout (tied)"
    contracted = entering[0].contracted if entering else frozenset()
    return replace(_assignment(Role.INPUT, dims, contracted, found, why), readouts=tuple(readouts))


def _growing(dims: Sequence[Dim]) -> Dims:
    return frozenset(axis for axis, dim in enumerate(dims) if dim.grows)


def _as_embedding(use: Use, growing: Dims, dims: _Dims, uses: _Uses) -> Use:
    """A parameter that is multiplied by a matrix of another one (learned queries, say) is an activation there, as
    rows of an embedding are; two parameters whose product makes a weight are neither, and proven for nothing. One that
    is of one size at every width (learned boxes) is as good as an input."""
    if not use.partner or not _growing(dims[use.partner]):
        return use
    theirs = next((other for other in uses[use.partner] if other.op == use.op), None)
    if theirs is None:
        return replace(use, kind="opaque")
    pair = (_role_of_contraction(use, growing), _role_of_contraction(theirs, _growing(dims[use.partner])))
    if pair[1] == Role.HIDDEN and pair[0] in (Role.OUTPUT, Role.SCALAR):
        return replace(use, kind="elementwise", additive=True, contracted=frozenset(), batch=frozenset())
    if pair[0] == Role.HIDDEN and pair[1] in (Role.OUTPUT, Role.SCALAR):
        return use
    return replace(use, kind="opaque")


def _role_of_contraction(use: Use, growing: Dims) -> Role | None:
    into, out_of = growing & use.contracted, growing - use.contracted
    if into and out_of:
        return Role.HIDDEN
    if into:
        return Role.OUTPUT
    if not out_of:
        return Role.SCALAR
    if len(out_of - use.batch) > 1:
        return None  # a weight mixed by an activation, say: what it contracts comes later
    return Role.VECTOR if out_of <= use.batch else Role.INPUT  # every channel by itself: a gain, not an embedding


def _uncontracted(dims: Sequence[Dim], uses: Sequence[Use]) -> Role:
    """Rows looked up or added are an embedding; one number a channel, and whatever multiplies, is a gain or a bias."""
    table = sum(dim.size > 1 for dim in dims) > 1 and any(use.additive for use in uses)
    return Role.INPUT if table or any(use.kind == "lookup" for use in uses) else Role.VECTOR


def _why(use: Use, growing: Dims) -> str:
    axes = ", ".join(map(str, sorted(use.contracted)))
    into, out_of = growing & use.contracted, growing - use.contracted
    if out_of and out_of <= use.batch and not into:
        return f"contracts a fixed size (dimension {axes}) in each of a growing number of channels"
    sizes = ["growing" if dims else "fixed" for dims in (into, out_of)]
    return f"contracts a {sizes[0]} size (dimension {axes}) into a {sizes[1]} one"


def _why_uncontracted(looked_up: bool) -> str:
    return "rows looked up by index" if looked_up else "added or multiplied elementwise, one size grows"


def _contracted(uses: Sequence[Use]) -> Dims:
    return next((use.contracted for use in uses if use.kind == "contraction"), frozenset())


def _assignment(role: Role, dims: Sequence[Dim], contracted: Dims, uses: Sequence[Use], why: str) -> Assignment:
    out = [i for i in range(len(dims)) if i not in contracted]
    mixed = " (grows as a*k + b)" if any(dim.mixed for dim in dims) else ""
    return Assignment(
        role,
        _in_words(uses),
        math.prod(dims[i].size for i in contracted),
        math.prod(dims[i].ratio for i in contracted),
        math.prod(dims[i].ratio for i in out),
        why + mixed + ("" if all(use.reached for use in uses) else f" ({NOT_REACHED})"),
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
    return replace(_assignment(role, dims, contracted, uses, GIVEN), readouts=tuple(readouts))


def _guess(name: str, dims: _Dims, uses: _Uses) -> Assignment:
    """What sizes alone suggest, for strict=False: torch's layout, (out, in, ...)."""
    own, found = dims[name], _found(name, dims, uses)
    if len(_growing(own)) == 1:
        return _assignment(_uncontracted(own, found), own, frozenset(), found, "UNPROVEN, guessed from its sizes")
    contracted = frozenset(range(1, len(own)))
    return _assignment(Role.HIDDEN, own, contracted, found, "UNPROVEN, guessed from its sizes")


def _unproven(names: Sequence[str], dims: _Dims, uses: _Uses) -> str:
    """Of the first; the others are named."""
    name, *others = names
    own, found = dims[name], _found(name, dims, uses)
    if any(dim.grows and dim.size == 1 for dim in own):
        return (
            f"{name!r} has a growing dimension of size 1 at this width, which hides what the forward pass does with "
            "it. Plan a wider model, or one with more heads or channels."
        )
    shape = "x".join(str(dim.size) for dim in own)
    growing = _growing(own)
    axes = ", ".join(map(str, sorted(growing)))
    matrix = sum(dim.size > 1 for dim in own) > 1
    summed = any(use.kind == "opaque" for use in found)
    suggestion = "hidden" if len(growing) > 1 else "input' or 'output" if matrix else "vector"
    if suggestion == "vector" and summed:
        suggestion = "vector' or 'output"
    shown = f"{', '.join(map(repr, others[:3]))}{', ...' if len(others) > 3 else ''}"
    more = f" The same holds for {len(others)} more: {shown}." if others else ""
    return (
        f"The role of {name!r} ({shape}, dimensions {axes} grow with width) cannot be proven: it is "
        f"{_in_words(found)}. Say what it is with roles={{{name!r}: '{suggestion}'}} "
        f"(one of {', '.join(r.value for r in Role)}), or give example_inputs= that reach it.{more}"
    )
