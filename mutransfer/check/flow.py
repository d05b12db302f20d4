"""What becomes of a result further on: the numbers it is multiplied by, softmax scales, and the residual stream."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mutransfer.check.operands import Call

_COPIES = frozenset({"clone", "_to_copy", "neg", "_unsafe_view", "contiguous"})
_PRODUCTS = frozenset({"bmm", "baddbmm"})
_KEEPS = frozenset({"add", "sub", "cat", "masked_fill", "where", "index"})
_SDPA = "_scaled_dot_product"
_MASKED = -1e9
"""Logits below it are a mask, not a product."""


@dataclass(frozen=True)
class Flow:
    """What is known of one activation.

    Attributes:
        uses: (number of a parameter's use, what its contribution was multiplied by since) as long as nothing but
            numbers, biases and rotations meets it.
        numel: its size when it was made.
        is_part: of a larger one (q of a fused qkv): a number that multiplies it does not multiply the contributions.
        gain: product of the numbers it was multiplied by since it was made.
        contracted: for a product of two activations, the size that was summed over (else 0).
        unit: the vectors of both had length 1 before numbers multiplied them.
        sources: for such a product, the uses that its two factors came from.
        ancestors: bit set of the activations it was made from.
    """

    uses: tuple[tuple[int, float], ...] = ()
    numel: int = 0
    is_part: bool = False
    gain: float = 1.0
    contracted: int = 0
    unit: bool = False
    sources: tuple[int, ...] = ()
    ancestors: int = 0

    def times(self, number: float) -> Flow:
        uses = self.uses if self.is_part else tuple((use, gain * number) for use, gain in self.uses)
        return replace(self, gain=self.gain * number, uses=uses)


@dataclass(frozen=True)
class SoftmaxScale:
    """How one attention scales its logits.

    Attributes:
        head_dim: the size that q and k are contracted over.
        value: product of all numbers on the way from q and k to the softmax.
        sources: numbers of the parameter uses that made q and k.
        unit: q and k are vectors of length 1, so their product does not grow with head_dim.
    """

    head_dim: int
    value: float
    sources: tuple[int, ...]
    unit: bool = False


@dataclass(frozen=True)
class Sum:
    """One addition of a branch to the residual stream.

    Attributes:
        stream, branch: RMS of the two.
        after: number of the last parameter's use in front of it; -1 where there is none.
    """

    stream: float
    branch: float
    after: int


@dataclass
class Flows:
    """Follows every activation of one forward pass.

    Attributes:
        settle: called with (use, gain) once a contribution enters something else than a number's product. An
            attention product takes q and k without the softmax scale that may have been multiplied into them.
        is_constant: whether a tensor is independent of the batch.
        scales: attention site -> how its logits are scaled.
        logits, stream: site -> the attention logits, the residual stream after an addition.
        sums: those additions, in order.
    """

    settle: Callable[[int, float], None]
    is_constant: Callable[[Tensor], bool]
    scales: dict[str, SoftmaxScale] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    stream: dict[str, Tensor] = field(default_factory=dict)
    sums: list[Sum] = field(default_factory=list)
    _flows: dict[int, Flow] = field(default_factory=dict)
    _order: dict[int, int] = field(default_factory=dict)
    _last_use: int = -1

    def of(self, tensor: Tensor) -> Flow:
        return self._flows.get(storage(tensor), Flow(numel=tensor.numel()))

    def follow(self, call: Call, out: Tensor, uses: Sequence[int], module: str) -> None:
        """Notes what `out` is, given what the call's activations were; `uses` are those that this call itself makes."""
        tensors = [t for _, t in call.operands()]
        activations = [t for t in tensors if not self.is_constant(t)]
        flows = [self._part(t) for t in activations]
        self._read_attention(call, flows, module)
        self._last_use = max(uses, default=self._last_use)
        self._read_stream(call, activations, out, module)
        flow = self._made_by(call, activations, tensors, flows, [(use, 1.0) for use in uses])
        ancestors = self._ancestry(activations, flows)
        self._flows[storage(out)] = replace(flow, ancestors=ancestors, numel=out.numel())

    def _part(self, tensor: Tensor) -> Flow:
        flow = self.of(tensor)
        return replace(flow, is_part=flow.is_part or tensor.numel() != flow.numel)

    def _made_by(
        self,
        call: Call,
        activations: list[Tensor],
        tensors: list[Tensor],
        flows: list[Flow],
        uses: list[tuple[int, float]],
    ) -> Flow:
        number = self._number(call, tensors)
        if number is not None and len(flows) == 1:
            return flows[0].times(number)
        if call.name in ("add", "sub") and uses and len(flows) == 1:  # a bias: the sum is still being made
            return replace(flows[0], uses=(*flows[0].uses, *uses))
        is_product = call.name in _PRODUCTS and len(flows) == 2
        kept = self._rearranged(call, flows, tuple(uses))
        if kept is not None:
            return kept
        self._settle(flows, scaled=not (is_product or call.name.startswith(_SDPA)))
        if is_product:
            gain = flows[0].gain * flows[1].gain * float(call.arguments.get("alpha", 1))
            unit = _is_unit(activations[0], -1, flows[0]) and _is_unit(activations[1], -2, flows[1])
            return Flow(gain=gain, contracted=int(activations[-1].shape[-2]), unit=unit, sources=sources(*flows))
        return Flow(tuple(uses))

    def _settle(self, flows: list[Flow], *, scaled: bool = True) -> None:
        for flow in flows:
            for use, gain in flow.uses:
                self.settle(use, gain if scaled else 1.0)

    def finish(self) -> None:
        """The results that nothing more happened to, the model's output among them: last first, as made of others."""
        self._settle(list(self._flows.values())[::-1])

    def _number(self, call: Call, tensors: list[Tensor]) -> float | None:
        """The number that this call multiplies by; None where it does something else."""
        if call.name in _COPIES:
            return 1.0
        if call.name not in ("mul", "div"):
            return None
        number = call.arguments.get("other")
        if isinstance(number, Tensor):
            constants = [t for t in tensors if t.ndim == 0 and self.is_constant(t)]
            if not constants or (call.name == "div" and constants[0] is not number):
                return None
            number = constants[0].item()
        size = abs(float(number or 0.0))
        return size if call.name == "mul" or size == 0 else 1 / size

    def _rearranged(self, call: Call, flows: list[Flow], uses: tuple[tuple[int, float], ...]) -> Flow | None:
        """Rotations and masks, through which q and the logits stay what they are.

        They multiply by a constant, or put together parts of one tensor that were multiplied by the same number.
        """
        keeps = call.name in _KEEPS or (call.name == "mul" and len(flows) == 1 and not uses)
        if not keeps or len({(flow.gain, flow.uses) for flow in flows}) != 1:
            return None
        product = max(flows, key=lambda flow: flow.contracted)
        return replace(product, uses=flows[0].uses + uses, is_part=any(flow.is_part for flow in flows))

    def _ancestry(self, activations: list[Tensor], flows: list[Flow]) -> int:
        bits = 0
        for tensor, flow in zip(activations, flows, strict=True):
            bits |= flow.ancestors | 1 << self._order.setdefault(storage(tensor), len(self._order))
        return bits

    def _read_attention(self, call: Call, flows: list[Flow], module: str) -> None:
        if call.name.startswith(_SDPA):
            q, k = call.arguments["query"], call.arguments["key"]
            given = call.arguments.get("scale")
            scale = float(given) if given is not None else 1 / math.sqrt(q.shape[-1])
            logits = torch.matmul(q, _expanded(k, q).mT).float() * scale
            both = self.of(q), self.of(k)
            value = scale * both[0].gain * both[1].gain
            unit = _is_unit(q, -1, both[0]) and _is_unit(k, -1, both[1])
            self._note(module, SoftmaxScale(int(q.shape[-1]), value, sources(*both), unit), logits)
        elif "softmax" in call.name and "log" not in call.name and flows and flows[0].contracted:
            logits = call.arguments["self"].float()
            found = SoftmaxScale(flows[0].contracted, flows[0].gain, flows[0].sources, flows[0].unit)
            self._note(module, found, logits.where(logits > _MASKED, 0))

    def _note(self, module: str, scale: SoftmaxScale, logits: Tensor) -> None:
        site = _unused(module, self.scales)
        self.scales[site] = scale
        self.logits[site] = logits

    def _read_stream(self, call: Call, activations: list[Tensor], out: Tensor, module: str) -> None:
        """`x + f(x)`: one operand is what the other was made from (a rotation's sum is not)."""
        if call.name != "add" or len(activations) != 2 or activations[0].shape != activations[1].shape:
            return
        for x, branch in (activations, activations[::-1]):
            if storage(x) in self._order and self.of(branch).ancestors >> self._order[storage(x)] & 1:
                self.stream[_unused(module, self.stream)] = out.float().clone()
                self.sums.append(Sum(_added(x, branch, out), _added(branch, x, out), self._last_use))
                return


def _added(one: Tensor, other: Tensor, out: Tensor) -> float:
    """RMS of an operand before the sum, which may have been written into it."""
    return rms(out - other if storage(one) == storage(out) else one)


def _is_unit(tensor: Tensor, dim: int, flow: Flow) -> bool:
    lengths = torch.linalg.vector_norm(tensor.float(), dim=dim)
    return torch.allclose(lengths, torch.full_like(lengths, flow.gain), rtol=1e-3)


def sources(*factors: Flow) -> tuple[int, ...]:
    """A weight and its bias carry the same factor, so the first use of each stands for both."""
    return tuple(flow.uses[0][0] for flow in factors if flow.uses)


def storage(tensor: Tensor) -> int:
    """Views of one memory share it. Valid while the tensor is alive."""
    return int(tensor.untyped_storage()._cdata)


def rms(tensor: Tensor) -> float:
    """Root of the mean square over all entries; 0 for an empty tensor."""
    if not tensor.numel():
        return 0.0
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) / math.sqrt(tensor.numel())


def _expanded(k: Tensor, q: Tensor) -> Tensor:
    """Grouped-query kernels take fewer key heads than query heads."""
    heads = q.shape[-3] // k.shape[-3] if k.ndim > 2 else 1
    return k.repeat_interleave(heads, dim=-3) if heads > 1 else k


def _unused(name: str, known: Container[str]) -> str:
    """The name itself, or with the number of its repetition where a module attends or adds several times."""
    numbered = (f"{name}#{number}" for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in known)
