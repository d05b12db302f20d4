"""Reads the init law of every parameter by running the model's own constructor and watching its writes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mutransfer.planning.laws import FIXED, UNREADABLE, Law, constant, estimate, uniform
from mutransfer.planning.untouched import in_place, seed_all, untouched_rng

POOLED_REBUILDS = 8
"""How many models are built to measure a law that cannot be read (an orthogonal init, say)."""


def _erfinv(law: Law) -> Law:
    """erfinv of U(-u, u), as `trunc_normal_` draws: a normal of std 1/sqrt(2), cut at +-erfinv(u)."""
    u = law.std * math.sqrt(12) / 2
    if law.kind != "drawn" or abs(law.mean) > 1e-6 or not 0 < u <= 1 + 1e-6:
        return UNREADABLE
    if u > 1 - 1e-12:
        return Law("drawn", math.sqrt(0.5), 0.0)
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(u, dtype=torch.float64)))
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return Law("drawn", math.sqrt((1 - 2 * z * density / u) / 2), 0.0)


_RANDOM = {"normal", "normal_", "uniform", "uniform_", "rand", "randn", "rand_like", "randn_like", "bernoulli",
           "bernoulli_", "randint", "randperm", "exponential_", "log_normal_", "cauchy_", "geometric_", "random_",
           "multinomial", "poisson", "native_dropout"}  # fmt: skip
_SAME = {"clone", "detach", "alias", "_to_copy", "view", "_unsafe_view", "reshape", "t", "transpose", "permute",
         "contiguous", "lift_fresh", "clamp", "clamp_", "unsqueeze", "squeeze", "expand"}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Keeps, per storage, the law of its last write as a whole."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._laws: dict[int, Law] = {}
        self._alive: list[Any] = []  # storages are told apart by address: none may be freed and its address reused

    def law(self, tensor: Tensor) -> Law:
        return self._laws.get(_address(tensor), UNREADABLE)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        before = [self.law(a) for a in args if isinstance(a, Tensor)]
        fresh = args and isinstance(args[0], Tensor) and _address(args[0]) not in self._laws
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        in_place = name.endswith("_") and not name.endswith("__")
        target: Tensor = args[0] if in_place else out
        aliases = not in_place and any(isinstance(a, Tensor) and _address(a) == _address(out) for a in args)
        if not aliases:
            self._write(target, _law_of(name, args, kwargs, before), fresh=bool(fresh or not in_place))
        return out

    def _write(self, target: Tensor, law: Law, *, fresh: bool) -> None:
        address = _address(target)
        whole = target.numel() * target.element_size() >= target.untyped_storage().nbytes()
        if not whole and not fresh:
            row = target.ndim <= 1 or target.shape[0] == 1
            if law == self._laws[address] or (law == constant(0.0) and row):
                return  # a padding row set to zero, or one slice of several that are drawn alike
            law = UNREADABLE if "drawn" in (law.kind, self._laws[address].kind) else FIXED
        self._alive.append(target.untyped_storage())
        self._laws[address] = law


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _law_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], before: list[Law]) -> Law:
    """The law of an op's result, from the laws of its tensor operands."""
    numbers = [a for a in args if isinstance(a, int | float) and not isinstance(a, bool)]
    base = name.rstrip("_")
    if base == "normal" and (name == "normal_" or not before):
        mean, std = [*numbers, *(kwargs.get("mean", 0.0), kwargs.get("std", 1.0))[len(numbers) :]][:2]
        return Law("drawn", float(std), float(mean)) if std else constant(float(mean))
    if base == "uniform":
        low, high = [*numbers, *(kwargs.get("from", 0.0), kwargs.get("to", 1.0))[len(numbers) :]][:2]
        return uniform(float(low), float(high)) if high > low else constant(float(low))
    if base in ("randn", "randn_like"):
        return Law("drawn", 1.0, 0.0)
    if base in ("rand", "rand_like"):
        return uniform(0.0, 1.0)
    if base in ("zeros", "zero", "zeros_like", "new_zeros"):
        return constant(0.0)
    if base in ("ones", "ones_like", "new_ones"):
        return constant(1.0)
    if base == "fill":
        return constant(float(numbers[0])) if numbers else before[1]
    if base in ("full", "full_like", "new_full"):
        return constant(float(numbers[-1])) if numbers else FIXED
    return _law_after(name, numbers, before)


