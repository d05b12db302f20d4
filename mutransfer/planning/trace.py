"""What each parameter does, seen in one forward pass on fake tensors: no module registry, no names.

A parameter is followed through views and copies by its storage: the strides of a view say which of the parameter's
own dimensions each dimension of the view stands for: fused, transposed, sliced, tied weights need no special case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from mutransfer.errors import RoleError
from mutransfer.planning.laws import untouched_rng

Dims = frozenset[int]
UseKind = Literal["contraction", "lookup", "elementwise", "opaque"]


@dataclass(frozen=True)
class Use:
    """One op that consumes a parameter.

    Attributes:
        kind: "contraction" (a sum over some of its dimensions), "lookup" (rows are gathered), "elementwise"
            (a gain or a bias), or "opaque" (an op that the trace does not know).
        contracted: the parameter's own dimensions that are summed over.
        batch: its dimensions that run along (a stack of experts).
        op: index into `Trace.ops`.
        module: path of the module that ran the op.
    """

    kind: UseKind
    contracted: Dims = frozenset()
    batch: Dims = frozenset()
    op: int = -1
    module: str = ""


@dataclass(frozen=True)
class Op:
    """One dispatched op: its name, the values it read and wrote (numbered), its numbers, and which operands are
    parameters (`shifted` names those that enter with a number added, as a gain that is 1 + w)."""

    name: str
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scalars: tuple[float, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[int, str] = field(default_factory=dict)
    shifted: frozenset[str] = frozenset()
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Trace:
    """One forward pass: every use of every parameter in execution order, the graph of ops, the values that leave the
    model, and the parameters that are normalized before they are used (weight_norm)."""

    uses: Mapping[str, tuple[Use, ...]]
    ops: tuple[Op, ...]
    results: frozenset[int]
    normalized: frozenset[str] = frozenset()

    def producer(self, value: int) -> Op | None:
        return self._producers.get(value)

    def consumers(self, value: int) -> list[Op]:
        return self._consumers.get(value, [])

    @cached_property
    def _producers(self) -> dict[int, Op]:
        return {value: op for op in self.ops for value in op.outputs}

    @cached_property
    def _consumers(self) -> dict[int, list[Op]]:
        consumers: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                consumers.setdefault(value, []).append(op)
        return consumers


@dataclass(frozen=True)
class _Layout:
    """How a storage that holds a parameter's entries is laid out: (stride, size, the parameter's dimensions).

    `shifted` says that a number was added to the entries on the way, as in a gain that enters as 1 + w.
    """

    parameter: str
    axes: tuple[tuple[int, int, Dims], ...]
    shifted: bool = False

    def label(self, tensor: Tensor) -> tuple[Dims, ...]:
        return tuple(self._covered(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True))

    def _covered(self, stride: int, size: int) -> Dims:
        """The dimensions that a step of `stride`, taken `size` times, walks along."""
        if size <= 1 or stride == 0:
            return frozenset()
        spans = (dims for s, n, dims in self.axes if n > 1 and s < stride * size and stride < s * n)
        return frozenset().union(*spans)


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
_LOOKUPS = {"embedding": 0, "index_select": 0, "index": 0, "gather": 0, "_embedding_bag": 0}
_NORMS = {"native_layer_norm", "_fused_rms_norm", "native_batch_norm", "_native_batch_norm_legit",
          "native_group_norm", "cudnn_batch_norm", "batch_norm", "_batch_norm_with_update",
          "_native_batch_norm_legit_functional"}  # fmt: skip
_COPIES = {"clone", "_to_copy", "contiguous", "neg", "mul", "div", "add", "sub", "detach", "_unsafe_view",
           "_weight_norm_interface", "view_as", "reshape", "copy"}  # fmt: skip
VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
         "alias", "detach", "reshape", "clone", "_to_copy", "contiguous", "split", "split_with_sizes", "unbind",
         "as_strided", "native_dropout", "chunk", "index"}  # fmt: skip


class _Tracer(TorchDispatchMode):
    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: dict[str, list[Use]] = {name: [] for name in parameters}
        self.ops: list[Op] = []
        self.path: list[str] = []
        self.normalized: set[str] = set()
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # values and storages are told apart by address: none may be freed
        self._layouts = {
            int(p.untyped_storage()._cdata): _Layout(name, _axes(p, [frozenset({d}) for d in range(p.ndim)]))
            for name, p in reversed(list(parameters.items()))  # tied names: the first one stands for all
        }

    def number(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return self._numbers.setdefault(id(tensor), len(self._numbers))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace in ("aten", "prims"):
            self._record(func, args, kwargs or {}, out)
        elif any(self._layout(t) for t in _tensors(args)):
            self._record(func, args, kwargs or {}, out, opaque=True)
        return out

    def _record(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, *, opaque: bool = False
    ) -> None:
        name = func.overloadpacket.__name__
        held = {i: t for i, t in enumerate(_flat(args)) if isinstance(t, Tensor)}
        labelled = {i: self._layout(t) for i, t in held.items()}
        results = list(_tensors((out,)))
        self.ops.append(
            Op(
                name,
                self.path[-1] if self.path else "",
                tuple(self.number(t) for t in held.values()),
                tuple(self.number(t) for t in results),
                tuple(float(a) for a in _flat(args) if isinstance(a, int | float) and not isinstance(a, bool)),
                {k: v for k, v in kwargs.items() if isinstance(v, int | float | None)},
                {i: layout.parameter for i, layout in labelled.items() if layout},
                frozenset(layout.parameter for layout in labelled.values() if layout and layout.shifted),
                tuple(tuple(t.shape) for t in held.values()),
            )
        )
        if not results or not any(labelled.values()) or any(self._layout(r) for r in results):
            return  # no parameter takes part, or the result is a view of one
        if self._follow_copy(name, held, labelled, results):
            return
        for index, layout in labelled.items():
            if layout:
                use = self._use(func, name, index, held[index], layout, args, opaque=opaque)
                self.uses[layout.parameter].append(use)

    def _layout(self, tensor: Tensor) -> _Layout | None:
        return self._layouts.get(int(tensor.untyped_storage()._cdata))

    def _follow_copy(
        self, name: str, held: Mapping[int, Tensor], labelled: Mapping[int, _Layout | None], results: Sequence[Tensor]
    ) -> bool:
        """A copy of a parameter, or one times a number or another parameter of its shape, stands for it."""
        whole = [i for i, layout in labelled.items() if layout and results and held[i].shape == results[0].shape]
        others = [t for i, t in held.items() if i not in whole[:1]]
        scales = name.rstrip("_") in ("mul", "div")
        derived = all(self._layout(t) is not None or (scales and t.ndim == 0) for t in others)
        if name.rstrip("_") not in _COPIES or not whole or not derived:
            return False
        source = labelled[whole[0]]
        assert source is not None
        if name == "_weight_norm_interface":
            self.normalized.add(source.parameter)
        storage = results[0].untyped_storage()
        self._alive.append(storage)
        shifted = source.shifted or name.rstrip("_") in ("add", "sub")
        axes = _axes(results[0], source.label(held[whole[0]]))
        self._layouts[int(storage._cdata)] = _Layout(source.parameter, axes, shifted)
        for index, layout in labelled.items():
            if layout and index != whole[0]:
                self.uses[layout.parameter].append(self._make("elementwise"))
        return True

    def _make(self, kind: UseKind, contracted: Dims = frozenset(), batch: Dims = frozenset()) -> Use:
        return Use(kind, contracted, batch, len(self.ops) - 1, self.ops[-1].module)

    def _use(
        self, func: Any, name: str, index: int, tensor: Tensor, layout: _Layout, args: tuple[Any, ...], *, opaque: bool
    ) -> Use:
        labels = layout.label(tensor)
        if opaque:
            return self._make("opaque")
        if name in _CONTRACTIONS and index in _CONTRACTIONS[name]:
            contracted, batch = _CONTRACTIONS[name][index]
            return self._make("contraction", _union(labels, contracted), _union(labels, batch))
        if "convolution" in name and index == 1:
            transposed = bool(args[6]) if name == "convolution" else False
            if transposed and args[8] > 1 and args[8] != tensor.shape[0]:
                return self._make("opaque")  # (in, out / groups, taps): which channels are summed depends on the groups
            summed = 1 if not transposed else 0 if args[8] == 1 else None
            dims = tuple(axis for axis in range(tensor.ndim) if axis > 1 or axis == summed)
            return self._make("contraction", _union(labels, dims))
        if name in _LOOKUPS and index == _LOOKUPS[name]:
            return self._make("lookup")
        known = name in _CONTRACTIONS or "convolution" in name or name in _NORMS or name.rstrip("_") in _COPIES
        if known or torch.Tag.pointwise in func.tags or name in ("cat", "stack", "where"):
            return self._make("elementwise")
        return self._make("opaque")


def _union(labels: Sequence[Dims], dims: Sequence[int]) -> Dims:
    return frozenset().union(*(labels[d] for d in dims))


def _axes(tensor: Tensor, labels: Sequence[Dims]) -> tuple[tuple[int, int, Dims], ...]:
    return tuple(zip(tensor.stride(), tensor.shape, labels, strict=True))


def _flat(values: Any) -> list[Any]:
    """Arguments in order, lists opened, so that an operand's index is stable."""
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, list | tuple) else [value])
    return flat


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())


