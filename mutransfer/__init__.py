"""Tune small, transfer big: muP and its relatives for any PyTorch model.

Names are loaded when they are used (PEP 562), so that `import mutransfer` and `mutransfer --help` import no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "parameterize": "mutransfer.convert",
    "plan": "mutransfer.convert",
    "Plan": "mutransfer.convert",
    "export": "mutransfer.convert",
    "PARAMETERIZATIONS": "mutransfer.rules.tables",
    "OPTIMIZERS": "mutransfer.rules.optimizers",
    "Parameterization": "mutransfer.rules.table",
    "Role": "mutransfer.rules.table",
    "check_schedule": "mutransfer.integrations",
    "coord_check": "mutransfer.check",
    "transfer_hyperparameters": "mutransfer.transfer",
    "MutransferError": "mutransfer.errors",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mutransfer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
