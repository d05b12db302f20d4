"""A config as the shortest command line that leads to it, to copy and paste."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mutransfer.sweep.compose import Composer, flat_keys

_CHOICES = ("model", "data", "optimizer", "parameterization", "precision")
_ALWAYS_SAID = ("model", "parameterization")
_PLAIN = re.compile(r"[\w./:@%+-]+")


def train_command(flat: Mapping[str, Any], always: Collection[str] = ()) -> str:
    """`mutransfer train ...` for a flat trial config: the groups, and every key that differs from what they say.

    Args:
        always: keys that the line holds even where the groups say the same, now.

    >>> train_command({"model.name": "gpt", "model.width": 1024, "parameterization.name": "mup"})
    'mutransfer train model=gpt parameterization=mup model.width=1024'
    """
    return _command("train", flat, always, [])


def sweep_command(flat: Mapping[str, Any], grid: Sequence[str], run_dir: str) -> str:
    """`mutransfer sweep ...` for the trials that differ from a flat trial config in the grid's overrides only.

    >>> sweep_command({"model.name": "gpt", "parameterization.name": "mup"}, ["seed=0,1"], "runs/gpt")
    'mutransfer sweep model=gpt parameterization=mup seed=0,1 run_dir=runs/gpt'
    """
    return _command("sweep", flat, (), [*grid, f"run_dir={_literal(run_dir)}"])


def _command(verb: str, flat: Mapping[str, Any], always: Collection[str], more: Sequence[str]) -> str:
    composer = Composer(verb)
    choices = _choices(composer, flat)
    said = composer.config(choices)
    known = {key: _at(said, key) for key in flat_keys(said)}
    said = {key: value for key, value in flat.items() if key in always or known.get(key, ...) != value}
    overrides = [f"{key}={_literal(value)}" for key, value in said.items()]
    return " ".join(["mutransfer", verb, *(shlex.quote(word) for word in [*choices, *overrides, *more])])


def _choices(composer: Composer, flat: Mapping[str, Any]) -> list[str]:
    groups, usual = composer.groups(), composer.config([])
    choices = []
    for group in _CHOICES:
        name = flat.get(f"{group}.name")
        if name in groups[group] and (group in _ALWAYS_SAID or name != usual[group]["name"]):
            choices.append(f"{group}={name}")
    return choices


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _literal(value: Any) -> str:
    """As Hydra's grammar reads it back."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_literal, value)) + "]"
    return json.dumps(value)
