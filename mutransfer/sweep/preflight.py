"""What can be known to be impossible before the first trial: answered by the driver, in a second or two."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mutransfer.sweep.key import has_depth_rules, is_at_base
from mutransfer.sweep.trial import Trials
from mutransfer.train.device import find_device

_trials = Trials(threads=1)


def fingerprint(config: Mapping[str, Any]) -> str:
    """The sha256 of the data that a trial of this config trains on."""
    return _trials.data(config).sha256


def preflight(configs: Iterable[Mapping[str, Any]]) -> None:
    """Builds and plans the smallest model of each kind, so that a mistake stops the sweep and no trial fails.

    The base itself only where nothing else is asked for: there no rule is put to use.

    Raises:
        MutransferError: what the first trial of that kind would have failed with.
    """
    smallest: dict[str, Mapping[str, Any]] = {}
    for config in sorted(configs, key=_size, reverse=True):
        smallest[_kind(config)] = config
    for config in smallest.values():
        find_device(config["device"])
        _trials.plan(config, _trials.model(config))


def _size(config: Mapping[str, Any]) -> tuple[bool, int, int]:
    return is_at_base(config), config["model"]["width"], config["model"]["depth"] or 0


def _kind(config: Mapping[str, Any]) -> str:
    """What a mistake may depend on: which model on which data, under which table for which optimizer, and whether rules
    of depth are put to use, which one of the base's depth never does."""
    model, table, optimizer = config["model"], config["parameterization"], config["optimizer"]["name"]
    deeper = has_depth_rules(config) and config["base_depth"] != model["depth"]
    return json.dumps([model["name"], model.get("path"), config["data"], table, optimizer, deeper], sort_keys=True)


def gpus(device: str) -> tuple[str, ...]:
    """The GPUs to spread workers over, as CUDA_VISIBLE_DEVICES names them; none where trials run on the CPU."""
    if find_device(device).type != "cuda":
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    _, _, index = device.partition(":")
    return (names[int(index)],) if index else tuple(names)
