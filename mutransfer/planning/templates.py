"""Parameter names without the index of the block: what pairs the tensors of two depths of one model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

_NUMBERED = re.compile(r"(.*?)(\d+)")
_Sites = dict[tuple[str, ...], set[int]]


@dataclass(frozen=True)
class Templates:
    """How names are read: the places in them where the index of a block stands.

    >>> templates = Templates.between(["h.0.mlp.0.bias"], ["h.0.mlp.0.bias", "h.1.mlp.0.bias"])
    >>> templates.of("h.1.mlp.0.bias")
    'h.*.mlp.0.bias'
    """

    blocks: frozenset[tuple[str, ...]]
    """What stands in front of a block's index, components of the name, earlier indices replaced by `*`."""

    @classmethod
    def between(cls, shallow: Iterable[str], deep: Iterable[str]) -> Self:
        """Only an index that takes other values at the two depths counts blocks; one inside a block does not."""
        one, other = [n.split(".") for n in shallow], [n.split(".") for n in deep]
        found = cls(frozenset())
        for position in range(max((len(parts) for parts in (*one, *other)), default=0)):
            here, there = found._numbered(one, position), found._numbered(other, position)
            differing = {site for site in here.keys() & there.keys() if here[site] != there[site]}
            found = cls(found.blocks | differing)
        return found

    def of(self, name: str) -> str:
        """The name with `*` for the index of its block (of each of them, where blocks are nested)."""
        return ".".join(self._replaced(name.split("."))) if name else name

    def block(self, name: str) -> str | None:
        """The path of the block that a parameter stands in, the outermost of nested ones; None outside of all."""
        parts = name.split(".")
        replaced = self._replaced(parts)
        changed = [i for i, (old, new) in enumerate(zip(parts, replaced, strict=True)) if old != new]
        return ".".join(parts[: changed[0] + 1]) if changed else None

    def stack(self, name: str) -> str | None:
        """The template of a parameter's innermost blocks: all those that are counted together. None outside of all."""
        parts = self._replaced(name.split("."))
        starred = [i for i, part in enumerate(parts) if part.endswith("*")]
        return ".".join(parts[: starred[-1] + 1]) if starred else None

    def _numbered(self, names: list[list[str]], position: int) -> _Sites:
        """Every index that stands at a position, by what is in front of it."""
        sites: _Sites = {}
        for parts in names:
            match = _NUMBERED.fullmatch(parts[position]) if position < len(parts) else None
            if match is not None:
                site = (*self._replaced(parts[:position]), match[1])
                sites.setdefault(site, set()).add(int(match[2]))
        return sites

    def _replaced(self, parts: list[str]) -> list[str]:
        replaced: list[str] = []
        for part in parts:
            match = _NUMBERED.fullmatch(part)
            counts = match is not None and (*replaced, match[1]) in self.blocks
            replaced.append(f"{match[1]}*" if match is not None and counts else part)
        return replaced
