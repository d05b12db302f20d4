"""The proof that a branch's terminal can hold its multiplier: numerically, in float64, for outputs and gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from mutransfer.errors import RoleError
from mutransfer.planning.branches import Branch, find_branches
from mutransfer.planning.calls import tensors_in
from mutransfer.planning.replay import Recording
from mutransfer.planning.untouched import untouched_rng

TOLERANCE = 1e-9
"""Relative; float64 leaves about 1e-14."""
_INVISIBLE = 1e-9
"""A branch that moves the loss by less than this, relative to what parameters do, proves nothing."""
_CONSTANT = 1e-3
"""A parameter whose entries differ by less is moved, or what it multiplies could not be seen."""


@dataclass(frozen=True)
class Verdict:
    """Whether a multiplier in a branch's terminal does what one at the add would.

    Attributes:
        error: the largest relative difference of an output or a gradient.
        why: what is wrong, in words; empty where it is verified.
    """

    branch: Branch
    verified: bool
    error: float
    why: str = ""


def verify(
    model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any], branches: Sequence[Branch]
) -> tuple[Verdict, ...]:
    """Compares, branch by branch, its terminal times c with c at the add: no dropout, no parameter constant.

    The model is copied, so it should be small; neither it nor the random state is changed. Branches that share a
    terminal are multiplied together, since one tensor can hold one factor.

    Raises:
        RoleError: the model has no values, does not run backwards, or has no such branches when it is evaluated.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise RoleError("A model on meta has no values to verify its residual branches with. Give a small real one.")
    with _refusing(model), untouched_rng():
        errors = _all_errors(model, inputs, [branch for branch in branches if branch.terminals])
    return tuple(_verdict(branch, errors.get(branch.number)) for branch in branches)


@contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RoleError(
            f"The residual branches of {type(model).__name__} cannot be verified, since its forward and backward pass "
            f"in float64 fail ({str(error).splitlines()[0][:160]}). Use a table without depth rules, or another base."
        ) from error


def verify_outputs(
    model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any], modules: Sequence[tuple[Branch, str]]
) -> tuple[Verdict, ...]:
    """Compares c on all that a module returns with c at the add, for branches that no parameter can be multiplied in.

    Args:
        modules: a branch, and the path of the module that may return it.

    Raises:
        RoleError: as `verify`.
    """
    with _refusing(model), untouched_rng():
        errors: dict[int, float] = {}
        for everywhere in (False, True):
            subject = _Subject(model, inputs, everywhere=everywhere)
            left = [(branch, path) for branch, path in modules if branch.number not in errors]
            together = subject.compare_outputs(left)
            alone = () if max(together.values(), default=0.0) <= TOLERANCE else left
            errors |= together
            for pair in alone:
                errors |= subject.compare_outputs([pair])
    return tuple(_verdict(replace(branch, terminals=(path,)), errors.get(branch.number)) for branch, path in modules)


def _all_errors(
    model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any], branches: Sequence[Branch]
) -> dict[int, float]:
    """Branches that the outputs do not move with are tried once more with weights that pass a signal on, and seen in
    every stream and every value that nothing reads."""
    groups = _sharing(branches)
    errors = _errors(_Subject(model, inputs), groups)
    unseen = [group for group in groups if any(branch.number not in errors for branch in group)]
    return errors | (_errors(_Subject(model, inputs, everywhere=True), unseen) if unseen else {})


def _errors(subject: _Subject, groups: Sequence[Sequence[Branch]]) -> dict[int, float]:
    """All at once, which settles it where all are right; else each by itself."""
    branches = [branch for group in groups for branch in group]
    errors = subject.compare(groups)
    if len(errors) == len(branches) and max(errors.values(), default=0.0) <= TOLERANCE:
        return errors
    return {number: error for group in groups for number, error in subject.compare([group]).items()}


def _verdict(branch: Branch, error: float | None) -> Verdict:
    if branch.ends_in_nonlinearity:
        why = f"it ends in {branch.blocked_by!r}, which a factor does not pass through"
        return Verdict(branch, False, math.inf, why)
    if error is None:
        return Verdict(branch, False, math.inf, "nothing that the model computes moves with it")
    why = "" if error <= TOLERANCE else "its terminal times a factor is not the branch times that factor"
    return Verdict(branch, error <= TOLERANCE, error, why)


