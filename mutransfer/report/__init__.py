"""The page that says what was found: verdict first, then the figures, the numbers and the command."""

from __future__ import annotations

from mutransfer.report.environment import environment_of
from mutransfer.report.write import CheckError, read_check, write_report

__all__ = ["CheckError", "environment_of", "read_check", "write_report"]
