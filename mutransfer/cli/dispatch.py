"""The front door: picks the verb, and turns every error a user can cause into one sentence and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mutransfer import __version__
from mutransfer.errors import ConfigError, MutransferError, RunError, nearest
from mutransfer.records import cannot_write, probe, remedy

DONE, FAIL, BAD_INPUT, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130
VERBS = {
    "explain": "print what a parameterization does to every parameter of a model",
    "check": "coordinate check: do all contributions keep their size as width grows?",
    "train": "train one model, such as the target; resumable",
    "sweep": "train a grid of sizes, learning rates, seeds, parameterizations; resumable",
    "transfer": "verdict, report and the target's hyperparameters from a finished sweep",
}
_WRITE_LAST = ("explain", "check")
"""Verbs that write nothing until their work is done; the others keep results as they go."""
_CHATTY = "torch._subclasses.fake_tensor"
"""Logs a traceback for every try that fails on fake tensors; what came of it is in our own sentence."""
_IN_PYTHON = {
    "example_inputs=": "the model's inputs are a batch of data=",
    "roles=": "a role can only be given in Python, to mutransfer.parameterize",
    "factory=": "the factory is the function in model.path=",
    "factory(": "the factory is what model= and model.path= choose, called with a width",
}
"""What some messages advise that is written for Python, and what it is here."""
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "Storage size calculation overflowed")
"""How torch says it, which has no one type of error for it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and gives back its exit code: 0 pass or done, 1 fail, 2 bad input, 3 undecided."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except MutransferError as error:
        return _complain(_on_the_command_line(str(error)))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        return _complain(_of_the_system(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        return _complain(
            "There is not enough memory for this model and its batch. "
            "Choose a smaller model.width or data.batch_size, or cut the batch into parts with train.accumulate."
        )
    except KeyboardInterrupt:
        print("\nInterrupted. Rerun the same command to continue.", file=sys.stderr)
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    first = words.pop(0) if words else "--help"
    match first:
        case "--help" | "-h" | "help":
            from mutransfer.cli.help import general

            print(general())
            return DONE
        case "--version" | "-V":
            print(f"mutransfer {__version__}")
            return DONE
        case "completion":
            from mutransfer.cli.completion import run

            return run(words)
    if first not in VERBS:
        raise ConfigError(f"mutransfer has no verb {first!r}.{nearest(first, [*VERBS, 'completion'])}")
    return _run_verb(first, words)


def _run_verb(verb: str, words: list[str]) -> int:
    from mutransfer.cli import arguments, help
    from mutransfer.sweep.compose import Composer
    from mutransfer.sweep.validate import validate

    parsed = arguments.parse(verb, words)
    composer = Composer(verb, parsed.config_dir)
    if parsed.help:
        print(help.of_verb(composer, parsed.overrides))
        return DONE
    if verb != "transfer" and parsed.positional:
        word = parsed.positional[0]
        example = f"{word}=VALUE" if "." in word else f"model={word}"
        raise ConfigError(f"{word!r} is neither a flag nor an override. Write key=value, such as {example}.")
    if verb in _WRITE_LAST and not parsed.show_config:
        _check_run_dir(validate(verb, composer.config(parsed.overrides))["run_dir"])
    logging.getLogger(_CHATTY).disabled = "TORCH_LOGS" not in os.environ
    module = importlib.import_module(f"mutransfer.cli.verbs.{verb}")
    code: int = module.run(composer, parsed)
    return code


def _check_run_dir(run_dir: str) -> None:
    """Looks for a place to write before the work; makes no folder yet, since the work may turn out impossible."""
    path = Path(run_dir)
    try:
        probe(next(folder for folder in (path, *path.parents) if folder.exists()))
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None


def _on_the_command_line(sentence: str) -> str:
    here = [meaning for word, meaning in _IN_PYTHON.items() if word in sentence]
    return f"{sentence} (On the command line {', and '.join(here)}.)" if here else sentence


def _of_the_system(error: OSError) -> str:
    """What the system refused, and of which file where it says so; only some of it is about room or permission."""
    reason = " ".join(str(error.strerror or error or type(error).__name__).split()).rstrip(".")
    advice = remedy(error, otherwise="Check that path, or give another.")
    return f"{reason}: {error.filename}. {advice}" if error.filename else f"{reason}. {advice}"


def _complain(sentence: str) -> int:
    from mutransfer.cli.output import printable

    print(f"mutransfer: {printable(sentence)}", file=sys.stderr)
    return BAD_INPUT
