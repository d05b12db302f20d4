"""What makes two trials the same trial: the hash of everything that changes its numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mutransfer.rules.table import Parameterization
from mutransfer.rules.tables import PARAMETERIZATIONS

TRIAL_SECTIONS = ("model", "base", "parameterization", "hp", "optimizer", "data", "train", "precision", "seed")
"""The part of a resolved config that every trial is a function of; `device` and the rest say where, not what."""


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        id: the hash of the config itself.
        key: the hash of the trial that answers it. Points of several parameterizations at the base size share one.
        config: the resolved trial config, with `device`.
        cost: relative, to start long trials first.
    """

    id: str
    key: str
    config: dict[str, Any]
    cost: float

    @classmethod
    def of(cls, config: Mapping[str, Any], data_sha256: str) -> Point:
        device = str(config["device"]).partition(":")[0]  # the engine gives each worker one GPU, its cuda:0
        trial = {**physics(config), "device": device}
        return cls(
            id=_digest({"config": physics(trial), "data": data_sha256}),
            key=trial_key(trial, data_sha256),
            config=trial,
            cost=_cost(trial),
        )


def physics(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial is a function of: the base's depth too where the table has depth rules, and nowhere else."""
    trial = {name: config[name] for name in TRIAL_SECTIONS}
    trial["model"] = {name: value for name, value in config["model"].items() if name != "base_depth"}
    if has_depth_rules(config):
        trial["base_depth"] = config["base_depth"]
    return trial


def trial_key(config: Mapping[str, Any], data_sha256: str) -> str:
    """The name of the trial that this resolved config describes, on this corpus.

    At the base size every factor of every relative table is 1, so that all of them train the same function in the
    same way, muP's own hyperparameters included: there the key drops the parameterization. It keeps `init`, which
    decides how a fresh tensor is drawn.
    """
    trial = physics(config)
    if is_at_base(config):
        trial["parameterization"] = {"init": config["parameterization"]["init"]}
        trial.pop("base_depth", None)
    return _digest({"config": trial, "data": data_sha256})


def is_at_base(config: Mapping[str, Any], tables: Mapping[str, Parameterization] = PARAMETERIZATIONS) -> bool:
    """Whether the model is its own base, under a table whose cells are ratios to a base; in depth too under one with
    depth rules."""
    relative = tables[config["parameterization"]["name"]].kind == "relative"
    deeper = has_depth_rules(config, tables) and config["base_depth"] != config["model"]["depth"]
    return relative and config["base"] == config["model"]["width"] and not deeper


def has_depth_rules(config: Mapping[str, Any], tables: Mapping[str, Parameterization] = PARAMETERIZATIONS) -> bool:
    return tables[config["parameterization"]["name"]].depth is not None


def sweep_id(points: Iterable[Point]) -> str:
    """The name of a sweep: the same points are the same sweep, in whatever order they were written."""
    return _digest(sorted(point.id for point in points))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _cost(config: Mapping[str, Any]) -> float:
    model, train, data = config["model"], config["train"], config["data"]
    examples = train["steps"] * train["accumulate"] * data["batch_size"] * (data.get("seq_len") or 1)
    return float(examples * model["width"] ** 2 * (model.get("depth") or 1))
