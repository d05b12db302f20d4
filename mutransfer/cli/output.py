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