def _law_after(name: str, numbers: list[float], before: list[Law]) -> Law:
    """The law of an op that reads tensors: scalings and copies are followed, the rest is fixed or unreadable."""
    base = name.rstrip("_")
    if name in _RANDOM:
        return UNREADABLE
    if base == "copy" and len(before) > 1:
        return before[1]
    if base == "erfinv":
        return _erfinv(before[0])
    if name in _SAME and before:
        return before[0]
    if base == "neg":
        return before[0].scaled(-1)
    if len(before) == 1 and len(numbers) == 1:
        if base == "mul":
            return before[0].scaled(numbers[0])
        if base == "div" and numbers[0]:
            return before[0].scaled(1 / numbers[0])
        if base in ("add", "sub"):
            return before[0].shifted(numbers[0] if base == "add" else -numbers[0])
    return FIXED if all(law.kind == "constant" for law in before) else UNREADABLE


@contextmanager
def _one_pass_trunc_normal() -> Iterator[None]:
    """torch's own truncated normal redraws until all values are inside, which needs values: here it is drawn by the
    inverse of its distribution, which the recorder follows."""

    def draw(
        tensor: Tensor, mean: float, std: float, a: float, b: float, generator: torch.Generator | None = None
    ) -> Tensor:
        low, high = (math.erf((bound - mean) / (std * math.sqrt(2))) for bound in (a, b))
        with torch.no_grad():
            return tensor.uniform_(low, high).erfinv_().mul_(std * math.sqrt(2)).add_(mean)

    own = torch.nn.init._no_grad_trunc_normal_
    torch.nn.init._no_grad_trunc_normal_ = draw
    try:
        yield
    finally:
        torch.nn.init._no_grad_trunc_normal_ = own


def read_laws(build: Callable[[], nn.Module]) -> dict[str, Law]:
    """The init law of every parameter of `build()`, by name, aliases of tied parameters included.

    The constructor runs on fake tensors, which cost no memory; one that needs real values runs for real. Never on
    meta, where libraries skip their own init (transformers does). A law that cannot be read is measured.
    """
    with untouched_rng():
        try:
            fakes = FakeTensorMode(allow_non_fake_inputs=True)
            with in_place(), _one_pass_trunc_normal(), fakes, Recorder() as recorder:
                laws = _collect(build(), recorder)
        except Exception:  # a constructor that reads values (`.item()`, numpy) raises one of many classes here
            with Recorder() as recorder:
                laws = _collect(build(), recorder)
        if any(law.kind == "random" for law in laws.values()):
            laws |= _measured(build, [name for name, law in laws.items() if law.kind == "random"])
    return laws


def read_defaults(model: nn.Module) -> dict[str, Law]:
    """The laws that the layers' own `reset_parameters` would fill the model's parameters by, where they have one.

    Runs them on fake copies, children before their parents, as constructors do; the model is untouched.
    """
    with untouched_rng(), FakeTensorMode(allow_non_fake_inputs=True), Recorder() as recorder:
        tensors = [*model.parameters(), *model.buffers()]
        memo: dict[int, Any] = {id(t): _blank(t) for t in tensors}
        copied = copy.deepcopy(model, memo)
        for module in reversed(list(copied.modules())):
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
        laws = _collect(copied, recorder)
    return {name: law for name, law in laws.items() if law.kind != "random"}


def _blank(tensor: Tensor) -> Tensor:
    blank = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(blank, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank


def _collect(model: nn.Module, recorder: Recorder) -> dict[str, Law]:
    return {name: recorder.law(p) for name, p in model.named_parameters(remove_duplicate=False)}


def _measured(build: Callable[[], nn.Module], names: list[str]) -> dict[str, Law]:
    """Laws by the values of rebuilt models, always the same ones: a plan is a function of what it is given."""
    seed_all(0)
    pooled: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in range(POOLED_REBUILDS):
        parameters = dict(build().named_parameters(remove_duplicate=False))
        for name in names:
            pooled[name].append(parameters[name].detach().double().flatten())
    return {name: estimate(torch.cat(values)) for name, values in pooled.items()}
