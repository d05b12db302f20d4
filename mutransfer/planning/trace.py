"""What each parameter does, seen in one forward pass on fake tensors: no module registry, no names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.func import functional_call

from mutransfer.errors import RoleError
from mutransfer.planning.calls import tensors_in
from mutransfer.planning.ops import Trace
from mutransfer.planning.tracer import Tracer
from mutransfer.planning.untouched import in_place, seed_all, untouched_rng

MakeTracer = Callable[[Mapping[str, Tensor], Any], Tracer]


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


def trace(
    model: nn.Module,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    build: Callable[[], nn.Module] | None = None,
    tracer: MakeTracer = Tracer,
) -> Trace:
    """Runs the model once on copies of its parameters; the model, its buffers and the random state are untouched.

    The copies are fake and cost no memory. A forward pass that asks for values (`.item()`, a loop over the experts that
    were chosen) runs on real ones where the model is small. One that does not run in training mode runs in evaluation
    mode, and so does one that reaches more parameters there (layers are dropped at random in training).

    Args:
        model: on any device, meta included.
        inputs: positional or keyword arguments of its forward.
        build: makes the same model with values, for one on meta.
        tracer: makes what watches a run, from the parameters by name and the inputs; the one whose run is returned has
            it as its `traced`.

    Raises:
        RoleError: the forward pass fails on these inputs.
    """
    args, kwargs = (tuple(inputs), {}) if not isinstance(inputs, Mapping) else ((), dict(inputs))
    traces: list[Trace] = []
    failure: Exception | None = None
    for evaluate in (False, True) if model.training else (False,):
        with _repeatable(), unfused(), _unlogged(), torch.enable_grad(), evaluating(model, evaluate):
            try:
                traces.append(_attempt(model, args, kwargs, build, tracer))
            except Exception as error:  # whatever a foreign forward pass raises
                failure = failure or error
        if traces and all(traces[-1].uses.values()):
            break
    if traces:
        return max(traces, key=lambda found: sum(map(bool, found.uses.values())))
    raise RoleError(
        f"The model's forward pass failed on the example inputs ({in_a_line(failure)}). "
        "Pass example_inputs= that model(*example_inputs) accepts."
    ) from failure


def _attempt(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    build: Callable[[], nn.Module] | None,
    make: MakeTracer,
) -> Trace:
    """On fakes, or where these do not tell what is asked of them, on values."""
    try:
        return _on_fakes(model, args, kwargs, make)
    except Exception as error:
        asks = isinstance(error, _ASKS_FOR_VALUES) or any(words in str(error) for words in _WITHOUT_VALUES)
        valued = _with_values(model, build) if asks else None
        if valued is None:
            raise
    return _on_values(valued, args, kwargs, make)


@contextmanager
def _repeatable() -> Iterator[None]:
    """The same draws in every trace: layers that are dropped at random are the same ones."""
    with untouched_rng():
        seed_all(0)
        yield


LARGEST_REAL = 2**29
"""Parameters of the largest model that is run on real values."""
_ASKS_FOR_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)
_WITHOUT_VALUES = ("data is not allocated yet", "Cannot access data pointer")
"""What torch says where an op of its own, as an assignment by indices is, looks for the values of a fake."""


@contextmanager
def evaluating(model: nn.Module, evaluate: bool) -> Iterator[None]:
    """The model in evaluation mode, if that is asked for; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()} if evaluate else {}
    try:
        if evaluate:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _with_values(model: nn.Module, build: Callable[[], nn.Module] | None) -> nn.Module | None:
    """The model, or the one that is built, where it is small enough to be run for real."""
    if sum(p.numel() for p in model.parameters()) > LARGEST_REAL:
        return None
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        return build().train(model.training) if build else None
    return model


def _on_values(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], make: MakeTracer) -> Trace:
    state: dict[str, Tensor] = {
        name: nn.Parameter(p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()
    }
    state |= {name: b.detach().clone() for name, b in model.named_buffers()}
    return _run(model, state, args, kwargs, nullcontext(), make)


@contextmanager
def _unlogged() -> Iterator[None]:
    """torch logs every op that fails on fake tensors, with its stack: here a failure is an answer."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _on_fakes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], make: MakeTracer) -> Trace:
    numbers = {name: b.item() for name, b in model.named_buffers() if b.numel() == 1 and not b.is_meta}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        state = {name: _fake_parameter(p) for name, p in model.named_parameters()}
        state |= {name: _fake_buffer(b, numbers.get(name)) for name, b in model.named_buffers()}
        args, kwargs = _fake_inputs(args), _fake_inputs(kwargs)
    return _run(model, state, args, kwargs, mode, make)


def _run(
    model: nn.Module,
    state: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mode: Any,
    make: MakeTracer,
) -> Trace:
    tracer = make({name: state[name] for name, _ in model.named_parameters()}, (args, kwargs))
    given = frozenset(tracer.number(t) for t in tensors_in((args, kwargs)))
    with _module_path(model, tracer.path), _as_it_was(model), in_place(), mode, tracer:
        out = functional_call(model, state, args, kwargs, tie_weights=True)
    results = frozenset(tracer.number(t) for t in tensors_in((out,)))
    tracer.traced = Trace(tracer.uses(), tuple(tracer.ops), results, frozenset(tracer.normalized), given)
    return tracer.traced


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Whatever a forward pass leaves on the modules (a cache, a buffer moved to a device, the list in which recurrent
    layers hold their weights) is undone: it would be tensors without values."""
    attributes = [vars(module) for module in model.modules()]
    inner = (value for own in attributes for value in own.values() if isinstance(value, dict | list))
    kept = [(holder, holder.copy()) for holder in (*attributes, *inner)]
    try:
        yield
    finally:
        for holder, before in kept:
            holder.clear()
            holder.update(before) if isinstance(holder, dict) else holder.extend(before)


def _fake_parameter(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(fake, requires_grad=tensor.requires_grad)


def _fake_buffer(tensor: Tensor, number: bool | int | float | None) -> Tensor:
    """A single number keeps its value: it may be a softmax scale."""
    if number is not None:
        return torch.tensor(number, dtype=tensor.dtype).reshape(tensor.shape)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _fake_inputs(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype)
    if isinstance(value, Mapping):
        return {k: _fake_inputs(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_fake_inputs(v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_fake_inputs(v) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{k: _fake_inputs(v) for k, v in vars(value).items()})
    return value


def in_a_line(error: BaseException | None) -> str:
    """What an error is and how its message begins."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else 'no message'}"