@contextmanager
def _module_path(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keeps the name of the running module on top of `path`."""
    handles = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: path.append(name)

    def leave(*_: Any) -> None:
        path.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unfused() -> Iterator[None]:
    """Fused kernels (nn.MultiheadAttention's fast path, oneDNN's LSTM) would hide the contractions inside them."""
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(mkldnn)


def trace(model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> Trace:
    """Runs the model once on fake copies of its parameters; the model, its buffers and the random state are untouched.

    Args:
        model: on any device, meta included.
        inputs: positional or keyword arguments of its forward.

    Raises:
        RoleError: the forward pass fails on these inputs.
    """
    args, kwargs = (tuple(inputs), {}) if not isinstance(inputs, Mapping) else ((), dict(inputs))
    try:
        with untouched_rng(), unfused(), torch.enable_grad():
            return _run(model, args, kwargs)
    except RoleError:
        raise
    except Exception as error:
        raise RoleError(
            f"The model's forward pass failed on the example inputs ({type(error).__name__}: {_first_line(error)}). "
            "Pass example_inputs= that model(*example_inputs) accepts."
        ) from error


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        state = {
            name: _fake(t, isinstance(t, nn.Parameter))
            for name, t in [*model.named_parameters(), *model.named_buffers()]
        }
        args, kwargs = _fake_inputs(args), _fake_inputs(kwargs)
    names = {name: state[name] for name, _ in model.named_parameters()}
    tracer = _Tracer(names)
    with _module_path(model, tracer.path), mode, tracer:
        out = functional_call(model, state, args, kwargs, tie_weights=True)
    results = frozenset(tracer.number(t) for t in _tensors((_opened(out),)))
    return Trace(
        {name: tuple(uses) for name, uses in tracer.uses.items()},
        tuple(tracer.ops),
        results,
        frozenset(tracer.normalized),
    )


def _fake(tensor: Tensor, is_parameter: bool) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake


def _fake_inputs(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype)
    if isinstance(value, Mapping):
        return {k: _fake_inputs(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_fake_inputs(v) for v in value)
    return value


def _opened(out: Any) -> Any:
    return list(out.values()) if isinstance(out, Mapping) else out


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no message"
