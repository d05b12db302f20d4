"""`mutransfer transfer RUN_DIR`: does the best learning rate transfer, and what should the target be trained with?"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mutransfer.cli.arguments import Arguments
from mutransfer.cli.command import command_line, override, shell_word, sweep_command, train_words
from mutransfer.cli.dispatch import UNDECIDED
from mutransfer.cli.output import print_config, printable
from mutransfer.cli.remaining import remaining_commands
from mutransfer.cli.standing import TooEarlyError, analyze
from mutransfer.cli.targets import check_target
from mutransfer.errors import ConfigError, RunError
from mutransfer.records import TrialRecord, write_json
from mutransfer.sweep.compose import Composer, expand_numbers
from mutransfer.sweep.store import Store
from mutransfer.sweep.validate import validate
from mutransfer.transfer import TransferReport, extensions, transfer_hyperparameters
from mutransfer.transfer.axis import AXES
from mutransfer.transfer.grid import Extension, overrides
from mutransfer.transfer.target import TargetHyperparameters


def run(composer: Composer, arguments: Arguments) -> int:
    """Returns 0 where the subject transfers, 1 where it does not, 3 where the sweep cannot tell.

    It is 3 as well where trials that have not run, or training that diverges everywhere, leave nothing to judge; then
    transfer.json says that alone, and there is no page.

    Where the report cannot be written it is 2, whatever the verdict: a script that goes on to read transfer.json would
    read none, or an older one. The verdict is printed before, and its own code is in the error.
    """
    config = validate("transfer", composer.config(arguments.overrides))
    if arguments.show_config:
        return print_config(config)
    run_dir, sizes = _run_dir(arguments.positional), _sizes(arguments.target)
    records, unfinished = _trials(run_dir)
    asked = {name: config[name] for name in ("axis", "subject", "level")}
    try:
        report = analyze(records, unfinished, **asked)
    except TooEarlyError as why:
        return _undecided(run_dir, str(why).rstrip("."))
    lines = tuple(_extension_command(report, part, run_dir) for part in extensions(report))
    report = dataclasses.replace(report, commands=lines)
    target = _target(report, sizes) if sizes else None
    print(printable(report if target is None else f"{report}\n\n{target}"))
    try:
        page = _write(run_dir, report, target, records, _said(arguments))
    except (RunError, OSError) as error:
        raise RunError(
            f"The report is not written: {str(error).rstrip('.')}. The verdict printed above stands; its own exit code "
            f"is {report.exit_code}."
        ) from None
    print(f"Written: {page}, {page.with_name('transfer.json')}")
    return report.exit_code


def _trials(run_dir: Path) -> tuple[list[TrialRecord], list[dict[str, Any]]]:
    """The records, and the configs that have none. Read as from others: a damaged one is named, nothing is written."""
    with Store.read_only(run_dir) as store:
        records, unfinished = store.records(), store.unfinished()
    if unfinished:
        trials = "1 trial is" if len(unfinished) == 1 else f"{len(unfinished)} trials are"
        lines = remaining_commands(unfinished, records, run_dir)
        how = "\n  ".join(["To finish:", *lines]) if lines else "Run the same sweep again to finish."
        print(printable(f"{trials} unfinished and not counted. {how}"), file=sys.stderr)
    return records, unfinished


def _undecided(run_dir: Path, why: str) -> int:
    print(printable(f"undecided: {why}."))
    content = {"verdict": "undecided", "open": why, "parameterizations": {}, "extend": []}
    print(f"Written: {write_json(run_dir / 'transfer.json', content)}")
    return UNDECIDED


def _run_dir(words: Sequence[str]) -> Path:
    if len(words) != 1:
        raise ConfigError("Give the run_dir of one sweep, as in `mutransfer transfer runs/demo`.")
    return Path(words[0])


def _sizes(overrides: Sequence[str]) -> dict[str, float]:
    """`--target model.width=1024` -> {"model.width": 1024}."""
    sizes: dict[str, float] = {}
    known = [axis.key for axis in AXES.values()]
    for text in overrides:
        key, _, value = expand_numbers(text).partition("=")
        if key in sizes:
            raise ConfigError(f"--target {text}: {key} is given twice, and a target has one. Leave one of them out.")
        if key not in known:
            raise ConfigError(f"--target {text}: give a size, {', '.join(known)}, as in --target model.width=1024.")
        try:
            sizes[key] = int(value)
        except ValueError:
            raise ConfigError(f"--target {text}: {value!r} is not a whole number.") from None
    return sizes


def _extension_command(report: TransferReport, part: Extension, run_dir: Path) -> str:
    """The sweep's own config with the grid of what it lacks, into the same directory."""
    name = part.parameterization
    flat = {**report.settings[name], **report.followers[name][part.sizes[0]]}
    return sweep_command(flat, overrides(report, part), str(run_dir))


def _target(report: TransferReport, sizes: Mapping[str, float]) -> TargetHyperparameters:
    """The target's hyperparameters, with a command that repeats all of the proxy's config and that can be run."""
    target = transfer_hyperparameters(report, sizes)
    words = _words(report, target)
    unchecked = check_target(words, _proxy(report, target))
    return dataclasses.replace(target, command=command_line("train", words), cautions=(*target.cautions, *unchecked))


def _proxy(report: TransferReport, target: TargetHyperparameters) -> dict[str, int]:
    """The largest proxy's sizes, of those that the target says of its model."""
    name = target.parameterization
    own = {**report.settings[name], AXES[report.axis].key: report[name].optimum[-1].size}
    keys = (AXES[name].key for name in target.target)
    return {key: int(own[key]) for key in keys if key.startswith("model.") and own.get(key) is not None}


def _words(report: TransferReport, target: TargetHyperparameters) -> list[str]:
    """The proxy's own config with the target's sizes and hyperparameters in it, and a directory of its own.

    Sizes, base and hyperparameters are said even where they are the defaults: the line means the same behind others.
    """
    flat = dict(report.settings[target.parameterization])
    given = {AXES[name].key: size for name, size in target.target.items()}
    given |= {one.key: one.value for one in target.values}
    sizes = "-".join(f"{name}{size:g}" for name, size in target.target.items())
    run_dir = f"runs/{flat.get('model.name', 'target')}-{sizes}"
    return [*train_words(flat | given, {*given, "base", "base_depth"}), override("run_dir", run_dir)]


def _said(arguments: Arguments) -> str:
    """The command line as it was typed, as one can paste it."""
    targets = [word for size in arguments.target for word in ("--target", size)]
    return command_line("transfer", [*arguments.positional, *targets, *arguments.overrides])


def _write(
    run_dir: Path,
    report: TransferReport,
    target: TargetHyperparameters | None,
    records: Sequence[TrialRecord],
    command: str,
) -> Path:
    """report.html with its figures and transfer.json; a check made in the same directory is on the page too."""
    from mutransfer.report import CheckError, environment_of, read_check, write_report  # imports matplotlib

    environment, check = environment_of(records), run_dir / "check.json"
    write = functools.partial(
        write_report, run_dir / "report.html", report, command=command, target=target, environment=environment
    )
    try:
        return write(read_check(check))
    except CheckError as error:
        again_dir = shell_word(override("run_dir", str(run_dir)))
        again = f"Delete it, or make it again with `mutransfer check ... {again_dir}`."
        why = f"{check} is not shown in the report. {error} {again}"
        print(f"mutransfer: {printable(why)}", file=sys.stderr)
        return write(unshown_check=why)
