"""Whether the best hyperparameters of a small model are those of a larger one, and what they become there."""

from __future__ import annotations

from mutransfer.transfer.analysis import analyze, analyze_records
from mutransfer.transfer.bootstrap import Interval
from mutransfer.transfer.grid import extension_overrides, extensions, missing_values
from mutransfer.transfer.points import Point, points_from_records
from mutransfer.transfer.result import Optimum, ParameterizationTransfer, TransferReport
from mutransfer.transfer.target import TargetHyperparameters, transfer_hyperparameters
from mutransfer.transfer.values import RoleValues, TransferredValue

__all__ = [
    "Interval",
    "Optimum",
    "ParameterizationTransfer",
    "Point",
    "RoleValues",
    "TargetHyperparameters",
    "TransferReport",
    "TransferredValue",
    "analyze",
    "analyze_records",
    "extension_overrides",
    "extensions",
    "missing_values",
    "points_from_records",
    "transfer_hyperparameters",
]
