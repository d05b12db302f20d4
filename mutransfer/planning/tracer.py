"""Watches one forward pass and follows every parameter through it by its storage.

A value is *static* where no input of the model reaches it. What is computed elementwise from parameters and other
static values still holds the parameters' entries (a masked, merged, concatenated or normalized weight) and is followed
as they are; an op that an input reaches makes an activation, and is a use of the parameters that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mutransfer.planning.layout import Dims, Form, Labels, Layout, broadcast, union
from mutransfer.planning.ops import VIEWS, Op, Use

_CONTRACTIONS: dict[str, dict[int, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    # op: operand -> (contracted dimensions, batch dimensions) of that operand
    "mm": {0: ((1,), ()), 1: ((0,), ())},
    "addmm": {1: ((1,), ()), 2: ((0,), ())},
    "bmm": {0: ((2,), (0,)), 1: ((1,), (0,))},
    "baddbmm": {1: ((2,), (0,)), 2: ((1,), (0,))},
    "mv": {0: ((1,), ()), 1: ((0,), ())},
    "addmv": {1: ((1,), ()), 2: ((0,), ())},
    "dot": {0: ((0,), ()), 1: ((0,), ())},
    "linear": {0: ((-1,), ()), 1: ((1,), ())},
    "_grouped_mm": {0: ((-1,), ()), 1: ((1,), (0,))},
}
_LOOKUPS = {"embedding", "index_select", "index", "gather", "_embedding_bag"}
_NORMS = {"native_layer_norm", "_fused_rms_norm", "native_batch_norm", "_native_batch_norm_legit",
          "native_group_norm", "cudnn_batch_norm", "batch_norm", "_batch_norm_with_update",
          "_native_batch_norm_legit_functional"}  # fmt: skip
_JOINS = {"cat", "stack"}
_COPIES = {"clone", "_to_copy", "contiguous", "copy", "detach"}
_PROPORTIONAL = {"mul", "div", "neg", "where", "masked_fill", "tril", "triu", "constant_pad_nd", "flip", "roll",
                 "repeat", "native_dropout", "_weight_norm_interface"} | _COPIES | _JOINS  # fmt: skip
_ADDITIVE = {"add", "sub", "where", "masked_fill", "index_put", "_index_put_impl", "index_add", "index_copy",
             "scatter", "masked_scatter", "slice_scatter", "select_scatter"} | _COPIES | _JOINS  # fmt: skip
_PRODUCTS = {"mul", "div", "neg"} | _COPIES
_SUMS = {"sum", "mean"}
_SHAPED_ALIKE = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty",
                 "new_zeros", "new_ones", "new_full"}  # fmt: skip
"""Ops that read the size of their operand and none of its values."""


@dataclass
class _Product:
    """An activation times a parameter, entry by entry. Where it is summed and read nowhere else, that contracts the
    parameter, as in `(h * v).sum(-1)`. `shared` are the dimensions that the activation has too: each of its entries
    meets its own."""

    layouts: tuple[Layout, ...]
    shared: Mapping[str, Dims]
    source: _Product | None = None
    readers: int = 0

    def read_once(self) -> bool:
        return self.readers == 1 and (self.source is None or self.source.read_once())


@dataclass(frozen=True)
class _Call:
    """One op with its tensors. `held` are those that are not mere numbers, by position among all arguments, and
    `layouts` what those of them that hold parameters hold."""

    func: Any
    args: tuple[Any, ...]
    held: Mapping[int, Tensor]
    layouts: Mapping[int, tuple[Layout, ...]]
    results: Sequence[Tensor]
    known: bool

    @cached_property
    def packet(self) -> str:
        return str(self.func.overloadpacket.__name__)

    @cached_property
    def name(self) -> str:
        """The op's, without the mark of an in-place one."""
        return self.packet.rstrip("_")

    @property
    def in_place(self) -> bool:
        return self.packet.endswith("_") and not self.packet.endswith("__")

    @property
    def is_view(self) -> bool:
        shared = {_address(t) for t in self.held.values()} & {_address(r) for r in self.results}
        return bool(shared) and (not self.in_place or self.name in VIEWS)

    @property
    def elementwise(self) -> bool:
        resized = self.name.lstrip("_").startswith("upsample")  # positions for another image size
        return self.known and (self.name in _PROPORTIONAL or resized or torch.Tag.pointwise in self.func.tags)


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
        self.normalized: set[str] = set()
        self._uses: dict[str, list[Use]] = {name: [] for name in parameters}
        self._numbers: dict[int, int] = {}
        self._count = -1
        self._alive: list[Any] = []  # values and storages are told apart by address: none may be freed
        self._layouts: dict[int, tuple[Layout, ...]] = {
            _address(p): (Layout.whole(name, p),)
            for name, p in reversed(list(parameters.items()))  # tied names: the first one stands for all
        }
        self._activations = {_address(t) for t in tensors_in((inputs,))}
        self._products: dict[int, _Product] = {}
        self._summed: list[tuple[_Product, str, Use]] = []

    def uses(self) -> dict[str, tuple[Use, ...]]:
        """Every use of every parameter, in execution order."""
        found = {name: list(uses) for name, uses in self._uses.items()}
        for product, name, use in self._summed:
            if product.read_once():
                found[name].append(use)
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
        grouped = func.overloadpacket.__name__ == "_grouped_mm"
        out = _grouped_product(func, args, kwargs) if grouped else func(*args, **kwargs)
        known = func.namespace in ("aten", "prims")
        if known or any(self._held_by(t) for t in tensors_in(args)):
            self._record(func, args, kwargs, list(tensors_in((out,))), known)
        return out

    def _record(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: list[Tensor], known: bool
    ) -> None:
        flat = _flat(args)
        numbers = {i: number for i, value in enumerate(flat) if (number := self._number(value)) is not None}
        held = {i: t for i, t in enumerate(flat) if isinstance(t, Tensor) and i not in numbers}
        layouts = {i: found for i, t in held.items() if (found := self._held_by(t))}
        call = _Call(func, args, held, layouts, results, known)
        valued = call.name not in _SHAPED_ALIKE
        static = not (valued and any(_address(t) in self._activations for t in held.values()))
        self.ops.append(
            Op(
                call.packet,
                self.path[-1] if self.path else "",
                tuple(self.number(t) for t in held.values()),
                tuple(self.number(t, fresh=call.in_place) for t in results),
                tuple(numbers.values()),
                {k: v for k, v in kwargs.items() if isinstance(v, int | float | None)},
                {i: found[0].parameter for i, found in layouts.items()},
                frozenset(p.parameter for found in layouts.values() for p in found if p.form != "proportional"),
                tuple(tuple(t.shape) for t in held.values()),
                tuple(tuple(t.shape) for t in results),
                static,
            )
        )
        if results and not call.is_view:
            self._alive.extend(r.untyped_storage() for r in results)
            if not static:
                self._activations.update(_address(r) for r in results)
            self._take(call, static)

    def _take(self, call: _Call, static: bool) -> None:
        """What an op that computes something does to the parameters among its operands."""
        self._follow_products(call)
        if static and call.layouts and call.elementwise:
            self._follow(call, numbered=bool(self.ops[-1].scalars))
        elif call.layouts and call.name in _COPIES and not call.in_place:
            self._carry(call, {0: "proportional"})
        elif rows := self._rows(call):
            self._layouts[_address(call.results[0])] = rows
        elif call.layouts:
            self._use_all(call)

    def _number(self, value: Any) -> float | None:
        """The number that an argument is: a Python number, or a tensor of no dimension whose value is known and that
        neither an input nor a parameter reaches."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, Tensor) or value.ndim or value.dtype == torch.bool or self._held_by(value):
            return None
        known = getattr(value, "constant", None) if isinstance(value, FakeTensor) else value
        if known is None or known.is_meta or _address(value) in self._activations:
            return None
        with _disable_current_modes():
            return float(known)

    def _held_by(self, tensor: Tensor) -> tuple[Layout, ...]:
        """The parameters whose entries a tensor's storage holds."""
        return self._layouts.get(_address(tensor), ())

    def _follow(self, call: _Call, *, numbered: bool) -> None:
        """A static result stands for the parameters of its own shape, entry by entry; others are gains and biases of
        those. Positions may be added up from smaller tables; an outer product of two parameters is no use we know."""
        shape, name = call.results[0].shape, call.name
        whole = [i for i, t in call.held.items() if t.shape == shape]
        alone = not numbered and all(i in call.layouts for i in call.held)
        form: Form = "proportional" if name in _PROPORTIONAL else "nonlinear"
        if name in ("add", "sub"):
            form = "proportional" if alone and len(call.held) > 1 else "shifted"
        carried: dict[int, Form] = {}
        for i in call.layouts:
            if i in whole or name in _JOINS or (not whole and name in _ADDITIVE) or len(call.held) == 1:
                carried[i] = form
            else:
                self._add(call, i, self._elementwise(call, i) if whole else None)
        if name == "_weight_norm_interface":
            self.normalized.add(call.layouts[0][0].parameter)
        self._carry(call, carried)

    def _carry(self, call: _Call, forms: Mapping[int, Form]) -> None:
        """The result holds the parameters that some operands hold."""
        merged = dict.fromkeys(layout.parameter for i in forms for layout in call.layouts.get(i, ()))
        result = call.results[0]
        layouts: dict[str, Layout] = {}
        for i, form in forms.items():
            for layout in call.layouts.get(i, ()):
                labels = _moved(call, layout.label(call.held[i]))
                weaker = max(form, layout.form, key=_FORMS.index)
                layouts[layout.parameter] = Layout.of(layout.parameter, result, labels, weaker)
        if merged:
            self._layouts[_address(result)] = tuple(layouts.values())

    def _rows(self, call: _Call) -> tuple[Layout, ...]:
        """Matrices gathered from a stack of them (experts) are followed; gathered rows are an activation."""
        table = call.held.get(0)
        if table is None or table.ndim < 3 or not call.layouts.get(0) or not _gathers_first(call):
            return ()
        result = call.results[0]
        gathered = result.ndim - table.ndim + 1
        return tuple(
            Layout.of(p.parameter, result, (*([labels[0]] * gathered), *labels[1:]), p.form)
            for p in call.layouts[0]
            for labels in (p.label(table),)
        )

    def _follow_products(self, call: _Call) -> None:
        """Products of a parameter and an activation, until they are summed."""
        for t in call.held.values():
            product = self._products.get(_address(t))
            if product is None:
                continue
            product.readers += 1
            for layout in product.layouts if call.name in _SUMS else ():
                if summed := union(layout.label(t), _reduced(call.args, t)):
                    batch = product.shared[layout.parameter] - summed
                    self._summed.append((product, layout.parameter, self._make("contraction", summed, batch)))
            if call.name in _PRODUCTS and call.results[0].shape == t.shape:
                moved = tuple(Layout.of(p.parameter, call.results[0], p.label(t)) for p in product.layouts)
                self._products[_address(call.results[0])] = _Product(moved, product.shared, product)

    def _use_all(self, call: _Call) -> None:
        for i in call.layouts:
            self._add(call, i, self._use(call, i))
            if call.name == "mul" and len(call.held) == 2:
                self._products[_address(call.results[0])] = _product(call, i)
        if call.in_place:  # an activation was written over what held the parameter
            self._layouts.pop(_address(call.results[0]), None)

    def _add(self, call: _Call, index: int, use: Use | None) -> None:
        """Notes a use of an operand's parameters; one that is not known is opaque."""
        for layout in call.layouts[index]:
            own = use or self._make("opaque")
            if own.kind == "contraction":
                own = self._contraction(call, index, layout) or self._make("opaque")
            if own.additive and layout.form == "nonlinear":
                own = replace(own, additive=False)
            self._uses[layout.parameter].append(own)

    def _use(self, call: _Call, index: int) -> Use | None:
        """What an op does to one of its operands; None where that is not known."""
        if not call.known:
            return None
        if index in _CONTRACTIONS.get(call.name, ()) or ("convolution" in call.name and index == 1):
            return self._make("contraction")
        if call.name in _LOOKUPS and index == 0:
            return self._make("lookup")
        return self._elementwise(call, index)

    def _elementwise(self, call: _Call, index: int) -> Use | None:
        name, tensor = call.name, call.held[index]
        depends = name in ("mul", "div") and sum(n > 1 for n in tensor.shape) > 1
        if depends and tensor.shape == call.results[0].shape and _address(call.results[0]) in self._activations:
            return None  # a weight that an input gates: what is summed later is no longer the parameter alone
        biased = name in _CONTRACTIONS or "convolution" in name or name.startswith("_scaled_dot_product")
        if biased or name in _NORMS | _PROPORTIONAL | _ADDITIVE or torch.Tag.pointwise in call.func.tags:
            additive = biased or name in _ADDITIVE or (name in _NORMS and index == 0)
            return replace(self._make("elementwise"), additive=additive)
        return None

    def _contraction(self, call: _Call, index: int, layout: Layout) -> Use | None:
        labels = layout.label(call.held[index])
        if "convolution" in call.name:
            return self._convolution(call, labels)
        contracted, batch = _CONTRACTIONS[call.name][index]
        others = [j for j in call.layouts if j != index and j in _CONTRACTIONS[call.name]]
        partner = call.layouts[others[0]][0].parameter if others else ""
        return replace(self._make("contraction", union(labels, contracted), union(labels, batch)), partner=partner)

    def _convolution(self, call: _Call, labels: Labels) -> Use | None:
        kernel = call.held[1]
        transposed, groups = (bool(call.args[6]), int(call.args[8])) if call.name == "convolution" else (False, 1)
        if transposed and groups > 1 and groups != kernel.shape[0]:
            return None  # (in, out / groups, taps): which channels are summed depends on the groups
        summed = 1 if not transposed else 0 if groups == 1 else None
        taps = tuple(axis for axis in range(kernel.ndim) if axis > 1 or axis == summed)
        return self._make("contraction", union(labels, taps), union(labels, (0,) if groups > 1 else ()))

    def _make(self, kind: Any, contracted: Dims = frozenset(), batch: Dims = frozenset()) -> Use:
        return Use(kind, contracted, batch, len(self.ops) - 1, self.ops[-1].module)


