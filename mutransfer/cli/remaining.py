"""The command lines that go on with a sweep: what it was asked for and has not run, and nothing that is new to it."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mutransfer.cli.command import literal, sweep_command
from mutransfer.records import TrialRecord
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.sweep.key import trial_key
from mutransfer.transfer.axis import flatten
from mutransfer.transfer.grid import exact

MOST_LINES = 4
"""More of them are no help: the sweep's own command is shorter."""
_TABLE = "parameterization.name"

Config = Mapping[str, Any]


def remaining_commands(unfinished: Sequence[Config], records: Sequence[TrialRecord], run_dir: Path) -> list[str]:
    """Lines that train these trials of a run directory; what has finished there is not repeated.

    Empty where it would take many.
    """
    known = {_key(config) for config in (*unfinished, *(record.config for record in records))}
    grids = list(_grids(unfinished, known)) if unfinished else []
    return [_line(grid, run_dir) for grid in grids] if len(grids) <= MOST_LINES else []


def _grids(configs: Sequence[Config], known: Collection[str]) -> Iterator[Sequence[Config]]:
    """These configs in few groups, each of which spans a grid of trials that were all asked for."""
    varying = _varying(configs)
    if _may_be_swept(configs, varying) and _spanned(configs[0], varying, known):
        yield configs
        return
    first = min(varying, key=lambda key: (_may_be_swept(configs, {key: varying[key]}), len(varying[key])))
    for value in varying[first]:
        yield from _grids([config for config in configs if _text(config, first) == value], known)


def _spanned(config: Config, varying: Mapping[str, Sequence[str]], known: Collection[str]) -> bool:
    """Whether every combination of the values is a known trial."""
    if math.prod(map(len, varying.values())) > len(known) * len(PARAMETERIZATIONS):
        return False
    points = itertools.product(*varying.values())
    return all(_key(_with(config, dict(zip(varying, point, strict=True)))) in known for point in points)


def _with(config: Config, texts: Mapping[str, str]) -> Config:
    changed = copy.deepcopy(dict(config))
    for key, text in texts.items():
        *parents, leaf = key.split(".")
        functools.reduce(lambda node, name: node[name], parents, changed)[leaf] = json.loads(text)
    return changed


def _key(config: Config) -> str:
    """Under which the store would find the trial again; its data are those of the run directory."""
    return trial_key(config, "")


def _varying(configs: Sequence[Config]) -> dict[str, list[str]]:
    """Key -> its distinct values as JSON, where it has several in these configs."""
    keys = dict.fromkeys(key for config in configs for key in flatten(config))
    values = {key: list(dict.fromkeys(_text(config, key) for config in configs)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _text(config: Config, key: str) -> str:
    flat = flatten(config)
    return json.dumps(flat[key], sort_keys=True) if key in flat else ""


def _may_be_swept(configs: Sequence[Config], varying: Mapping[str, object]) -> bool:
    """A model, data set or optimizer has keys of its own, and so a line of its own."""
    plain = all(key == _TABLE or not key.endswith(".name") for key in varying)
    return plain and all(key in flatten(config) for key in varying for config in configs)


def _line(configs: Sequence[Config], run_dir: Path) -> str:
    varying = _varying(configs)
    shared = {key: value for key, value in flatten(configs[0]).items() if key not in varying}
    return sweep_command(shared, [_override(key, texts) for key, texts in varying.items()], str(run_dir))


def _override(key: str, texts: Sequence[str]) -> str:
    values = [json.loads(text) for text in texts]
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    said = (exact(value) if isinstance(value, float) else literal(value) for value in values)
    return f"{'parameterization' if key == _TABLE else key}={','.join(said)}"
