"""Own contributions: one forward pass that also asks of every op what each parameter alone brings into its result.

Every parameter has a *shadow*: its change W_t - W_0, or W_0 itself at init. A tensor that is made of parameters alone
(a view, a copy, `1 + w`, a mask times w) gets its shadow by the same op. Where such a tensor meets an activation, the
op is asked again with the shadow in the parameter's place. No module registry and no names: fused, transposed, tied
and functional parameters need no special case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mutransfer.check.applied import rows_of
from mutransfer.check.few import Chosen
from mutransfer.check.flow import Flow, Flows, rms, sources, storage
from mutransfer.check.operands import (
    LOOKUPS,
    Call,
    Operand,
    combined,
    contribution,
    factors_of,
    fan_in,
    positions_of,
    reduced,
)

_LITERALS = frozenset({"lift", "lift_fresh", "lift_fresh_copy"})
"""What `torch.tensor(0.5)` comes to inside a forward pass."""

Key = tuple[str, int]
"""A parameter's name and the number of its use: 0, 1, ... in execution order."""


@dataclass(frozen=True)
class Use:
    """One op that takes a parameter and an activation.

    Attributes:
        parameter, index: whose use, and the how manieth.
        op, module: what used it, and where.
        lookup: whether rows are gathered, here or on the way from the parameter.
        fan_in: number of its entries that are summed into one of the result, or were into one of what constants made of
            it; 1 where nothing is contracted.
        fan_out: number of its entries over fan_in, as it is used: one that is broadcast has more than its own.
        positions: for a contraction, at how many vectors it is measured.
        size: RMS of the contribution as it enters what follows.
        entries: its own number.
        summed: number of its entries that were put together in one before anything met them; 1 for the weight itself.
        met: RMS of the activation that it is multiplied with, without the numbers that multiplied that; 0 for none.
        made_by: the parameter that this activation was made with last; empty where none was.
    """

    parameter: str
    index: int
    op: str
    module: str
    lookup: bool
    fan_in: int
    fan_out: int
    positions: int
    size: float
    entries: int
    summed: int
    met: float
    made_by: str

    @property
    def key(self) -> Key:
        return self.parameter, self.index


@dataclass(frozen=True)
class _Made:
    """A storage filled from parameters alone, and each parameter's share of it, laid out alike.

    `lookup`: rows were gathered on the way (positions, whose ids do not depend on the batch).
    `summed`: see `Use`, of the parameters for which it is not 1.
    `fan_ins`: of the parameters that were contracted with constants (sinusoids), over how many of their entries.
    """

    shares: Mapping[str, Tensor]
    lookup: bool = False
    summed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fan_ins: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tensor: Tensor,
        shares: Mapping[str, Tensor],
        lookup: bool = False,
        before: _Made | None = None,
        summed: Mapping[str, int] | None = None,
        fan_ins: Mapping[str, int] | None = None,
    ) -> Self:
        """What `tensor` holds from now on; the rest of its storage holds what was there before."""
        length = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = dict(before.shares) if before else {}
        sums = dict(before.summed) if before else {}
        sums |= {name: number for name, number in (summed or {}).items() if name not in whole}
        contracted = {**(fan_ins or {}), **(before.fan_ins if before else {})}
        for name, share in shares.items():
            if name not in whole:
                whole[name] = share.new_zeros(length)
            _view(whole[name], tensor).copy_(share)
        return cls(whole, lookup, sums, contracted)

    def seen_through(self, view: Tensor) -> dict[str, Tensor]:
        return {name: _view(share, view) for name, share in self.shares.items()}


def _view(flat: Tensor, like: Tensor) -> Tensor:
    return flat.as_strided(like.shape, like.stride(), like.storage_offset())


