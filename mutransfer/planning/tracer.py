"""Watches one forward pass and follows every parameter through it by its storage.

A value is *static* where no input of the model reaches it. What is computed elementwise from parameters and other
static values still holds the parameters' entries (a masked, merged, concatenated or normalized weight) and is followed
as they are; an op that an input reaches makes an activation, and is a use of the parameters that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mutransfer.planning.calls import (
    ADDITIVE,
    CONTRACTIONS,
    COPIES,
    JOINS,
    LOOKUPS,
    NORMS,
    OVERWRITES,
    PROPORTIONAL,
    SHAPED_ALIKE,
    STATISTICS,
    Call,
    address,
    flat,
    gathers_first,
    kernel_axes,
    moved,
    tensors_in,
)
from mutransfer.planning.degrees import degree
from mutransfer.planning.layout import Dims, Form, Layout, union
from mutransfer.planning.ops import Op, Trace, Use
from mutransfer.planning.products import Products, weight_uses
from mutransfer.planning.rewrites import rewritten

_FORMS: tuple[Form, ...] = ("proportional", "shifted", "nonlinear")


class Tracer(TorchDispatchMode):
    """The ops of a forward pass, and every use of every parameter in it.

    Args:
        parameters: by name.
        inputs: whatever the forward pass is given.
    """

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.path: list[str] = []
        self.traced: Trace | None = None
        self.normalized: set[str] = set()
        self._uses: dict[str, list[Use]] = {name: [] for name in parameters}
        self._numbers: dict[int, int] = {}
        self._count = -1
        # values and storages are told apart by address: none may be freed
        self._alive: list[Any] = [p.untyped_storage() for p in parameters.values()]
        self._layouts: dict[int, tuple[Layout, ...]] = {
            address(p): (Layout.whole(name, p),)
            for name, p in reversed(list(parameters.items()))  # tied names: the first one stands for all
        }
        self._activations = {address(t) for t in tensors_in((inputs,))}
        self._draws_its_own = not self._activations  # a generator that is given a count: whatever it makes is an input
        self._statistics: dict[int, Mapping[str, frozenset[int]]] = {}
        self._degrees: dict[int, float] = {}
        self._dropped: set[tuple[str, int]] = set()
        self._products = Products()

    def uses(self) -> dict[str, tuple[Use, ...]]:
        """Every use of every parameter, in execution order."""
        found = {
            name: [use for use in uses if (name, use.op) not in self._dropped] for name, uses in self._uses.items()
        }
        self._products.settle(found)
        return {name: tuple(sorted(uses, key=lambda use: use.op)) for name, uses in found.items()}

    def number(self, tensor: Tensor, *, fresh: bool = False) -> int:
        """The number of a tensor's value; one that is written in place has a fresh value."""
        self._alive.append(tensor)
        if fresh or id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = self._count = self._count + 1
        return self._numbers[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a tensor's device, which is most of what is dispatched
            return func(*args, **kwargs)
        packet = func.overloadpacket.__name__
        if (parts := rewritten(packet, args, kwargs)) is not None:
            with self:
                return parts()
        grouped = packet == "_grouped_mm"
        out = _grouped_product(func, args, kwargs) if grouped else func(*args, **kwargs)
        known = func.namespace in ("aten", "prims")
        if known or any(self._held_by(t) for t in tensors_in(args)):
            self._record(func, args, kwargs, list(tensors_in((out,))), known)
        return out

    def _record(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: list[Tensor], known: bool
    ) -> None:
        every = [*flat(args), *(v for k, v in kwargs.items() if isinstance(v, Tensor) and k != "out")]
        numbers = {i: number for i, value in enumerate(every) if (number := self._number(value)) is not None}
        held = {i: t for i, t in enumerate(every) if isinstance(t, Tensor) and i not in numbers}
        layouts = {i: found for i, t in held.items() if (found := self._held_by(t))}
        call = Call(func, args, held, layouts, results, known)
        weights = self._products.weights(call)
        parameters = {i: found[0].parameter for i, found in layouts.items()}
        parameters |= {i: parts[0].layout.parameter for i, parts in weights.items()}
        valued = call.name not in SHAPED_ALIKE
        drawn = self._draws_its_own and not held
        static = not drawn and not (valued and any(address(t) in self._activations for t in held.values()))
        inputs = tuple(self.number(t) for t in held.values())
        outputs = {self.number(t, fresh=call.in_place): t for t in results}
        self.ops.append(
            Op(
                call.packet,
                self.path[-1] if self.path else "",
                inputs,
                tuple(outputs),
                tuple(numbers.values()),
                {k: v for k, v in kwargs.items() if isinstance(v, int | float | None)},
                parameters,
                frozenset(p.parameter for found in layouts.values() for p in found if p.form != "proportional"),
                tuple(tuple(t.shape) for t in held.values()),
                tuple(tuple(t.shape) for t in results),
                static,
                frozenset(n for n, t in outputs.items() if not (t.is_floating_point() or t.is_complex())),
            )
        )
        if results and not call.is_view:
            self._alive.extend(r.untyped_storage() for r in results)
            if not static:
                self._activations.update(address(r) for r in results)
            self._take(call, static)
            for i, parts in weights.items():
                for name, use in weight_uses(call, i, parts, self._make("contraction")):
                    self._uses[name].append(use)

    def _take(self, call: Call, static: bool) -> None:
        """What an op that computes something does to the parameters among its operands."""
        self._products.follow(call, self._make("contraction"))
        self._follow_statistics(call, static)
        if call.name in SHAPED_ALIKE:
            return
        if static and call.layouts and call.elementwise:
            self._follow(call, numbered=bool(self.ops[-1].scalars))
        elif call.layouts and call.name in COPIES and not call.in_place:
            self._carry(call, {0: "proportional"})
        elif rows := self._rows(call):
            self._layouts[address(call.results[0])] = rows
        elif call.layouts:
            self._use_all(call)

    def _number(self, value: Any) -> float | None:
        """The number that an argument is: a Python number, or a tensor of one element whose value is known and that
        neither an input nor a parameter reaches."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.dtype == torch.bool or self._held_by(value):
            return None
        known = getattr(value, "constant", None) if isinstance(value, FakeTensor) else value
        if known is None or known.is_meta or address(value) in self._activations:
            return None
        with _disable_current_modes():
            return float(known)

    def _is_activation(self, call: Call) -> bool:
        return address(call.results[0]) in self._activations

    def _held_by(self, tensor: Tensor) -> tuple[Layout, ...]:
        """The parameters whose entries a tensor's storage holds."""
        return self._layouts.get(address(tensor), ())

    def _follow(self, call: Call, *, numbered: bool) -> None:
        """A static result stands for the parameters of its own shape, entry by entry; others are gains and biases of
        those. Positions may be added up from smaller tables, and a table made of one parameter and numbers (a factor a
        head, times the logarithm of each position); an outer product of two parameters is no use we know."""
        shape, name = call.results[0].shape, call.name
        whole = [i for i, t in call.held.items() if t.shape == shape]
        alone = not numbered and all(i in call.layouts for i in call.held)
        spread = name == "mul" and len(call.layouts) == 1
        form: Form = "proportional" if name in PROPORTIONAL else "nonlinear"
        if name in ("add", "sub"):
            form = "proportional" if alone and len(call.held) > 1 else "shifted"
        carried: dict[int, Form] = {}
        for i in call.layouts:
            if i in whole or name in JOINS or len(call.held) == 1 or (not whole and (spread or name in ADDITIVE)):
                carried[i] = form
            else:
                self._add(call, i, self._elementwise(call, i) if whole else None)
        if name == "_weight_norm_interface":
            self.normalized.add(call.layouts[0][0].parameter)
        self._carry(call, carried)

    def _follow_statistics(self, call: Call, static: bool) -> None:
        """What is made of a parameter's values alone, and by which ops: its norm, the largest singular value.

        A parameter that is divided by its own is normalized, and those ops were no use of it; not so where it is
        multiplied by them again (BitNet's quantized weights). A weight that a style modulates is normalized as well
        (StyleGAN2 calls it demodulation).
        """
        made: dict[str, frozenset[int]] = {}
        held = {i: call.layouts.get(i, ()) if static else self._products.modulated(t) for i, t in call.held.items()}
        for i, t in call.held.items():
            for name, ops in self._statistics.get(address(t), {}).items():
                made[name] = made.get(name, frozenset()) | ops
            summed = call.name in STATISTICS or call.name in CONTRACTIONS or call.name == "vdot"
            for layout in held[i] if summed else ():
                made[layout.parameter] = made.get(layout.parameter, frozenset()) | {len(self.ops) - 1}
        left = self._follow_degrees(call, held, static)
        scaled = {layout.parameter for found in held.values() for layout in found} & set(made)
        if call.name not in ("mul", "div"):
            scaled = set()
        self.normalized = self.normalized - scaled if math.isclose(left, 1) else self.normalized | scaled
        self._dropped |= {(name, op) for name in scaled for op in made[name]}
        if made and not scaled and (static or len(call.held) == 1):
            self._statistics[address(call.results[0])] = made

    def _follow_degrees(self, call: Call, held: Mapping[int, tuple[Layout, ...]], static: bool) -> float:
        """The power of a factor on a parameter that is left in the result."""
        own = {i: self._degrees.get(address(t), 1.0 if held[i] else 0.0) for i, t in call.held.items()}
        left = degree(call, own)
        if any(held.values()) or (any(own.values()) and (static or len(own) == 1)):
            self._degrees[address(call.results[0])] = left
        return left

    def _carry(self, call: Call, forms: Mapping[int, Form]) -> None:
        """The result holds the parameters that some operands hold."""
        merged = dict.fromkeys(layout.parameter for i in forms for layout in call.layouts.get(i, ()))
        result = call.results[0]
        layouts: dict[str, Layout] = {}
        for i, form in forms.items():
            for layout in call.layouts.get(i, ()):
                labels = moved(call, layout.label(call.held[i]))
                weaker = max(form, layout.form, key=_FORMS.index)
                layouts[layout.parameter] = Layout.of(layout.parameter, result, labels, weaker)
        if merged:
            self._layouts[address(result)] = tuple(layouts.values())

    def _rows(self, call: Call) -> tuple[Layout, ...]:
        """Matrices gathered from a stack of them (experts) are followed; gathered rows are an activation."""
        table = call.held.get(0)
        if table is None or table.ndim < 3 or not call.layouts.get(0) or not gathers_first(call):
            return ()
        result = call.results[0]
        gathered = result.ndim - table.ndim + 1
        return tuple(
            Layout.of(p.parameter, result, (*([labels[0]] * gathered), *labels[1:]), p.form)
            for p in call.layouts[0]
            for labels in (p.label(table),)
        )

    def _use_all(self, call: Call) -> None:
        for i in call.layouts:
            self._add(call, i, self._use(call, i))
        if call.in_place:  # an activation was written over what held the parameter
            self._layouts.pop(address(call.results[0]), None)

    def _add(self, call: Call, index: int, use: Use | None) -> None:
        """Notes a use of an operand's parameters; one that is not known is opaque."""
        for layout in call.layouts[index]:
            own = use or self._make("opaque")
            if own.kind == "contraction":
                own = self._contraction(call, index, layout) or self._make("opaque")
            if layout.form == "nonlinear":
                own = replace(own, additive=False, nonlinear=True)
            self._uses[layout.parameter].append(own)
            if self._is_activation(call):
                self._products.begin(call, index, layout, own)

    def _use(self, call: Call, index: int) -> Use | None:
        """What an op does to one of its operands; None where that is not known."""
        if not call.known:
            return None
        if index in CONTRACTIONS.get(call.name, ()) or ("convolution" in call.name and index == 1):
            return self._make("contraction")
        if call.name in LOOKUPS and index == 0:
            return self._make("lookup")
        return self._elementwise(call, index)

    def _elementwise(self, call: Call, index: int) -> Use | None:
        name = call.name
        biased = name in CONTRACTIONS or "convolution" in name or name.startswith("_scaled_dot_product")
        if call.in_place and name in OVERWRITES and index == 0 and not self._is_activation(call):
            return None  # a part of a weight is overwritten: what is summed later is no longer the parameter alone
        if biased or name in NORMS | ADDITIVE or call.elementwise:
            additive = biased or name in ADDITIVE or (name in NORMS and index == 0)
            return replace(self._make("elementwise"), additive=additive)
        return None

    def _contraction(self, call: Call, index: int, layout: Layout) -> Use | None:
        labels = layout.label(call.held[index])
        axes = kernel_axes(call, layout) if "convolution" in call.name else CONTRACTIONS[call.name][index]
        if axes is None:
            return None
        contracted, batch = axes
        others = [j for j in call.layouts if j != index and j in CONTRACTIONS.get(call.name, ())]
        partner = call.layouts[others[0]][0].parameter if others else ""
        return replace(self._make("contraction", union(labels, contracted), union(labels, batch)), partner=partner)

    def _make(self, kind: Any, contracted: Dims = frozenset(), batch: Dims = frozenset()) -> Use:
        return Use(kind, contracted, batch, len(self.ops) - 1, self.ops[-1].module)


def _grouped_product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The product of rows with the matrix of their group; torch's own on fake tensors takes bfloat16 only."""
    rows, matrices = args[:2]
    if rows.ndim == 2 and matrices.ndim == 3:
        return rows.new_empty(rows.shape[0], matrices.shape[2])
    return func(*args, **kwargs)
