"""Whether the best hyperparameters of a small model are those of a larger one, and what they become there."""

from __future__ import annotations

from mutransfer.transfer.analysis import analyze, analyze_records
from mutransfer.transfer.bootstrap import Interval
from mutransfer.transfer.grid import extension_overrides, missing_values
from mutransfer.transfer.points import Point, points_from_records
from mutransfer.transfer.result import Optimum, ParameterizationTransfer, TransferReport
from mutransfer.transfer.target import TargetHyperparameters, TransferredValue, transfer_hyperparameters

__all__ = [
    "Interval",
    "Optimum",
    "ParameterizationTransfer",
    "Point",
    "TargetHyperparameters",
    "TransferReport",
    "TransferredValue",
    "analyze",
    "analyze_records",
    "extension_overrides",
    "missing_values",
    "points_from_records",
    "transfer_hyperparameters",
]
