"""What several verbs print."""

from __future__ import annotations

import json
from typing import Any

from mutransfer.cli.dispatch import DONE
from mutransfer.records import jsonable


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
