"""What several verbs print."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutransfer.cli.dispatch import DONE
from mutransfer.records import check_writable, jsonable


def print_config(config: Any) -> int:
    """`--cfg`: the resolved config as JSON, and nothing else."""
    print(json.dumps(jsonable(config), indent=1))
    return DONE


def counted(number: int, what: str) -> str:
    """How many there are, in words that fit one of them too.

    >>> counted(1, "trial"), counted(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def printable(text: object) -> str:
    """A text that may hold strings of others, without what a terminal would obey: escapes and control characters.

    >>> printable("mup" + chr(27) + "[2J")
    'mup?[2J'
    """
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


@contextlib.contextmanager
def writable(run_dir: Path) -> Iterator[None]:
    """A folder to write to, made here; where the work is refused and has written nothing, it is gone again.

    Raises:
        RunError: it cannot be made or written to.
    """
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        check_writable(run_dir)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first that is not empty, or was never made, ends it
            for folder in made:
                folder.rmdir()
        raise
