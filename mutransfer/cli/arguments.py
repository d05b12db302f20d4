"""The words after a verb: a few flags, and overrides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mutransfer.errors import ConfigError, nearest

FLAGS = {
    "--help": "show this help and exit (also -h)",
    "--config-dir": "DIR  search your own groups and experiments there too",
    "--cfg": "print the resolved config as JSON and exit",
}
TRANSFER_FLAGS = {"--target": "KEY=VALUE  size of the target; may be given several times"}


@dataclass
class Arguments:
    """What stands after the verb.

    Attributes:
        overrides: every word with a `=` that is no RUN_DIR, in order.
        positional: every other word.
        target: the overrides given with `--target`.
    """

    overrides: list[str] = field(default_factory=list)
    positional: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    config_dir: Path | None = None
    help: bool = False
    show_config: bool = False


def parse(verb: str, words: Sequence[str]) -> Arguments:
    """Raises ConfigError for an unknown flag, a flag without its value, or a word that is not UTF-8."""
    _refuse_undecodable(words)
    arguments = Arguments()
    rest = iter(words)
    for word in rest:
        if word.startswith("-") and not word.startswith("-="):
            _take_flag(verb, word, rest, arguments)
        elif verb == "transfer" and _is_folder(word):
            arguments.positional.append(word)
        elif "=" in word or word.startswith(("+", "~")):
            arguments.overrides.append(word)
        else:
            arguments.positional.append(word)
    return arguments


def _refuse_undecodable(words: Sequence[str]) -> None:
    """Linux takes any bytes as a file's name; our JSON, pages and printed lines are text."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise ConfigError(
                f"'{shown}' is not UTF-8, and no config or report can hold such a name. Rename that file or folder, or "
                "choose another."
            ) from None


def _is_folder(word: str) -> bool:
    """A RUN_DIR may hold a `=`, as in runs/lr=2**-6; only transfer takes one."""
    return word.startswith(("/", "./", "../")) or Path(word).is_dir()


def _take_flag(verb: str, word: str, rest: Iterator[str], arguments: Arguments) -> None:
    flag, equals, value = word.partition("=")
    match flag:
        case "--help" | "-h":
            arguments.help = True
        case "--cfg":
            arguments.show_config = True
        case "--config-dir" | "-cd":
            arguments.config_dir = Path(value if equals else _value_of(flag, rest))
        case "--target" if verb == "transfer":
            arguments.target.append(value if equals else _value_of(flag, rest))
        case "--multirun" | "-m" if verb == "sweep":
            pass  # Hydra's habit; a sweep is always one
        case _:
            known = [*FLAGS, *(TRANSFER_FLAGS if verb == "transfer" else {})]
            raise ConfigError(f"`mutransfer {verb}` has no flag {flag}.{nearest(flag, known)}")


def _value_of(flag: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise ConfigError(
            f"{flag} needs a value, as in `{flag} {'model.width=1024' if flag == '--target' else 'DIR'}`."
        )
    return value
