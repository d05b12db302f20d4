"""How an op depends on each of its tensors: what one tensor alone contributes to the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

Operand = tuple[str, int]
"""An argument's name in the op's schema, and its place where the argument is a list of tensors (else 0)."""

# fmt: off
LINEAR: Mapping[tuple[str, str], tuple[str, ...]] = {
    # (op, argument) -> arguments that are added to the product, and so are zero in this one's own contribution
    ("mm", "self"): (),                      ("mm", "mat2"): (),
    ("bmm", "self"): (),                     ("bmm", "mat2"): (),
    ("mv", "self"): (),                      ("mv", "vec"): (),
    ("dot", "self"): (),                     ("dot", "tensor"): (),
    ("addmm", "mat1"): ("self",),            ("addmm", "mat2"): ("self",),
    ("addmv", "mat"): ("self",),             ("addmv", "vec"): ("self",),
    ("baddbmm", "batch1"): ("self",),        ("baddbmm", "batch2"): ("self",),
    ("linear", "weight"): ("bias",),         ("_grouped_mm", "mat2"): ("bias",),
    ("convolution", "weight"): ("bias",),
    ("mul", "self"): (),                     ("mul", "other"): (),
    ("div", "self"): (),                     ("neg", "self"): (),
    ("embedding", "weight"): (),             ("index", "self"): (),
    ("index_select", "self"): (),            ("gather", "self"): (),
    ("clone", "self"): (),                   ("_to_copy", "self"): (),
    ("sum", "self"): (),                     ("mean", "self"): (),
    ("tril", "self"): (),                    ("triu", "self"): (),
    ("repeat", "self"): (),                  ("flip", "self"): (),
    ("roll", "self"): (),                    ("constant_pad_nd", "self"): (),
    ("_weight_norm_interface", "g"): (),
    ("native_layer_norm", "weight"): ("bias",),
    ("native_group_norm", "weight"): ("bias",),
    ("_fused_rms_norm", "weight"): (),
    ("native_batch_norm", "weight"): ("bias",),
    ("cudnn_batch_norm", "weight"): ("bias",),
    ("miopen_batch_norm", "weight"): ("bias",),
    ("_native_batch_norm_legit", "weight"): ("bias",),
    ("_batch_norm_with_update", "weight"): ("bias",),
}
AS_IT_IS = frozenset({
    # (op, argument) that enters the result by itself, at most broadcast
    ("add", "self"), ("add", "other"), ("sub", "self"), ("sub", "other"), ("rsub", "self"),
    ("cat", "tensors"), ("stack", "tensors"), ("where", "self"), ("where", "other"), ("copy", "src"),
    ("addmm", "self"), ("addmv", "self"), ("baddbmm", "self"), ("linear", "bias"), ("convolution", "bias"),
    ("native_layer_norm", "bias"), ("native_group_norm", "bias"), ("native_batch_norm", "bias"),
    ("cudnn_batch_norm", "bias"), ("miopen_batch_norm", "bias"), ("_native_batch_norm_legit", "bias"),
    ("_batch_norm_with_update", "bias"),
})
SUMS = frozenset({"add", "sub", "cat", "stack", "where"})
"""Ops that are linear in all of their tensors at once."""
LOOKUPS = frozenset({"embedding", "index", "index_select", "gather"})
REDUCTIONS = frozenset({"sum", "mean", "norm", "linalg_vector_norm", "var", "std", "var_mean", "std_mean", "logsumexp"})
# fmt: on


@cache
def _argument_names(func: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in func._schema.arguments)


@dataclass(frozen=True)
class Call:
    """One call of an op, its arguments by name."""

    func: Any
    name: str
    arguments: Mapping[str, Any]

    @classmethod
    def bind(cls, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        name = func.overloadpacket.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        arguments = dict(zip(_argument_names(func), args, strict=False)) | dict(kwargs)
        return cls(func, name[:-1] if in_place else name, arguments)

    def operands(self) -> Iterator[tuple[Operand, Tensor]]:
        for name, value in self.arguments.items():
            for place, item in enumerate(value if isinstance(value, list | tuple) else (value,)):
                if isinstance(item, Tensor):
                    yield (name, place), item

    def run(self, replaced: Mapping[Operand, Tensor], *, zeroed: tuple[str, ...] = ()) -> Tensor:
        """The op's (first) result with some tensors replaced; nothing that it was called with is written to."""
        arguments = {name: self._fresh(name, value, replaced) for name, value in self.arguments.items()}
        for name in zeroed:
            if isinstance(value := arguments.get(name), Tensor):
                arguments[name] = torch.zeros_like(value)
        out = self.func(**arguments)
        first: Tensor = out[0] if isinstance(out, list | tuple) else out
        return first

    def _fresh(self, name: str, value: Any, replaced: Mapping[Operand, Tensor]) -> Any:
        if isinstance(value, list | tuple):
            return [replaced.get((name, place), item) for place, item in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        fresh = replaced.get((name, 0), value)
        return fresh.clone() if self._writes(name) else fresh

    def _writes(self, name: str) -> bool:
        """In-place ops write their first tensor; batch norms their running statistics, whatever the schema says."""
        return name.startswith("running_") or bool(self.func._schema.is_mutable)


def contribution(call: Call, operand: Operand, shadow: Tensor) -> Tensor:
    """What `shadow`, standing in `operand`'s place, contributes to the op's result by itself.

    Exact for linear ops. For any other op it is the difference that taking the shadow away makes.
    """
    key = (call.name, operand[0])
    if key in AS_IT_IS:
        return shadow
    if key in LINEAR:
        return call.run({operand: shadow}, zeroed=LINEAR[key])
    whole = call.run({})
    return whole - call.run({operand: dict(call.operands())[operand] - shadow})


def factors_of(call: Call, operand: Operand) -> list[Tensor]:
    """What a contribution is a product with; nothing where it is added, where rows of it are looked up, or where the op
    first brings its input to one size."""
    added = LINEAR.get((call.name, operand[0]))
    if added is None or call.name in LOOKUPS or call.name == "div" or "norm" in call.name:
        return []
    others = ((other, tensor) for other, tensor in call.operands() if other != operand and other[0] not in added)
    return [tensor for _, tensor in others if tensor.is_floating_point()]


def combined(call: Call, shadows: Mapping[Operand, Tensor], *, initial: bool) -> Tensor:
    """One parameter's share of a value that is made of parameters alone, such as `1 + w` or `g * v / |v|`.

    Args:
        call: the op that makes the value.
        shadows: the parameter's share of each of its operands.
        initial: the share is the parameter's whole value, not its change: the 1 of a gain that is 1 + w is in it. What
            is left without the parameter may be meaningless (a vector of length 0 divided by its length), and the
            whole result is the share.
    """
    operands = dict(call.operands())
    if call.name in SUMS:
        zeros = {o: torch.zeros_like(t) for o, t in operands.items() if t.is_floating_point() and o not in shadows}
        return (call if initial else _without_constant(call)).run({**zeros, **shadows})
    (operand, shadow), *others = shadows.items()
    if not others and (call.name, operand[0]) in LINEAR:
        return contribution(call, operand, shadow)
    whole = call.run({})
    return whole if initial else whole - call.run({o: operands[o] - s for o, s in shadows.items()})


def _without_constant(call: Call) -> Call:
    """The change of `w + 1` is that of w."""
    number = call.arguments.get("other")
    return call if isinstance(number, Tensor | None) else Call(call.func, call.name, {**call.arguments, "other": 0})


def reduced(call: Call, tensor: Tensor, out: Tensor) -> int:
    """How many entries of a tensor are put together in one of the result by a sum, a mean or a norm; else 1."""
    return tensor.numel() // max(out.numel(), 1) if call.name in REDUCTIONS else 1


def fan_in(call: Call, operand: Operand, tensor: Tensor) -> int:
    """How many of the tensor's entries are summed into one entry of the result."""
    name, argument = call.name, operand[0]
    if (name, argument) not in LINEAR:
        return 1
    if name == "convolution":
        across = 0 if call.arguments["transposed"] else 1
        groups = call.arguments["groups"] if across == 0 else 1
        return int(tensor.shape[across] // groups * tensor[0, 0].numel())
    if name in ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm"):
        return int(tensor.shape[-2] if argument in ("mat2", "batch2") else tensor.shape[-1])
    return int(tensor.shape[-1]) if name in ("linear", "mv", "addmv", "dot") else 1


def positions_of(call: Call, out: Tensor) -> tuple[int, ...]:
    """The dimensions of a weight's product with an activation that are positions; the others are features."""
    if call.name in ("bmm", "baddbmm"):
        return (1,)
    return (0, *range(2, out.ndim)) if call.name == "convolution" else tuple(range(out.ndim - 1))
