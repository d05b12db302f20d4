"""Data sets: each one gives batches as a pure function of step and seed."""

from mutransfer.train.data.protocol import Data, DataInfo
from mutransfer.train.data.registry import DATA, build_data

__all__ = ["DATA", "Data", "DataInfo", "build_data"]
