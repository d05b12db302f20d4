"""The plans of one model at many sizes: what is seen of a size serves every table that it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from mutransfer.check.builds import Build
from mutransfer.convert.parameterize import Plan, plan_of
from mutransfer.planning.observe import Observed
from mutransfer.planning.options import Options, make_options
from mutransfer.rules.table import Parameterization

Key = tuple[int, bool, bool]
"""A size, whether the table has depth rules, and whether init is a table's: what an `Observed` depends on."""


@dataclass(frozen=True)
class Plans:
    """Plans by any table, which serve all seeds. The caller's random state is untouched.

    Attributes:
        build: size -> fresh model.
        observe: (size, model, options) -> what is seen of it.
    """

    build: Build
    observe: Callable[[int, nn.Module, Options], Observed]
    _seen: dict[Key, Observed] = field(default_factory=dict, repr=False)

    def by(self, table: Parameterization, named: Mapping[str, Any]) -> Callable[[int], Plan]:
        """size -> plan.

        Args:
            named: options of `mutransfer.plan`.
        """
        options = make_options(table, **named)

        @cache
        def plan(size: int) -> Plan:
            with torch.random.fork_rng():
                return plan_of(self._observed(size, options), options)

        return plan

    def _observed(self, size: int, options: Options) -> Observed:
        key = size, options.table.depth is not None, options.init == "table"
        if key not in self._seen:
            self._seen[key] = self.observe(size, self.build(size), options)
        return self._seen[key]