def _sharing(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Branches that have a terminal in common, directly or by way of others, in one group."""
    groups: list[list[Branch]] = []
    for branch in branches:
        joined = [g for g in groups if any(set(branch.terminals) & set(other.terminals) for other in g)]
        groups = [g for g in groups if g not in joined]
        groups.append([*(other for g in joined for other in g), branch])
    return groups


class _Subject:
    """A copy of the model to try factors on: float64, evaluated but for batch norms (an evaluated one passes a factor
    on that a trained one does not), every parameter that is constant (zero, say) moved away from it.

    Args:
        everywhere: looks at the streams and at all that the forward pass ends in, the outputs and what they leave
            out, also where it runs without gradients, with weights drawn too small to pass a signal on made as large
            as it takes.
    """

    def __init__(
        self, model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any], *, everywhere: bool = False
    ) -> None:
        self.everywhere = everywhere
        self.model = copy.deepcopy(model).double().eval()
        for module in self.model.modules():
            module.training = isinstance(module, _BatchNorm)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.numel() and parameter.max() - parameter.min() < _CONSTANT:
                    parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator), alpha=0.1)
                if everywhere:
                    parameter.mul_(_to_pass_on(parameter))
        self.values = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        mapping = isinstance(inputs, Mapping)
        self.args = () if mapping else tuple(_double(value) for value in inputs)
        self.kwargs = {key: _double(value) for key, value in inputs.items()} if isinstance(inputs, Mapping) else {}

    def compare(self, groups: Sequence[Sequence[Branch]]) -> dict[int, float]:
        """Branch -> the largest relative difference where all these branches have a factor, each group its own.

        Those that nothing moves with are left out.
        """
        factors = {b.number: _factor(i) for i, group in enumerate(groups) for b in group}
        folded = self._folded([b for group in groups for b in group], factors)
        recording = self._record(folded)
        explicit, multipliers = self._explicit(recording, factors)
        replayed = self._gradients(recording, folded, {})
        error = _difference(replayed, explicit, self._chain(groups, factors))
        same = all(map(torch.allclose, replayed.outputs, self._seen(recording)))
        return self._visible(multipliers, explicit, error if same else math.inf)

    def compare_outputs(self, modules: Sequence[tuple[Branch, str]]) -> dict[int, float]:
        """Branch -> the same where what modules return has the factors."""
        by_path = {path: _factor(i) for i, path in enumerate(dict.fromkeys(path for _, path in modules))}
        explicit, multipliers = self._explicit(
            self._record(self.values), {branch.number: by_path[path] for branch, path in modules}
        )
        try:
            scaled = self._record(self.values, by_path)
        except _NoTensorError:
            return dict.fromkeys(multipliers, math.inf)
        run = self._gradients(scaled, self.values, {})
        alike = [a.shape for a in run.outputs] == [b.shape for b in explicit.outputs]
        return self._visible(multipliers, explicit, _difference(run, explicit, {}) if alike else math.inf)

    def _explicit(self, recording: Recording, factors: Mapping[int, float]) -> tuple[_Run, dict[int, Tensor]]:
        """The run with factors where branches are added, and those factors."""
        own = {branch.number: branch for branch in find_branches(recording.trace)}
        missing = [number for number in factors if number not in own]
        if missing:
            raise RoleError(
                f"The model has {len(own)} residual branches when it is evaluated, and more when it is traced: branch "
                f"{missing[0]} cannot be verified. Give a model whose forward pass does not depend on its mode."
            )
        multipliers = {n: torch.tensor(c, dtype=torch.float64, requires_grad=True) for n, c in factors.items()}
        at = {(own[n].op, own[n].operand): c for n, c in multipliers.items()}
        return self._gradients(recording, self.values, at), multipliers

    def _gradients(
        self, recording: Recording, values: Mapping[str, Tensor], factors: Mapping[tuple[int, int], Tensor]
    ) -> _Run:
        """What is seen, and the gradients of a fixed random projection of it."""
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        torch.manual_seed(0)
        outputs = recording.replay(leaves, factors, self._seen(recording), everywhere=self.everywhere)
        torch.manual_seed(1)
        terms = [(out * torch.randn_like(out)).sum() for out in outputs if out.requires_grad]
        if terms:
            torch.stack(terms).sum().backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}
        return _Run([out.detach() for out in outputs], gradients)

    def _seen(self, recording: Recording) -> Sequence[Tensor]:
        if not self.everywhere:
            return recording.outputs
        streams = {branch.op for branch in find_branches(recording.trace)}
        return [*recording.ends, *recording.results(streams)]

    def _visible(self, multipliers: Mapping[int, Tensor], run: _Run, error: float) -> dict[int, float]:
        return {n: error for n, c in multipliers.items() if self._moves(c, run)}

    def _folded(self, branches: Sequence[Branch], factors: Mapping[int, float]) -> dict[str, Tensor]:
        values = dict(self.values)
        for branch in branches:
            for name in branch.terminals:
                c, value = factors[branch.number], self.values[name]
                values[name] = c * (1 + value) - 1 if name in branch.offset else c * value
        return values

    def _record(self, values: Mapping[str, Tensor], outputs: Mapping[str, float] = MappingProxyType({})) -> Recording:
        """`outputs`: module -> what all that it returns is multiplied by."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values[name])
        torch.manual_seed(0)
        model = copy.deepcopy(self.model)
        for path, factor in outputs.items():
            model.get_submodule(path).register_forward_hook(_times(factor))
        with sdpa_kernel(SDPBackend.MATH) if self.everywhere else nullcontext():  # one that is not fused has gradients
            return Recording(model, self.args, self.kwargs)

    def _chain(self, groups: Sequence[Sequence[Branch]], factors: Mapping[int, float]) -> dict[str, float]:
        """What a folded parameter's gradient is multiplied by to be the explicit one's."""
        return {name: factors[b.number] for group in groups for b in group for name in b.terminals}

    @staticmethod
    def _moves(multiplier: Tensor, run: _Run) -> bool:
        return multiplier.grad is not None and abs(multiplier.grad.item()) > _INVISIBLE * run.largest


@dataclass(frozen=True)
class _Run:
    outputs: Sequence[Tensor]
    gradients: Mapping[str, Tensor]

    @property
    def largest(self) -> float:
        return max((g.abs().max().item() for g in self.gradients.values() if g.numel()), default=0.0)


class _NoTensorError(Exception):
    """A module returns more than a tensor."""


def _times(factor: float) -> Callable[[nn.Module, Any, Any], Tensor]:
    def multiply(_module: nn.Module, _args: Any, out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise _NoTensorError
        return out * factor

    return multiply


def _factor(number: int) -> float:
    """Another one for each of a few. A power of two passes through products without rounding, so that a choice between
    equals (the largest of several scores) falls alike."""
    return (0.5, 2.0, 0.25, 4.0, 0.125, 8.0)[number % 6]


def _to_pass_on(parameter: Tensor) -> float:
    """A factor that makes a matrix's entries at least 1 / sqrt(fan-in) large."""
    if parameter.ndim < 2 or not parameter.numel():
        return 1.0
    size = parameter.square().mean().sqrt().item()
    return max(1.0, parameter[0].numel() ** -0.5 / size) if size else 1.0


def _difference(folded: _Run, explicit: _Run, chain: Mapping[str, float]) -> float:
    """Relative to the largest entry of each tensor; a gradient that is zero by symmetry, to the largest of all."""
    errors = [_relative(a, b, 0.0) for a, b in zip(folded.outputs, explicit.outputs, strict=True)]
    floor = 1e-5 * explicit.largest
    errors += [_relative(g * chain.get(n, 1.0), explicit.gradients[n], floor) for n, g in folded.gradients.items()]
    return max(errors, default=math.inf)


def _relative(found: Tensor, expected: Tensor, floor: float) -> float:
    """Entries that are equal do not count, infinite ones (masked scores) among them."""
    differ = found != expected
    if not differ.any():
        return 0.0
    error = (found - expected)[differ].abs().max().item()
    scale = max(expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0, floor)
    return error / scale if math.isfinite(error) and scale else math.inf


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if any(True for _ in tensors_in((value,))):
        nested = {k: _double(v) for k, v in value.items()} if isinstance(value, Mapping) else map(_double, value)
        return nested if isinstance(nested, dict) else type(value)(nested)
    return value
