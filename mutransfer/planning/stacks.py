"""How much deeper than the base each stack of blocks is, and which tensor of the base stands for which of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

from mutransfer.errors import ShapeError
from mutransfer.planning.branches import Branch
from mutransfer.planning.ops import Trace
from mutransfer.planning.sizes import check_structure
from mutransfer.planning.templates import Templates

T = TypeVar("T")
_Kind = frozenset[str]
"""A block by the names of its parameters inside it."""


@dataclass(frozen=True)
class Stacks:
    """A model and a base of another depth, tensor by tensor.

    Attributes:
        templates: how the names of the two are read.
        counts: stack (the template of its blocks) -> number of blocks at the base and in the model.
        partners: parameter of the model -> the one of the base that it is compared with: of the same template, in a
            block of the same kind, at the same index where there is one, else in the last such block. A block that only
            lacks parameters which one of the base has is of that one's kind.
        blocks: the same for blocks, by path.
    """

    templates: Templates
    counts: Mapping[str, tuple[int, int]]
    partners: Mapping[str, str]
    blocks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_one_depth(cls, names: Iterable[str]) -> Self:
        """Of a base that has the model's own parameters."""
        return cls(Templates(frozenset()), {}, {name: name for name in names})

    def seen_from_model(self, base: Mapping[str, T]) -> dict[str, T]:
        """What is known of the base's parameters, under the names of the model's."""
        return {name: base[partner] for name, partner in self.partners.items() if partner in base}

    def module(self, path: str) -> str:
        """The base's module that stands for one of the model."""
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            block = ".".join(parts[:end])
            if block in self.blocks:
                return ".".join([self.blocks[block], *parts[end:]])
        return path

    def m_depth(self, name: str) -> float:
        """Blocks of a parameter's own stack over the base's; 1 outside of all."""
        stack = self.templates.stack(name)
        at_base, here = self.counts[stack] if stack is not None else (1, 1)
        return here / at_base

    @property
    def deeper(self) -> Mapping[str, float]:
        """Stack -> its depth ratio, for those whose depth differs from the base's."""
        return {stack: here / at_base for stack, (at_base, here) in self.counts.items() if here != at_base}


def compare_depths(base: Iterable[str], model: Iterable[str]) -> Stacks:
    """Pairs the parameters of a model with those of a base of any depth, by name.

    Raises:
        ShapeError: the model has a parameter, or a kind of block, that the base lacks.
    """
    base_names, names = list(base), list(model)
    templates = Templates.between(base_names, names)
    at_base, here = _blocks(base_names, templates), _blocks(names, templates)
    check_structure(*({n: () for n in own if templates.stack(n) is None} for own in (names, base_names)))
    partners = {name: name for name in names if templates.stack(name) is None}
    paths: dict[str, str] = {}
    for stack, blocks in here.items():
        others = at_base.get(stack, {})
        by_kind = {_kind(path, members): path for path, members in others.items()}
        for path, members in blocks.items():
            partner = paths[path] = _partner(path, blocks, others, by_kind)
            partners |= {name: partner + name.removeprefix(path) for name in members}
    counts = {stack: (len(at_base[stack]), len(blocks)) for stack, blocks in here.items()}
    return Stacks(templates, counts, partners, paths)


def count_branches(stacks: Stacks, base: Sequence[Branch], model: Sequence[Branch]) -> Stacks:
    """Counts only blocks that add to a stream: an nn.Sequential may hold the stem and the readout beside them.

    Args:
        base, model: the residual branches of each.
    """
    here, there = _residual_blocks(model, stacks.templates), _residual_blocks(base, stacks.templates)
    counts = {stack: (len(there[stack]), len(blocks)) for stack, blocks in here.items() if stack in there}
    return replace(stacks, counts={**stacks.counts, **counts})


def _residual_blocks(branches: Sequence[Branch], templates: Templates) -> dict[str, set[str]]:
    blocks: dict[str, set[str]] = {}
    for name in (name for branch in branches for name in branch.terminals):
        stack = templates.stack(name)
        if stack is not None:
            blocks.setdefault(stack, set()).add(block_of(name, templates))
    return blocks


def block_kinds(shapes: Mapping[str, tuple[int, ...]], templates: Templates) -> dict[str, frozenset[object]]:
    """Path of each block -> what tells its kind: the parameters in it and their sizes."""
    return {
        path: frozenset((name.removeprefix(path), shapes[name]) for name in members)
        for blocks in _blocks(shapes, templates).values()
        for path, members in blocks.items()
    }


def use_ratios(base: Trace, model: Trace, stacks: Stacks) -> Mapping[str, float]:
    """Parameters that the forward pass uses more or less often than at the base (shared blocks), with the ratio."""
    used = {name: (len(base.uses[stacks.partners[name]]), len(uses)) for name, uses in model.uses.items()}
    return {name: here / there for name, (there, here) in used.items() if there and here and there != here}


_Blocks = dict[str, dict[str, list[str]]]


def _blocks(names: Iterable[str], templates: Templates) -> _Blocks:
    """Stack -> path of each of its blocks -> the parameters in it, in the model's order."""
    blocks: _Blocks = {}
    for name in names:
        stack = templates.stack(name)
        if stack is not None:
            blocks.setdefault(stack, {}).setdefault(block_of(name, templates), []).append(name)
    return blocks


def block_of(name: str, templates: Templates) -> str:
    """The path of a parameter's innermost block; "" outside of all."""
    stack = templates.stack(name)
    return "" if stack is None else ".".join(name.split(".")[: stack.count(".") + 1])


def _kind(path: str, members: Iterable[str]) -> _Kind:
    return frozenset(name.removeprefix(path) for name in members)


def _partner(
    path: str, blocks: Mapping[str, list[str]], others: Mapping[str, list[str]], by_kind: Mapping[_Kind, str]
) -> str:
    kind = _kind(path, blocks[path])
    if path in others and _kind(path, others[path]) == kind:
        return path
    holding = [by_kind[known] for known in sorted(by_kind, key=len) if known >= kind]
    if holding:
        return holding[0]
    first = {_kind(at, members): i for i, (at, members) in reversed(list(enumerate(blocks.items(), 1)))}
    raise ShapeError(
        f"The base has no block like {path!r} ({_example(kind, by_kind)}), so nothing says how it is to be "
        f"scaled. Use a base of at least {max(first.values())} blocks there, the fewest that have every kind."
    )


def _example(kind: _Kind, known: Mapping[_Kind, str]) -> str:
    """A parameter that no block of the base has beside the others."""
    own = sorted(kind - frozenset().union(*known)) or sorted(kind)
    return f"with {own[0].removeprefix('.')!r}"
