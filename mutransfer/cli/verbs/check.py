"""`mutransfer check`: the coordinate check of a model, its verdict, check.json and a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.cli.arguments import Arguments
from mutransfer.cli.output import print_config, printable
from mutransfer.cli.progress import progress_bar
from mutransfer.errors import ConfigError
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.validate import validate
from mutransfer.transfer.axis import flatten

if TYPE_CHECKING:
    from torch import nn


def run(composer: Composer, arguments: Arguments) -> int:
    """Returns 0 for pass, 1 for fail, 3 where the check cannot tell."""
    config = validate("check", composer.config(arguments.overrides))
    if arguments.show_config:
        return print_config(config)
    _refuse_both(arguments.overrides)
    _check_sizes(config)
    from mutransfer.check import coord_check

    run_dir, choice = Path(config["run_dir"]), config["parameterization"]
    with progress_bar() as bar:
        task = bar.add_task("coordinate check", total=None)
        report = coord_check(
            **_models(config),
            **_sizes(config),
            parameterization=choice["name"],
            form=choice["form"],
            scale=choice["scale"],
            optimizer=config["optimizer"]["name"],
            base=config["base"],
            lr=config["lr"],
            steps=config["steps"],
            seeds=config["seeds"],
            precision=config["precision"]["name"],
            progress=lambda done, planned: bar.update(task, completed=done, total=planned),
        )
    report = dataclasses.replace(report, settings=_settings(config))
    print(printable(report))
    for path in (report.save(run_dir / "check.json"), report.plot(run_dir / "check.png")):
        print(f"Written: {path}")
    return report.exit_code


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the check is of, so that a report does not put it beside another sweep."""
    varied = "width" if config["depths"] is None else "depth"
    model = {name: value for name, value in config["model"].items() if name != varied}
    optimizer = {"name": config["optimizer"]["name"]}
    named = {"model": model, "parameterization": config["parameterization"], "optimizer": optimizer}
    depth = {} if config["depths"] is None else {"base_depth": config["base_depth"]}
    return flatten({**named, "base": config["base"], **depth})


def _models(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is checked: the config's model at any size, on the config's device, with a few tokens or its own data."""
    from mutransfer.sweep.trial import Trials, hyperparameters
    from mutransfer.train.device import find_device
    from mutransfer.train.fit import check_fit

    trials, device = Trials(), find_device(config["device"])
    data = trials.data(config)
    given: dict[str, Any] = {"hyperparameters": hyperparameters(config["hp"])}
    check_fit(trials.build(config, config["base"], min(config["depths"] or [0]) or None), data, config)
    if config["full_batch"]:
        given |= {"batches": lambda seed: data.batch(0, seed=seed), "loss": data.loss}
    if config["model"]["name"] == "factory":
        given["example_inputs"] = data.batch(0, seed=0)[:1]

    def build(width: int, depth: int | None = None) -> nn.Module:
        model = trials.build(config, width, depth)
        return model if any(p.is_meta for p in model.parameters()) else model.to(device)

    return {"build": build, **given}


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """One of widths and depths varies; depths do at the model's own width."""
    if config["depths"] is None:
        return {"widths": config["widths"]}
    return {"widths": [config["model"]["width"]], "depths": config["depths"], "base_depth": config["base_depth"]}


def _refuse_both(overrides: Sequence[str]) -> None:
    given = [name for name in ("widths", "depths") if any(word.startswith(f"{name}=") for word in overrides)]
    if len(given) > 1:
        raise ConfigError(
            "widths= and depths= are both given, and only one of them can vary. Leave one out; depths are checked at "
            "model.width."
        )


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Every size against the model's own schema, before anything is built."""
    for name, sizes in (("width", config["widths"]), ("depth", config["depths"])):
        if name == "depth" or config["depths"] is None:
            for size in sizes or ():
                validate("check", {**config, "model": {**config["model"], name: size}})