_FORMS: tuple[Form, ...] = ("proportional", "shifted", "nonlinear")


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and mappings."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, Mapping):
            yield from tensors_in(value.values())


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flat(values: Any) -> list[Any]:
    """Arguments in order, lists opened, so that an operand's index is stable."""
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, list | tuple) else [value])
    return flat


def _moved(call: _Call, labels: Labels) -> Labels:
    """An operand's labels as its result has them."""
    if call.name == "stack":
        axis = int(call.args[1]) if len(call.args) > 1 else 0
        axis %= len(labels) + 1
        return (*labels[:axis], frozenset(), *labels[axis:])
    return broadcast(labels, call.results[0].ndim)


def _product(call: _Call, index: int) -> _Product:
    """What `mul` makes of the parameters in one operand and the activation in the other."""
    result = call.results[0]
    (other,) = (t for i, t in call.held.items() if i != index)
    wide = [axis for axis in range(-other.ndim, 0) if other.shape[axis] > 1]
    labels = {p.parameter: broadcast(p.label(call.held[index]), result.ndim) for p in call.layouts[index]}
    layouts = tuple(Layout.of(name, result, row) for name, row in labels.items())
    return _Product(layouts, {name: union(row, wide) for name, row in labels.items()})


def _gathers_first(call: _Call) -> bool:
    """Whether an op gathers along the first dimension alone."""
    if call.name == "index":
        return isinstance(call.args[1], list | tuple) and len(call.args[1]) == 1
    return call.name == "index_select" and call.args[1] == 0


def _reduced(args: tuple[Any, ...], tensor: Tensor) -> Sequence[int]:
    """The dimensions that sum or mean go over."""
    dims = args[1] if len(args) > 1 and args[1] is not None else range(tensor.ndim)
    return (dims,) if isinstance(dims, int) else tuple(dims) or tuple(range(tensor.ndim))


def _grouped_product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The product of rows with the matrix of their group; torch's own on fake tensors takes bfloat16 only."""
    rows, matrices = args[:2]
    if rows.ndim == 2 and matrices.ndim == 3:
        return rows.new_empty(rows.shape[0], matrices.shape[2])
    return func(*args, **kwargs)
