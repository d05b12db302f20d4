"""Overrides -> the points of a sweep: every combination composed, checked and hashed before the first one trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import ConfigError
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.key import Point
from mutransfer.sweep.validate import validate

PLACES = ("run_dir", "engine", "search", "logger", "device", "experiment")
"""Where a sweep runs and what it is: one value for all of its points."""

Fingerprint = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Sweep:
    """A sweep as asked for: its settings, and its distinct points in the order in which they were written."""

    settings: Mapping[str, Any]
    configs: Sequence[dict[str, Any]]

    def points(self, fingerprint: Fingerprint) -> list[Point]:
        """Hashes every config together with its corpus.

        Args:
            fingerprint: config -> sha256 of the data that it trains on. Called once per data section.
        """
        known: dict[str, str] = {}
        points: dict[str, Point] = {}
        for config in self.configs:
            name = json.dumps([config["data"], config["model"]["name"]], sort_keys=True)
            if name not in known:
                known[name] = fingerprint(config)
            point = Point.of(config, known[name])
            points.setdefault(point.id, point)
        return list(points.values())


def expand(composer: Composer, overrides: Sequence[str]) -> Sweep:
    """Composes every point of the grids that the config holds and the overrides span.

    An override on the command line takes the place of that key in every grid of the config.

    Raises:
        ConfigError: a point that cannot be composed or trained as written.
    """
    settings = validate("sweep", composer.config(_first_of_each(composer, overrides)))
    grids = settings["search"]["grids"] or [{}]
    configs = [
        validate("sweep", composer.config(point))
        for grid in grids
        for point in composer.points([*_as_overrides(grid, without=overrides), *overrides])
    ]
    return Sweep(settings, configs)


def _first_of_each(composer: Composer, overrides: Sequence[str]) -> list[str]:
    """Plain overrides that lead to the settings, which are the same at every point."""
    first, *others = composer.points(overrides)
    for text in first:
        key = _key(text)
        if key.partition(".")[0] in PLACES and any(text not in other for other in others):
            raise ConfigError(f"{key} cannot be swept: a sweep has one. Run several sweeps into one run_dir instead.")
    return first


def _as_overrides(grid: Mapping[str, Any], *, without: Iterable[str]) -> list[str]:
    given = {_key(text) for text in without}
    return [f"{key}={_text(values)}" for key, values in grid.items() if key not in given]


def _text(values: Any) -> str:
    """A grid's values as they would be typed: a list is a sweep, and a text may be one already."""
    if isinstance(values, list):
        return ",".join(map(_text, values))
    return values if isinstance(values, str) else json.dumps(values)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")
