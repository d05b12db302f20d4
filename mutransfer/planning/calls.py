"""One dispatched op and the tensors that it reads, and what is known of ops by their names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mutransfer.planning.layout import Labels, Layout, broadcast, union
from mutransfer.planning.ops import VIEWS

CONTRACTIONS: dict[str, dict[int, tuple[tuple[int, ...], tuple[int, ...]]]] = {
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
LOOKUPS = {"embedding", "index_select", "index", "gather", "_embedding_bag", "grid_sampler_2d", "grid_sampler_3d"}
NORMS = {"native_layer_norm", "_fused_rms_norm", "native_batch_norm", "_native_batch_norm_legit",
          "native_group_norm", "cudnn_batch_norm", "batch_norm", "_batch_norm_with_update",
          "_native_batch_norm_legit_functional"}  # fmt: skip
JOINS = {"cat", "stack"}
COPIES = {"clone", "_to_copy", "contiguous", "copy", "detach"}
PROPORTIONAL = {"mul", "div", "neg", "where", "masked_fill", "tril", "triu", "constant_pad_nd", "flip", "roll",
                 "repeat", "native_dropout", "_weight_norm_interface"} | COPIES | JOINS  # fmt: skip
ADDITIVE = {"add", "sub", "where", "masked_fill", "index_put", "_index_put_impl", "index_add", "index_copy",
             "scatter", "masked_scatter", "slice_scatter", "select_scatter"} | COPIES | JOINS  # fmt: skip
OVERWRITES = {"index_put", "_index_put_impl", "index_copy", "scatter", "masked_scatter", "copy", "fill"}
STATISTICS = {"linalg_vector_norm", "norm", "sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max",
              "min", "prod"}  # fmt: skip
"""Ops that make a few numbers of a whole tensor: of a weight, what it is normalized by."""
SHAPED_ALIKE = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty",
                 "new_zeros", "new_ones", "new_full"}  # fmt: skip
"""Ops that read the size of their operand and none of its values."""


@dataclass(frozen=True)
class Call:
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
        shared = {address(t) for t in self.held.values()} & {address(r) for r in self.results}
        return bool(shared) and (not self.in_place or self.name in VIEWS)

    @property
    def elementwise(self) -> bool:
        resized = self.name.lstrip("_").startswith("upsample")  # positions for another image size
        usual = self.name in PROPORTIONAL or self.name == "_prelu_kernel" or torch.Tag.pointwise in self.func.tags
        return self.known and (usual or resized)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, mappings and dataclasses."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, Mapping):
            yield from tensors_in(value.values())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from tensors_in(vars(value).values())


def address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def flat(values: Any) -> list[Any]:
    """Arguments in order, lists opened, so that an operand's index is stable."""
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, list | tuple) else [value])
    return flat


def moved(call: Call, labels: Labels) -> Labels:
    """An operand's labels as its result has them."""
    if call.name == "stack":
        axis = int(call.args[1]) if len(call.args) > 1 else 0
        axis %= len(labels) + 1
        return (*labels[:axis], frozenset(), *labels[axis:])
    return broadcast(labels, call.results[0].ndim)


def gathers_first(call: Call) -> bool:
    """Whether an op gathers along the first dimension alone."""
    if call.name == "index":
        return isinstance(call.args[1], list | tuple) and len(call.args[1]) == 1
    return call.name == "index_select" and call.args[1] == 0


def reduced(args: tuple[Any, ...], tensor: Tensor) -> Sequence[int]:
    """The dimensions that sum or mean go over."""
    dims = args[1] if len(args) > 1 and args[1] is not None else range(tensor.ndim)
    return (dims,) if isinstance(dims, int) else tuple(dims) or tuple(range(tensor.ndim))


def kernel_axes(call: Call, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The dimensions of a convolution's kernel that are summed over, and those that its groups run along; None where
    that cannot be told. Groups of a batch, one kernel for each sample, run along none of the parameter's own."""
    kernel = call.held[1]
    transposed, groups = (bool(call.args[6]), int(call.args[8])) if call.name == "convolution" else (False, 1)
    own = union(layout.label(kernel), (0,))
    filters = math.prod(size for _, size, dims in layout.axes if dims & own) if own else kernel.shape[0]
    groups = max(1, groups * filters // kernel.shape[0])
    if transposed and groups not in (1, filters):
        return None  # (in, out / groups, taps): which channels are summed depends on the groups
    summed = 1 if not transposed else 0 if groups == 1 else None
    taps = tuple(axis for axis in range(kernel.ndim) if axis > 1 or axis == summed)
    return taps, (0,) if groups > 1 else ()
