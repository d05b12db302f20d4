"""`mutransfer explain`: the plan of a model as a table, and as plan.json."""

from __future__ import annotations

from pathlib import Path

from mutransfer.cli.arguments import Arguments
from mutransfer.cli.dispatch import DONE
from mutransfer.cli.output import print_config
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.validate import validate


def run(composer: Composer, arguments: Arguments) -> int:
    """Prints what the parameterization does to every parameter; nothing is trained."""
    config = validate("explain", composer.config(arguments.overrides))
    if arguments.show_config:
        return print_config(config)
    from mutransfer.sweep.trial import Trials

    trials = Trials()
    plan = trials.plan(config, trials.model(config))
    print(plan)
    path = Path(config["run_dir"]) / "plan.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    plan.save(path)
    print(f"Written: {path}")
    return DONE
