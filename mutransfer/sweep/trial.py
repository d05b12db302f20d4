"""One trial: data, model, parameterization, optimizer, loop. A pure function of the resolved config."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mutransfer.convert import Plan, plan
from mutransfer.errors import ConfigError, MutransferError
from mutransfer.records import TrialRecord
from mutransfer.sweep.key import has_depth_rules, physics, trial_key
from mutransfer.train.data.protocol import Data
from mutransfer.train.data.registry import build_data
from mutransfer.train.device import find_device
from mutransfer.train.fit import check_fit
from mutransfer.train.loop import train
from mutransfer.train.models import build_model

Metrics = Callable[[int, Mapping[str, float]], None]

_PLANNED_FROM = ("model", "base", "parameterization", "hp", "data")


class Trials:
    """Runs trials one after another and keeps between them what they share: the corpus, and the plan of each size.

    Args:
        threads: that torch may use in this process; None leaves its setting alone.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._data: dict[str, Data] = {}
        self._plans: dict[str, Plan] = {}

    def data(self, config: Mapping[str, Any]) -> Data:
        name = json.dumps([config["data"], config["model"]["name"]], sort_keys=True)
        if name not in self._data:
            self._data[name] = build_data(config["data"], config["model"])
        return self._data[name]

    def model(self, config: Mapping[str, Any], width: int | None = None, depth: int | None = None) -> nn.Module:
        """A fresh model, drawn from the config's seed; at another width and depth if they are given."""
        torch.manual_seed(config["seed"])
        return self.build(config, config["model"]["width"] if width is None else width, depth)

    def build(self, config: Mapping[str, Any], width: int, depth: int | None = None) -> nn.Module:
        """A fresh model of this width, and depth if one is given, drawn from torch's generator as it stands."""
        sizes = {"width": width} if depth is None else {"width": width, "depth": depth}
        return build_model({**config["model"], **sizes}, self.data(config).info)

    def _base_model(self, config: Mapping[str, Any]) -> nn.Module:
        try:
            return self.model(config, config["base"], base_depth(config))
        except MutransferError as error:
            raise ConfigError(f"The model cannot be built at {_base_words(config)}: {error}") from error

    def plan(self, config: Mapping[str, Any], model: nn.Module) -> Plan:
        """What the parameterization does to this model; the same plan for every seed and learning rate."""
        parts = [*(config[part] for part in _PLANNED_FROM), base_depth(config), config["optimizer"]["name"]]
        name = json.dumps(parts, sort_keys=True)
        if name not in self._plans:
            self._plans[name] = self._make_plan(config, model)
        return self._plans[name]

    def _make_plan(self, config: Mapping[str, Any], model: nn.Module) -> Plan:
        choice = config["parameterization"]
        check_fit(self._base_model(config), self.data(config), config)
        return plan(
            model,
            choice["name"],
            base=config["base"],
            base_depth=base_depth(config),
            optimizer=config["optimizer"]["name"],
            example_inputs=None if hasattr(model, "example_inputs") else self.data(config).batch(0, seed=0)[:1],
            factory=lambda *sizes: self.model(config, *sizes),
            scale=choice["scale"],
            form=choice["form"],
            init=choice["init"],
            hyperparameters=hyperparameters(config["hp"]),
        )

    def __call__(
        self,
        config: Mapping[str, Any],
        metrics: Metrics | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> TrialRecord:
        """Trains the model that the config describes.

        Args:
            metrics: called with the step and what was measured there.
            progress: called with the steps done and all steps.
            checkpoint: file to write checkpoints to, and to go on from where `resume` is set.
        """
        started, cpu_started = time.monotonic(), time.process_time()
        data, device = self.data(config), find_device(config["device"])
        model = self.model(config)
        planned = self.plan(config, model)
        planned.apply(model)
        model.to(device)
        torch.manual_seed(config["seed"])  # planning draws too, and only where the plan is not known yet
        settings = {name: value for name, value in config["optimizer"].items() if name != "name"}
        outcome = train(
            model,
            planned.make_optimizer(model, **settings),
            data,
            config,
            clip=lambda max_norm: planned.clip_grad_norm_(model, max_norm),
            metrics=metrics,
            progress=progress,
            checkpoint=checkpoint,
            resume=resume,
        )
        return TrialRecord(
            key=trial_key(config, data.sha256),
            config={**physics(config), "device": config["device"]},
            status=outcome.status,
            train_loss=outcome.train_loss,
            val_loss=outcome.val_loss,
            steps=outcome.steps,
            tokens=outcome.tokens,
            seconds=outcome.earlier[0] + time.monotonic() - started,
            cpu_seconds=outcome.earlier[1] + time.process_time() - cpu_started,
            parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            environment={**environment(), "device": _device_name(device), "data_sha256": data.sha256},
            history=outcome.history,
            error=outcome.unsaved,
        )


def run_trial(config: Mapping[str, Any], metrics: Metrics | None = None, **options: Any) -> TrialRecord:
    """One trial on its own; see `Trials`. A sweep's workers keep a `Trials` instead."""
    return Trials()(config, metrics, **options)


def hyperparameters(section: Mapping[str, Any]) -> dict[str, float]:
    """The config's `hp` section as `parameterize` takes it: `{"lr": {"input": 8}}` becomes `{"lr.input": 8}`."""
    flat: dict[str, float] = {}
    for name, value in section.items():
        flat.update({f"{name}.{role}": v for role, v in value.items()} if isinstance(value, Mapping) else {name: value})
    return flat


def _base_words(config: Mapping[str, Any]) -> str:
    depth = base_depth(config)
    return f"base={config['base']}" if depth is None else f"base={config['base']} base_depth={depth}"


def base_depth(config: Mapping[str, Any]) -> int | None:
    """The base's depth, for a table that has depth rules; under any other the base is as deep as the model."""
    return int(config["base_depth"]) if has_depth_rules(config) else None


@functools.lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Where a number was made, for whoever cannot reproduce it."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this code runs from; None in an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
