"""Help texts. What the YAML files say in their comments is what help says: there is no second list to keep true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mutransfer.cli.arguments import FLAGS, TRANSFER_FLAGS
from mutransfer.cli.dispatch import VERBS
from mutransfer.sweep.compose import Composer, config_dir, flat_keys

EXAMPLES = {
    "explain": ["mutransfer explain model=gpt model.width=1024 parameterization=mup"],
    "check": [
        "mutransfer check model=gpt parameterization=mup 'widths=[64,128,256,512]'",
        "mutransfer check model=gpt parameterization=completep model.width=64 'depths=[2,4,8,16]'",
    ],
    "train": ["mutransfer train model=gpt model.width=1024 optimizer.lr=2**-8 resume=auto"],
    "sweep": [
        "mutransfer sweep model=gpt model.width=64,128,256 optimizer.lr=2**-10,2**-9,2**-8 seed=0,1",
        "mutransfer sweep model=gpt model.depth=2,4,8,16 parameterization=completep optimizer.lr=2**-8,2**-7,2**-6",
        "mutransfer sweep experiment=demo",
    ],
    "transfer": [
        "mutransfer transfer runs/demo --target model.width=1024",
        "mutransfer transfer runs/deep axis=depth --target model.width=256 --target model.depth=32",
    ],
}
_LINE = re.compile(r"(?P<indent> *)(?P<name>[\w.-]+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")
_NOTES = {
    "sweep": "Several values of a key span a grid: key=a,b,c. What has finished is kept; the same command goes on.\n"
    "Exit codes: 0 trials are done, 1 some have failed, 3 every one diverged, so that nothing can be told.",
    "train": ("Exit codes: 0 done, 1 diverged, 2 its model cannot be saved, or a finished one is missing or damaged."),
    "transfer": (
        "RUN_DIR is the run_dir of a sweep; several sweeps may share it. The verdict is the subject's: it transfers\n"
        "where the best learning rate moves by at most 0.25 octaves per doubling, and the smallest size's costs the\n"
        "largest at most 0.5 %, both with their intervals. Trials that are unfinished, or have failed where they may\n"
        "hide the best value, leave it undecided: run the same sweep again.\n"
        "Exit codes: 0 transfers, 1 does not, 3 undecided: also where trials that have not run, or training that\n"
        "diverges at every value, leave nothing to judge."
    ),
}


def general() -> str:
    """`mutransfer --help`."""
    verbs = [f"  {verb:<10}{what}" for verb, what in VERBS.items()]
    examples = [f"  {example}" for verb in EXAMPLES for example in EXAMPLES[verb]]
    return "\n".join(
        [
            "mutransfer: tune hyperparameters on a small model, use them on a large one (muP and its relatives).",
            "",
            "usage: mutransfer VERB [flags] [key=value ...]",
            "",
            "verbs:",
            *verbs,
            "",
            "examples:",
            *examples,
            "",
            "flags:",
            "  --help              show this help; `mutransfer VERB --help` lists every option of a verb",
            "  --version           show the version",
            "",
            'tab completion:  eval "$(mutransfer completion bash)"    (also: zsh, fish)',
            "exit codes:      0 pass or done, 1 fail, 2 bad input, 3 undecided",
        ]
    )


def of_verb(composer: Composer, overrides: Sequence[str]) -> str:
    """`mutransfer VERB --help`: every flag, group and key, with the values that the given overrides lead to."""
    verb = composer.root
    flags = {**FLAGS, **(TRANSFER_FLAGS if verb == "transfer" else {})}
    usage = f"usage: mutransfer {verb} {'RUN_DIR ' if verb == 'transfer' else ''}[flags] [key=value ...]"
    config = composer.config(overrides)
    return "\n".join(
        [
            f"mutransfer {verb}: {VERBS[verb]}",
            "",
            usage,
            *([_NOTES[verb]] if verb in _NOTES else []),
            "",
            "examples:",
            *(f"  {example}" for example in EXAMPLES[verb]),
            "",
            "flags:",
            *(f"  {flag:<14}{what}" for flag, what in flags.items()),
            *_groups(composer, config),
            "",
            "keys and their values here (a number may be an expression, such as 2**-10):",
            *_keys(config),
        ]
    )


def _groups(composer: Composer, config: dict[str, object]) -> list[str]:
    used = composer.groups_in(config)
    if not used:
        return []
    lines = [f"  {name + '=':<18}{' | '.join(options)}" for name, options in used.items()]
    return ["", "groups (model=mlp chooses a whole section; its keys are listed below for the one chosen):", *lines]


def _keys(config: dict[str, object]) -> Iterator[str]:
    comments = _comments(config)
    for key in flat_keys(config):
        if key.endswith(".name"):
            continue  # said by the group
        value: object = config
        for part in key.split("."):
            value = value[part] if isinstance(value, dict) else value
        line = f"  {key}={value if isinstance(value, str) else json.dumps(value)}"
        yield f"{line:<38}  # {comments[key]}" if key in comments else line


def _comments(config: dict[str, object]) -> dict[str, str]:
    """Dotted key -> the comment beside it in the YAML files that make up this config."""
    names = [f"{name}/{value['name']}" for name, value in config.items() if isinstance(value, dict) and "name" in value]
    comments: dict[str, str] = {}
    for name in ("trial", *VERBS, *names):
        file = config_dir() / f"{name}.yaml"
        if file.is_file():
            comments.update(_comments_of(file))
    return comments


def _comments_of(file: Path) -> Iterator[tuple[str, str]]:
    path: list[str] = [] if file.parent == config_dir() else [file.parent.name]
    base = len(path)
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := _LINE.match(line):
            depth = base + len(match["indent"]) // 2
            path[depth:] = [match["name"]]
            if match["comment"]:
                yield ".".join(path), match["comment"]
