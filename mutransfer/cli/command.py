"""A config as the shortest command line that leads to it, to copy and paste."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mutransfer.sweep.compose import Composer, flat_keys, parse_override
from mutransfer.sweep.validate import escape_interpolations

_CHOICES = ("model", "data", "optimizer", "parameterization", "precision")
_ALWAYS_SAID = ("model", "parameterization")
_PLAIN = re.compile(r"[\w./:@%+-]+", re.ASCII)
_BEFORE_QUOTE = re.compile(r"(\\*)('|\Z)")


def train_words(flat: Mapping[str, Any], always: Collection[str] = ()) -> list[str]:
    """The words of `mutransfer train` for a flat trial config: the groups, and every key that differs from them.

    Args:
        always: keys that are said even where the groups say the same, now.

    >>> train_words({"model.name": "gpt", "model.width": 1024, "parameterization.name": "mup"})
    ['model=gpt', 'parameterization=mup', 'model.width=1024']
    """
    return _words("train", flat, always)


def sweep_command(flat: Mapping[str, Any], grid: Sequence[str], run_dir: str) -> str:
    """`mutransfer sweep ...` for the trials that differ from a flat trial config in the grid's overrides only.

    >>> sweep_command({"model.name": "gpt", "parameterization.name": "mup"}, ["seed=0,1"], "runs/gpt")
    'mutransfer sweep model=gpt parameterization=mup seed=0,1 run_dir=runs/gpt'
    """
    return command_line("sweep", [*_words("sweep", flat, ()), *grid, override("run_dir", run_dir)])


def command_line(verb: str, words: Iterable[str]) -> str:
    """The verb with its words, as a shell takes them.

    >>> print(command_line("transfer", ["my runs", "level=0.8"]))
    mutransfer transfer 'my runs' level=0.8
    """
    return " ".join(["mutransfer", verb, *map(shell_word, words)])


def _words(verb: str, flat: Mapping[str, Any], always: Collection[str]) -> list[str]:
    composer = _composer(verb)
    choices = _choices(composer, flat)
    said = composer.config(choices)
    known = {key: _at(said, key) for key in flat_keys(said)}
    said = {key: value for key, value in flat.items() if key in always or known.get(key, ...) != value}
    return [*choices, *(f"{key}={literal(value)}" for key, value in said.items())]


@functools.cache
def _composer(verb: str) -> Composer:
    """One for all lines: what Hydra composes is kept in it."""
    return Composer(verb)


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


def shell_path(path: str | Path) -> str:
    """A path as a word of a shell's command line that our own takes for no flag.

    >>> shell_path("my runs/a"), shell_path("-x")
    ("'my runs/a'", './-x')
    """
    word = str(path)
    return shell_word(f"./{word}" if word.startswith("-") else word)


def shell_word(text: str) -> str:
    """A text as one word of a shell's command line, without a character that a terminal obeys or does not show.

    >>> print(shell_word("my runs"), shell_word("tab" + chr(9) + "x"))
    'my runs' $'tab\\011x'
    """
    return shlex.quote(text) if text.isprintable() else f"$'{''.join(map(_in_dollar_quotes, text))}'"


def _in_dollar_quotes(character: str) -> str:
    """As bash, zsh and ksh read it: three octal digits for each byte end by themselves, whatever follows."""
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape"))


def override(key: str, text: str) -> str:
    """`key=text` as Hydra's grammar reads it back, whatever the text holds."""
    return f"{key}={literal(text)}"


def literal(value: Any) -> str:
    """As Hydra's grammar reads it back."""
    if isinstance(value, str):
        return value if _reads_as_itself(value) else f"'{_in_quotes(escape_interpolations(value))}'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    return json.dumps(value)


def _reads_as_itself(text: str) -> bool:
    """Without quotes; `123`, `1e3`, `true` and `null` are no texts there."""
    return _PLAIN.fullmatch(text) is not None and parse_override(f"key={text}").value() == text


def _in_quotes(text: str) -> str:
    """A backslash means another one only in front of a quote, the closing one too."""
    return _BEFORE_QUOTE.sub(lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