class ShadowMode(TorchDispatchMode):
    """Records every use of every parameter while a forward pass runs under it, and what flows on from there.

    Args:
        shadows: parameter name -> (the tensor, its shadow).
        constants: buffers.
        initial: the shadows are whole values, not changes.
        module: the path of the module that is running.
        here: the positions that count in the product that is running, see `FewPositions`.

    Attributes:
        paused: while set, ops run unseen.
    """

    def __init__(
        self,
        shadows: Mapping[str, tuple[Tensor, Tensor]],
        constants: Iterator[Tensor],
        *,
        initial: bool,
        module: Callable[[], str],
        here: Callable[[], Chosen | None] = lambda: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: list[Use] = []
        self.flows = Flows(self._settle, self._is_constant)
        self._gains: dict[int, float] = {}
        self._counts: dict[str, int] = {}
        self._initial, self._module, self._here = initial, module, here
        self._made = {storage(t): _Made.of(t, {name: s}) for name, (t, s) in shadows.items()}
        self._entries = {name: t.numel() for name, (t, _) in shadows.items()}
        self._constants = {storage(t) for t in constants}
        self.paused = False
        self._alive: list[Tensor] = []  # memory is told apart by address: none may be freed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        call = Call.bind(func, args, kwargs or {})
        operands = dict(call.operands())
        shares = {o: made.seen_through(t) for o, t in operands.items() if (made := self._made.get(storage(t)))}
        meets = any(not self._is_constant(t) for t in operands.values()) or call.name == "copy"
        uses = self._record(call, operands, shares) if shares and meets else range(0)
        out = func(*args, **(kwargs or {}))
        result = out[0] if isinstance(out, list | tuple) and out else out
        if isinstance(result, Tensor):
            self._place(call, operands, shares, result, uses, meets)
        return out

    def _record(
        self, call: Call, operands: Mapping[Operand, Tensor], shares: Mapping[Operand, Mapping[str, Tensor]]
    ) -> range:
        first = len(self.uses)
        for operand, by_parameter in shares.items():
            tensor = operands[operand]
            for parameter, share in by_parameter.items():
                self.uses.append(self._use(call, operand, tensor, parameter, share))
        return range(first, len(self.uses))

    def _use(self, call: Call, operand: Operand, tensor: Tensor, parameter: str, share: Tensor) -> Use:
        own, contracted = contribution(call, operand, share), fan_in(call, operand, tensor)
        index = self._counts[parameter] = self._counts.get(parameter, -1) + 1
        fan_out = share.numel() // contracted
        positions = own.numel() // fan_out if contracted > 1 else 0
        chosen = self._chosen(call, own) if contracted > 1 else None
        if chosen is not None:
            own, positions = chosen, len(chosen)
        made = self._made[storage(tensor)]
        if parameter in made.fan_ins:
            contracted, fan_out = made.fan_ins[parameter], share.numel()
        lookup, summed = call.name in LOOKUPS or made.lookup, made.summed.get(parameter, 1)
        sizes = contracted, fan_out, positions, rms(own), self._entries[parameter], summed
        return Use(parameter, index, call.name, self._module(), lookup, *sizes, *self._met(call, operand))

    def _met(self, call: Call, operand: Operand) -> tuple[float, str]:
        """The smallest of the activations that an operand is multiplied with, and what made it."""
        met = [(rms(t), self.flows.of(t)) for t in factors_of(call, operand) if not self._is_constant(t)]
        sizes = [(size / (flow.gain or 1.0), flow) for size, flow in met]
        size, flow = min(sizes, key=lambda pair: pair[0], default=(0.0, Flow()))
        return size, next((self.uses[use].parameter for use in sources(flow)), "")

    def _chosen(self, call: Call, own: Tensor) -> Tensor | None:
        """A weight's contribution at the positions that count, (positions, features); None where all do."""
        here = self._here()
        if here is None:
            return None
        rows = rows_of(own, positions_of(call, own))
        return rows[here.rows] if len(rows) == here.of else None

    def _place(
        self,
        call: Call,
        operands: Mapping[Operand, Tensor],
        shares: Mapping[Operand, Mapping[str, Tensor]],
        out: Tensor,
        uses: Sequence[int],
        meets: bool,
    ) -> None:
        """Says of the result what it is: made of parameters, constant, or an activation."""
        self._alive.append(out)
        if not call.func._schema.is_mutable and any(storage(out) == storage(t) for t in operands.values()):
            return  # a view
        if meets and call.name not in _LITERALS:
            self._constants.discard(storage(out))
            self._made.pop(storage(out), None)  # an activation was added in place, as an LSTM does to its gates
            self.flows.follow(call, out, uses, self._module())
        elif shares and out.is_floating_point():
            lookup = call.name in LOOKUPS or any(self._made[storage(operands[o])].lookup for o in shares)
            before = self._made.get(storage(out)) if call.func._schema.is_mutable else None
            beside = self._summed(call, operands, shares, out), self._fan_ins(call, operands, shares)
            self._made[storage(out)] = _Made.of(out, self._shares_of(call, shares), lookup, before, *beside)
        else:
            self._constants.add(storage(out))

    def _shares_of(self, call: Call, shares: Mapping[Operand, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        parameters = dict.fromkeys(name for by_parameter in shares.values() for name in by_parameter)
        made = {}
        for name in parameters:
            own = {operand: by[name] for operand, by in shares.items() if name in by}
            made[name] = combined(call, own, initial=self._initial)
        return made

    def _summed(
        self,
        call: Call,
        operands: Mapping[Operand, Tensor],
        shares: Mapping[Operand, Mapping[str, Tensor]],
        out: Tensor,
    ) -> dict[str, int]:
        """Of every parameter whose entries are put together in those of the result; w / |w| holds w itself too."""
        least: dict[str, int] = {}
        for operand, by_parameter in shares.items():
            tensor = operands[operand]
            here, before = reduced(call, tensor, out), self._made[storage(tensor)].summed
            for name in by_parameter:
                number = here * before.get(name, 1)
                least[name] = min(least.get(name, number), number)
        return {name: number for name, number in least.items() if number > 1}

    def _fan_ins(
        self, call: Call, operands: Mapping[Operand, Tensor], shares: Mapping[Operand, Mapping[str, Tensor]]
    ) -> dict[str, int]:
        """Of every parameter that is contracted here, or was before; of a vector, which all goes into one sum, none,
        nor of rows that were gathered, which stand for an activation."""
        most: dict[str, int] = {}
        for operand, by_parameter in shares.items():
            made = self._made[storage(operands[operand])]
            here = 1 if made.lookup else fan_in(call, operand, operands[operand])
            for name in by_parameter:
                most[name] = max(most.get(name, 1), here, made.fan_ins.get(name, 1))
        return {name: number for name, number in most.items() if 1 < number < self._entries[name]}

    def _is_constant(self, tensor: Tensor) -> bool:
        return storage(tensor) in self._constants or storage(tensor) in self._made

    def _settle(self, use: int, gain: float) -> None:
        self._gains.setdefault(use, gain)

    def finish(self) -> tuple[Use, ...]:
        """Every use in execution order, once the forward pass is over."""
        self.flows.finish()
        return tuple(_scaled(use, self._gains.get(number, 1.0)) for number, use in enumerate(self.uses))


def _scaled(use: Use, gain: float) -> Use:
    return dataclasses.replace(use, size=use.size * gain)
